"""GGUF files become decoders that compute what their codes mean."""

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from support.decoder_runs import DecoderRun
from support.gguf_files import write_gguf
from support.language_files import config_of, random_tensors
from support.reference_decoder import reference_logits

from edgec.compiler.errors import EdgecError, ModelFileError, UnsupportedModelError
from edgec.compiler.language.decoder_graph import write_decoder
from edgec.compiler.language.gguf_file import read_gguf
from edgec.compiler.language.gguf_model import read_gguf_model
from edgec.models import load_model_recipe

IDS = np.random.default_rng(1).integers(0, 61, 20).tolist()
CHUNKS = [(7, 1), (8, 0)]
PLACES = [6, 14, *range(15, 20)]


def logits_of(path: Path, folder: Path, accuracy_level: int = 0) -> np.ndarray:
    model = read_gguf_model(path, context=32)
    graph = write_decoder(model.decoder, model.weights, 32, folder, accuracy_level=accuracy_level)
    return DecoderRun(graph).all_logits(IDS, CHUNKS)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"])
def test_every_architecture(name: str, tmp_path: Path) -> None:
    config = config_of(name)
    if name == "qwen2":
        # llama.cpp and the published models see everything.
        config["max_window_layers"] = config["num_hidden_layers"]
    if name.startswith("gemma"):
        # It follows from the size of a head.
        config["query_pre_attn_scalar"] = config["head_dim"]
    others = {}
    if name == "gemma3":
        config |= {"num_hidden_layers": 6, "sliding_window_pattern": 6}
        others = {"gemma3__rope__freq_base_swa": config["rope_local_base_freq"]}
    tensors = random_tensors(config)
    write_gguf(tmp_path / "m.gguf", config, tensors, **others)
    expected = reference_logits(config, tensors, IDS)[PLACES]
    # Float32 against float64; logits are of the order of 5.
    logits = logits_of(tmp_path / "m.gguf", tmp_path)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
TYPES = {
    "blk.0.attn_q.weight": "Q4_0",
    "blk.0.attn_k.weight": "Q4_1",
    "blk.0.attn_v.weight": "Q5_0",
    "blk.0.attn_output.weight": "Q5_1",
    "blk.0.ffn_gate.weight": "Q8_0",
    "blk.0.ffn_up.weight": "Q2_K",
    "blk.0.ffn_down.weight": "Q3_K",
    "blk.1.attn_q.weight": "Q5_K",
    "blk.1.attn_k.weight": "Q6_K",
    "blk.1.attn_v.weight": "IQ4_NL",
    "blk.1.attn_output.weight": "IQ4_XS",
    "blk.1.ffn_gate.weight": "F16",
    "blk.1.ffn_up.weight": "BF16",
    "blk.1.ffn_down.weight": "Q4_K",
}


@pytest.mark.parametrize("embeddings", ["Q8_0", "Q4_1", "Q5_1", "Q6_K"])
def test_every_tensor_type(embeddings: str, tmp_path: Path) -> None:
    config = config_of("llama") | WIDE | {"tie_word_embeddings": True}
    path = tmp_path / "m.gguf"
    types = TYPES | {"token_embd.weight": embeddings}
    meant = write_gguf(path, config, random_tensors(config), types)
    logits = logits_of(path, tmp_path)
    expected = reference_logits(config, meant, IDS)[PLACES]
    # As above; logits are ten times larger.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3)
    # On int8 activations: near, and not the same.
    rounded = np.abs(logits_of(path, tmp_path, accuracy_level=4) - expected)
    assert 1e-3 < rounded.mean() < 0.1 * np.abs(expected).mean()
    # The embeddings' codes serve as output, too; their bytes are stored once.
    weights = sum(t.data.nbytes for t in read_gguf(path).tensors.values())
    assert (tmp_path / "decoder.onnx.data").stat().st_size < 2 * weights


def test_stretched_by_a_tensor_of_factors(tmp_path: Path) -> None:
    config = config_of("llama stretched linearly") | {"tie_word_embeddings": True}
    tensors = random_tensors(config)
    write_gguf(tmp_path / "m.gguf", config | {"rope_scaling": {}}, tensors)
    plain = logits_of(tmp_path / "m.gguf", tmp_path)
    linear = config | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    write_gguf(tmp_path / "m.gguf", linear, tensors)
    expected = reference_logits(config, tensors, IDS)[PLACES]
    np.testing.assert_allclose(logits_of(tmp_path / "m.gguf", tmp_path), expected, atol=1e-4)
    assert np.abs(plain - expected).max() > 0.1


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("expert_count", 4, UnsupportedModelError, "has experts"),
        ("rope__dimension_count", 7, ModelFileError, "an even number up to 16"),
        ("attention__scale", -1.0, ModelFileError, "scale is -1.0; a positive number"),
    ],
)
def test_settings_that_cannot_be(
    key: str, value: float, error: type[EdgecError], message: str, tmp_path: Path
) -> None:
    config = config_of("llama")
    others = {f"llama__{key}": value}
    write_gguf(tmp_path / "m.gguf", config, random_tensors(config), **others)
    with pytest.raises(error, match=message):
        read_gguf_model(tmp_path / "m.gguf")


def test_an_unknown_architecture(tmp_path: Path) -> None:
    config = config_of("llama")
    write_gguf(tmp_path / "m.gguf", config, random_tensors(config), architecture="falcon")
    with pytest.raises(UnsupportedModelError, match=r"'falcon'; known are llama \(Llama\), "):
        read_gguf_model(tmp_path / "m.gguf")


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(tmp_path: Path) -> None:
    path = load_model_recipe("smollm2-135m").write(tmp_path / "m.gguf")
    model = read_gguf_model(path, context=32)
    tokenizer = tokenizers.Tokenizer.from_str(model.tokenizer)
    tokens = tokenizer.encode("The capital of France is").ids
    run = DecoderRun(write_decoder(model.decoder, model.weights, 32, tmp_path))
    assert tokenizer.decode([int(run.step(tokens, padding=3).argmax())]) == " Paris"
