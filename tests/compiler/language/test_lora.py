"""Adapters are merged into weights, or refused by the name of what cannot be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.decoder_runs import DecoderRun
from support.gguf_files import write_gguf, write_gguf_adapter
from support.language_files import (
    config_of,
    merged_tensors,
    random_factors,
    random_tensors,
    safetensors_file,
    write_folder,
    write_peft,
)
from support.reference_decoder import reference_logits

from edgec.compiler.errors import EdgecError, ModelFileError, UnsupportedModelError, UsageError
from edgec.compiler.frontend.model_source import read_model
from edgec.compiler.generation.calibration import TextQuantization
from edgec.compiler.language.decoder_graph import write_decoder
from edgec.compiler.language.gguf_model import read_gguf_model
from edgec.compiler.language.grouped_weight import GroupedWeight
from edgec.compiler.language.huggingface import read_huggingface
from edgec.compiler.language.lora import Adapter, merge_adapters, parse_adapter

IDS = np.random.default_rng(1).integers(0, 61, 16).tolist()
CHUNKS = [(7, 1), (8, 0)]
PLACES = [6, 14, 15]
CONFIG = config_of("llama")
TENSORS = random_tensors(CONFIG)
FACTORS = random_factors(TENSORS, ("q_proj", "k_proj", "down_proj", "lm_head"), 4)


def logits_of(path: Path, *adapters: Adapter, rounded: bool = False) -> np.ndarray:
    read = read_gguf_model if path.is_file() else read_huggingface
    model = merge_adapters(path, read(path, 32), adapters, rounded=rounded)
    graph = write_decoder(model.decoder, model.weights, 32, path.parent)
    return DecoderRun(graph).all_logits(IDS, CHUNKS)


def near(logits: np.ndarray, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> bool:
    """Tell whether they are the definition's: float32 against float64, logits of about 5."""
    expected = reference_logits(config, tensors, IDS)[PLACES]
    return float(np.abs(logits - expected).max()) < 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("lora") / "model", CONFIG, TENSORS)


def test_a_folder_with_an_adapter(folder: Path, tmp_path: Path) -> None:
    adapter = write_peft(tmp_path / "a", FACTORS, target_modules=["q_proj", "k_proj"])
    with pytest.raises(ModelFileError, match=r"down_proj has factors, .* names q_proj, k_proj"):
        logits_of(folder, Adapter(adapter))
    adapter = write_peft(tmp_path / "a", FACTORS)
    logits = logits_of(folder, Adapter(adapter, 0.5))
    assert near(logits, CONFIG, merged_tensors(TENSORS, FACTORS, 0.5 * 6 / 4))
    # The model alone, and the adapter at another scale, are something else.
    assert not near(logits, CONFIG, TENSORS)
    assert not near(logits, CONFIG, merged_tensors(TENSORS, FACTORS, 6 / 4))
    stable = write_peft(tmp_path / "s", FACTORS, use_rslora=True)
    # Adapters add up.
    logits = logits_of(folder, Adapter(stable), Adapter(adapter, -1.0))
    assert near(logits, CONFIG, merged_tensors(TENSORS, FACTORS, 6 / 2 - 6 / 4))


def test_fused_matrices(tmp_path: Path) -> None:
    config = config_of("phi3")
    tensors = random_tensors(config)
    factors = random_factors(tensors, ("qkv_proj", "gate_up_proj"), 4)
    merged = merged_tensors(tensors, factors, 6 / 4)
    adapter = write_peft(tmp_path / "a", factors)
    logits = logits_of(write_folder(tmp_path / "m", config, tensors), Adapter(adapter))
    assert near(logits, config, merged)
    write_gguf(tmp_path / "m.gguf", config, tensors)
    adapter = write_gguf_adapter(tmp_path / "a.gguf", config, factors)
    assert near(logits_of(tmp_path / "m.gguf", Adapter(adapter)), config, merged)
    assert not near(logits, config, tensors)


def test_a_gguf_file_with_an_adapter(tmp_path: Path) -> None:
    """Rows of queries and keys are in another order there."""
    write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS)
    adapter = write_gguf_adapter(tmp_path / "a.gguf", CONFIG, FACTORS)
    logits = logits_of(tmp_path / "m.gguf", Adapter(adapter, 2.0))
    assert near(logits, CONFIG, merged_tensors(TENSORS, FACTORS, 2 * 6 / 4))
    assert not near(logits, CONFIG, TENSORS)
    with pytest.raises(UsageError, match=r"a is a folder, and .*m\.gguf a GGUF file"):
        logits_of(tmp_path / "m.gguf", Adapter(write_peft(tmp_path / "a", FACTORS)))


