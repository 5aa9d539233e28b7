"""Folders of Hugging Face's become decoders that compute what is published."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.decoder_runs import DecoderRun
from support.language_files import (
    CONFIGS,
    config_of,
    random_tensors,
    safetensors_file,
    write_folder,
)
from support.reference_decoder import reference_logits

from edgec.compiler.errors import ModelFileError, UnsupportedModelError, UsageError
from edgec.compiler.language.decoder_graph import write_decoder
from edgec.compiler.language.huggingface import read_huggingface

IDS = np.random.default_rng(1).integers(0, 61, 24).tolist()
# Prefill of two chunks, one with padding; the rest is decoded token by token.
CHUNKS = [(7, 1), (8, 0)]
PLACES = [6, 14, *range(15, 24)]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_decoder_computes_its_definition(name: str, tmp_path: Path) -> None:
    config = config_of(name)
    tensors = random_tensors(config)
    model = read_huggingface(write_folder(tmp_path, config, tensors), context=32)
    path = write_decoder(model.decoder, model.weights, 32, tmp_path)
    run = DecoderRun(path)
    logits = run.all_logits(IDS, CHUNKS)
    expected = reference_logits(config, tensors, IDS)[PLACES]
    # Float32 against float64; logits are of the order of 5.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    assert run.state["past_length"] == [24]


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("mistral", "sliding_window", 4),
        ("qwen2", "max_window_layers", 0),
        ("gemma2", "attn_logit_softcapping", 4.0),
        ("gemma2", "query_pre_attn_scalar", 16),
        ("gemma3", "rope_local_base_freq", 20.0),
        ("phi3", "partial_rotary_factor", 0.5),
        ("llama", "rope_theta", 120.0),
    ],
)
def test_the_reference_sees_every_setting(name: str, setting: str, value: float) -> None:
    config = config_of(name)
    tensors = random_tensors(config)
    logits = reference_logits(config, tensors, IDS)
    other = reference_logits({**config, setting: value}, tensors, IDS)
    assert np.abs(logits - other).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_agrees_with_the_reference(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = config_of(name)
    if config["model_type"] == "phi3":
        # Its head size is always the width by the heads.
        config["hidden_size"] = config["head_dim"] * config["num_attention_heads"]
    tensors = random_tensors(config)
    write_folder(tmp_path, config, tensors)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(logits, reference_logits(config, tensors, IDS), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return random_tensors(config_of("llama"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_type": "mamba"}, UnsupportedModelError, "'mamba'; known are llama .*, phi3"),
        ({"hidden_size": None}, ModelFileError, "hidden_size is missing"),
        ({"hidden_size": "wide"}, ModelFileError, "hidden_size is wide; a whole number"),
        ({"num_hidden_layers": 3}, ModelFileError, r"Llama are missing: blk\.2\.attn_norm"),
        ({"num_hidden_layers": 1}, UnsupportedModelError, r"none of Llama: blk\.1\.attn_k"),
        (
            {"intermediate_size": 47},
            ModelFileError,
            r"ffn_.* 48.*; .* 47.* is expected by the settings",
        ),
        ({"hidden_act": "relu"}, UnsupportedModelError, "activation 'relu'; Llama has silu"),
        ({"rope_scaling": {"type": "ntk"}}, UnsupportedModelError, "rope_type 'ntk'"),
        ({"rope_scaling": {"type": "linear"}}, ModelFileError, "factor is missing"),
        ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedModelError, "by gptq"),
        ({"architectures": ["LlamaModel"]}, UnsupportedModelError, "no decoder of text"),
        ({"rms_norm_eps": float("nan")}, ModelFileError, "rms_norm_eps is nan"),
    ],
)
def test_settings_that_cannot_be(
    change: dict[str, object],
    error: type[Exception],
    message: str,
    tensors: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:
    config = {**config_of("llama"), **change}
    write_folder(tmp_path, {"vocab_size": 61, **config}, tensors)
    with pytest.raises(error, match=message):
        read_huggingface(tmp_path)


def test_more_context_than_the_model_has(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_folder(tmp_path, config_of("llama"), tensors)
    with pytest.raises(UsageError, match=r"--context 65: .* 2 to 64 tokens"):
        read_huggingface(tmp_path, context=65)


def test_a_folder_in_parts(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_folder(tmp_path, config_of("llama"), tensors)
    (tmp_path / "model.safetensors").unlink()
    index = {}
    for number, names in enumerate((list(tensors)[:5], list(tensors)[5:])):
        part = {name: tensors[name] for name in names}
        (tmp_path / f"part{number}.safetensors").write_bytes(safetensors_file(part))
        index.update(dict.fromkeys(names, f"part{number}.safetensors"))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    model = read_huggingface(tmp_path)
    name = "model.layers.1.mlp.down_proj.weight"
    np.testing.assert_array_equal(model.weights.matrix("blk.1.ffn_down.weight"), tensors[name])
    index["model.norm.weight"] = "../part0.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(ModelFileError, match="not in the folder"):
        read_huggingface(tmp_path)


def test_half_floats_are_exact(tmp_path: Path) -> None:
    tensors = random_tensors(config_of("llama"))
    halves = {
        name: (values.view(np.uint32) >> 16).astype(np.uint16) for name, values in tensors.items()
    }
    model = read_huggingface(write_folder(tmp_path, config_of("llama"), halves))
    values = model.weights.matrix("token_embd.weight")
    assert isinstance(values, np.ndarray)
    expected = halves["model.embed_tokens.weight"].astype(np.uint32) << 16
    np.testing.assert_array_equal(values.view(np.uint32), expected)


def test_special_tokens_and_the_chat(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_folder(tmp_path, config_of("llama"), tensors)
    about = {"bos_token": {"content": '"'}, "pad_token": "$", "chat_template": "{{ messages }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    language = read_huggingface(tmp_path).language
    assert (language.begin_token, language.padding_token) == (1, 3)
    assert language.end_tokens == (2, 7)
    assert language.chat_template == "{{ messages }}"
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match=r"tokenizer\.json does not exist"):
        read_huggingface(tmp_path)
