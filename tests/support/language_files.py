"""Files of small language models with random weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_DTYPES = {"float32": "F32", "float16": "F16", "int64": "I64", "int8": "I8", "uint16": "BF16"}


def safetensors_file(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Return the bytes of a file; arrays of uint16 are bfloat16."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, values in tensors.items():
        header[name] = {
            "dtype": _DTYPES[values.dtype.name],
            "shape": list(values.shape),
            "data_offsets": [len(body), len(body) + values.nbytes],
        }
        body += values.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


BASE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GEMMA = {
    "head_dim": 16,
    "sliding_window": 5,
    "query_pre_attn_scalar": 24,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
# `config.json` of each architecture, beyond BASE; what matters is that every setting acts.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "rope_theta": 100.0},
    "llama with biases, stretched as Llama 3.1": {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "rope_theta": 500.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "llama stretched linearly": {
        "model_type": "llama",
        "rope_scaling": {"type": "linear", "factor": 4.0},
    },
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    "qwen2": {
        "model_type": "qwen2",
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", "rope_theta": 1000.0},
    "gemma2": {
        "model_type": "gemma2",
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        **_GEMMA,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 3,
        "sliding_window_pattern": 3,
        "rope_theta": 1000.0,
        "rope_local_base_freq": 10.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        **_GEMMA,
    },
    "phi3": {"model_type": "phi3", "sliding_window": 6},
    "phi3 with a part rotated, stretched": {
        "model_type": "phi3",
        "head_dim": 32,
        "partial_rotary_factor": 0.5,
        "original_max_position_embeddings": 16,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0 + i / 10 for i in range(8)],
            "long_factor": [2.0 + i for i in range(8)],
        },
    },
}


def config_of(name: str) -> dict[str, Any]:
    """Return the settings of one of `CONFIGS`."""
    return {**BASE, **CONFIGS[name]}


def random_tensors(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return weights by the names of Hugging Face."""
    random = np.random.default_rng(0)
    kind, width = config["model_type"], config["hidden_size"]
    hidden, size = config["intermediate_size"], config["head_dim"]
    queries, keys = (config[f"num_{n}_heads"] * size for n in ("attention", "key_value"))
    tensors: dict[str, np.ndarray] = {}

    def matrix(name: str, outputs: int, inputs: int, bias: bool = False) -> None:
        values = random.normal(0, 1.5 * inputs**-0.5, (outputs, inputs))
        tensors[f"{name}.weight"] = values.astype(np.float32)
        if bias:
            tensors[f"{name}.bias"] = random.normal(0, 0.3, outputs).astype(np.float32)

    def norm(name: str, extent: int = width) -> None:
        middle = 0 if kind.startswith("gemma") else 1
        values = random.uniform(middle - 0.5, middle + 0.5, extent)
        tensors[f"{name}.weight"] = values.astype(np.float32)

    matrix("model.embed_tokens", config["vocab_size"], width)
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        biased = config.get("attention_bias", False)
        if kind == "phi3":
            matrix(f"{block}.self_attn.qkv_proj", queries + 2 * keys, width)
            matrix(f"{block}.mlp.gate_up_proj", 2 * hidden, width)
        else:
            for part, outputs in (("q", queries), ("k", keys), ("v", keys)):
                matrix(f"{block}.self_attn.{part}_proj", outputs, width, biased)
            for part in ("gate", "up"):
                matrix(f"{block}.mlp.{part}_proj", hidden, width, config.get("mlp_bias", False))
        matrix(f"{block}.self_attn.o_proj", width, queries, biased and kind == "llama")
        matrix(f"{block}.mlp.down_proj", width, hidden, config.get("mlp_bias", False))
        norms = ["input_layernorm", "post_attention_layernorm"]
        if kind.startswith("gemma"):
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        for name in norms:
            norm(f"{block}.{name}")
        if kind in ("qwen3", "gemma3_text"):
            norm(f"{block}.self_attn.q_norm", size)
            norm(f"{block}.self_attn.k_norm", size)
    norm("model.norm")
    if not config.get("tie_word_embeddings", False):
        matrix("lm_head", config["vocab_size"], width)
    return tensors


def write_folder(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> Path:
    """Write a folder as Hugging Face has them, with a tokenizer of a character for each token."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(safetensors_file(tensors))
    write_tokenizer(folder, config["vocab_size"])
    return folder


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """Write a tokenizer of a character for each token."""
    # Printable ASCII stands for itself in tokenizers of bytes.
    words = {chr(ord("!") + number): number for number in range(vocabulary)}
    whole = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    tokenizer = {
        "model": {"type": "BPE", "vocab": words, "merges": []},
        "pre_tokenizer": {**whole, "use_regex": True},
        "decoder": {**whole, "use_regex": True},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def random_factors(
    tensors: Mapping[str, np.ndarray], modules: tuple[str, ...], rank: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return A [rank, inputs] and B [outputs, rank] for modules of every layer, by module."""
    random = np.random.default_rng(3)
    found = {}
    for name, values in tensors.items():
        module = name.removesuffix(".weight")
        if module.endswith(modules):
            shapes = ((rank, values.shape[1]), (values.shape[0], rank))
            down, up = (random.normal(0, 0.2, shape).astype(np.float32) for shape in shapes)
            found[module] = (down, up)
    return found


def merged_tensors(
    tensors: Mapping[str, np.ndarray],
    factors: Mapping[str, tuple[np.ndarray, np.ndarray]],
    scale: float,
) -> dict[str, np.ndarray]:
    """Return weights to which products of factors are added, in float64."""
    merged = dict(tensors)
    for module, (down, up) in factors.items():
        product = up.astype(np.float64) @ down.astype(np.float64)
        merged[f"{module}.weight"] = tensors[f"{module}.weight"] + scale * product
    return merged


def write_peft(
    folder: Path, factors: Mapping[str, tuple[np.ndarray, np.ndarray]], **settings: Any
) -> Path:
    """Write an adapter as the package `peft` saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    rank = len(next(iter(factors.values()))[0])
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 6, "bias": "none", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for module, (down, up) in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = down
        tensors[f"base_model.model.{module}.lora_B.weight"] = up
    (folder / "adapter_model.safetensors").write_bytes(safetensors_file(tensors))
    return folder