def test_quantized_weights(tmp_path: Path) -> None:
    """They are refused, or quantized again if they have bits to spare."""
    wide = CONFIG | {"intermediate_size": 64}
    tensors = random_tensors(wide)
    factors = random_factors(tensors, ("q_proj", "up_proj"), 4)
    path, name = tmp_path / "m.gguf", "blk.0.ffn_up.weight"
    adapter = Adapter(write_gguf_adapter(tmp_path / "a.gguf", wide, factors))
    meant = write_gguf(path, wide, tensors, {"ffn_up.weight": "Q8_0"})
    with pytest.raises(UsageError, match=r"a\.gguf: .*ffn_up.* or --quantize int4, which"):
        logits_of(path, adapter)
    model = merge_adapters(path, read_gguf_model(path, 32), [adapter], rounded=True)
    expected = merged_tensors(meant, factors, 6 / 4)["model.layers.0.mlp.up_proj.weight"]
    np.testing.assert_allclose(model.weights.matrix(name), expected, atol=1e-6)
    matrix = TextQuantization(32, None).apply(model).weights.matrix(name)
    assert isinstance(matrix, GroupedWeight)
    # At most half a step of 15 over the range of a group.
    steps = np.ptp(expected.reshape(64, 1, 32), axis=2) / 15
    assert np.abs(matrix.dequantize() - expected).max() < 0.75 * steps.max()
    assert np.abs(matrix.dequantize() - meant["model.layers.0.mlp.up_proj.weight"]).max() > 0.5
    write_gguf(path, wide, tensors, {"ffn_up.weight": "Q4_0"})
    for rounded in (False, True):
        with pytest.raises(UsageError, match="has 4 bits in the file, too few"):
            logits_of(path, adapter, rounded=rounded)


def test_caches_are_bound_to_the_adapter(folder: Path, tmp_path: Path) -> None:
    model = read_huggingface(folder, 32)
    adapter = Adapter(write_peft(tmp_path / "a", FACTORS))
    others = [adapter, Adapter(adapter.path, 0.5)]
    others.append(Adapter(write_peft(tmp_path / "b", FACTORS, lora_alpha=7)))
    made = [merge_adapters(folder, model, [item], rounded=False) for item in others]
    digests = {model.language.digest, *(item.language.digest for item in made)}
    assert len(digests) == 4


SHORT = {"model.layers.0.mlp.up_proj": (np.ones((4, 31), np.float32), np.ones((48, 4)))}
HALVES = {"model.layers.0.mlp.up_proj": (np.ones((4, 32)), np.ones((47, 4)))}
OTHER = {"model.layers.2.mlp.up_proj": (np.ones((4, 32)), np.ones((48, 4)))}
RANKS = {"model.layers.0.mlp.up_proj": (np.ones((4, 32)), np.ones((48, 3)))}
NAN = {"model.layers.0.mlp.up_proj": (np.full((4, 32), np.nan), np.ones((48, 4)))}
TABLE = {"model.embed_tokens": (np.ones((4, 32)), np.ones((61, 4)))}
NORM = {"model.norm": (np.ones((4, 1)), np.ones((32, 4)))}


@pytest.mark.parametrize(
    ("factors", "settings", "error", "message"),
    [
        (FACTORS, {"use_dora": True}, UnsupportedModelError, "use_dora asks for DoRA"),
        (FACTORS, {"modules_to_save": ["lm_head"]}, UnsupportedModelError, "modules_to_save asks"),
        (FACTORS, {"bias": "all"}, UnsupportedModelError, "bias is 'all'"),
        (FACTORS, {"rank_pattern": {"q_proj": 2}}, UnsupportedModelError, "ranks by pattern"),
        (FACTORS, {"peft_type": "IA3"}, UnsupportedModelError, "an adapter of type IA3"),
        (FACTORS, {"init_lora_weights": "pissa"}, UnsupportedModelError, "'pissa' changed"),
        (FACTORS, {"r": 8}, ModelFileError, "has the rank 4; 8 is expected"),
        (FACTORS, {"lora_alpha": None}, ModelFileError, "lora_alpha is missing"),
        (SHORT, {}, ModelFileError, r"changed by \[48, 31\]; \[48, 32\] is what the model has"),
        (HALVES, {}, ModelFileError, r"changed by \[47, 32\]; \[48, 32\] is what"),
        (RANKS, {}, ModelFileError, r"A \[4, 32\] and B \[48, 3\]; \[rank, inputs\] and"),
        (NAN, {}, ModelFileError, "up_proj.weight has values that are no numbers"),
        (OTHER, {}, UnsupportedModelError, r"changes model\.layers\.2.*no matrix of this name"),
        (NORM, {}, UnsupportedModelError, r"changes model\.norm.*no matrix of this name"),
        (TABLE, {}, UnsupportedModelError, "the table of tokens, which is not merged"),
    ],
)
def test_adapters_that_cannot_be_merged(
    factors: dict[str, tuple[np.ndarray, np.ndarray]],
    settings: dict[str, Any],
    error: type[EdgecError],
    message: str,
    folder: Path,
    tmp_path: Path,
) -> None:
    single = {n: (a.astype(np.float32), b.astype(np.float32)) for n, (a, b) in factors.items()}
    adapter = Adapter(write_peft(tmp_path / "a", single, **settings))
    with pytest.raises(error, match=message):
        merge_adapters(folder, read_huggingface(folder, 32), [adapter], rounded=False)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("model.norm.weight", UnsupportedModelError, "tensor base_model.model.model.norm.weight"),
        ("lm_head.lora_magnitude_vector", UnsupportedModelError, "magnitude_vector cannot be"),
        ("lm_head.lora_A.weight", ModelFileError, r"lm_head\.lora_B\.weight is missing"),
    ],
)
def test_tensors_of_folders_that_cannot_be(
    name: str, error: type[EdgecError], message: str, folder: Path, tmp_path: Path
) -> None:
    adapter = write_peft(tmp_path / "a", FACTORS)
    content = safetensors_file({f"base_model.model.{name}": np.ones((4, 32), np.float32)})
    (adapter / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(error, match=message):
        merge_adapters(folder, read_huggingface(folder, 32), [Adapter(adapter)], rounded=False)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UnsupportedModelError, match=r"adapter_model\.bin, a program of pickle's"):
        merge_adapters(folder, read_huggingface(folder, 32), [Adapter(adapter)], rounded=False)


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"general__type": "model"}, ModelFileError, "is a model, no adapter"),
        ({"adapter__type": "control_vector"}, UnsupportedModelError, "type control_vector"),
        ({"adapter__lora__alpha": 0.0}, ModelFileError, "alpha is 0.0; a positive number"),
    ],
)
def test_gguf_adapters_that_cannot_be(
    metadata: dict[str, Any], error: type[EdgecError], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, CONFIG, TENSORS)
    adapter = Adapter(write_gguf_adapter(tmp_path / "a.gguf", CONFIG, FACTORS, **metadata))
    with pytest.raises(error, match=message):
        merge_adapters(path, read_gguf_model(path, 32), [adapter], rounded=False)


def test_a_gguf_adapter_of_another_architecture(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, CONFIG, TENSORS)
    other = write_gguf_adapter(tmp_path / "a.gguf", {**CONFIG, "model_type": "qwen2"}, FACTORS)
    with pytest.raises(ModelFileError, match="is for qwen2; the model is llama"):
        merge_adapters(path, read_gguf_model(path, 32), [Adapter(other)], rounded=False)


def test_adapters_by_text(folder: Path, tmp_path: Path) -> None:
    assert parse_adapter("a/b:0.25") == Adapter(Path("a/b"), 0.25)
    assert parse_adapter("a/b") == Adapter(Path("a/b"))
    # A colon of the name, not of the scale.
    (tmp_path / "a:2").mkdir()
    assert parse_adapter(tmp_path / "a:2") == Adapter(tmp_path / "a:2")
    for scale in ("0", "nan", "inf"):
        with pytest.raises(UsageError, match="a scale is a number that is not 0"):
            parse_adapter(f"a:{scale}")
    with pytest.raises(ModelFileError, match="adapter nowhere does not exist"):
        read_model(folder, context=32, lora=[Adapter(Path("nowhere"))])
    (tmp_path / "text").write_text(json.dumps({}))
    with pytest.raises(ModelFileError, match="text is no adapter: a folder with adapter_config"):
        read_model(folder, context=32, lora=[Adapter(tmp_path / "text")])
    with pytest.raises(UsageError, match="--lora is for GGUF files and Hugging Face folders"):
        read_model(tmp_path / "m.onnx", lora=[Adapter(tmp_path)])
