"""Decoders by their published definitions, in float64, one whole sequence at a time.

Independent of the import: settings and tensors are Hugging Face's, heads are taken one by one.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Tensors = Mapping[str, np.ndarray]


def reference_logits(config: Mapping[str, Any], tensors: Tensors, ids: list[int]) -> np.ndarray:
    """Return the logits of every token, [tokens, vocabulary]."""
    gemma = config["model_type"].startswith("gemma")
    x = tensors["model.embed_tokens.weight"][ids].astype(np.float64)
    if gemma:
        x = x * np.float32(config["hidden_size"] ** 0.5)
    for layer in range(config["num_hidden_layers"]):
        x = _block(config, tensors, layer, x)
    x = _norm(config, tensors["model.norm.weight"], x)
    head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    return _capped(x @ head.T.astype(np.float64), config.get("final_logit_softcapping"))


def _block(config: Mapping[str, Any], tensors: Tensors, layer: int, x: np.ndarray) -> np.ndarray:
    gemma = config["model_type"].startswith("gemma")

    def norm(name: str, y: np.ndarray) -> np.ndarray:
        return _norm(config, tensors[f"model.layers.{layer}.{name}.weight"], y)

    y = _attention(config, tensors, layer, norm("input_layernorm", x))
    if gemma:
        x = x + norm("post_attention_layernorm", y)
        y = _feed_forward(config, tensors, layer, norm("pre_feedforward_layernorm", x))
        return x + norm("post_feedforward_layernorm", y)
    x = x + y
    return x + _feed_forward(config, tensors, layer, norm("post_attention_layernorm", x))


def _norm(config: Mapping[str, Any], weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    factor = weight + 1.0 if config["model_type"].startswith("gemma") else weight
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config["rms_norm_eps"]) * factor


def _project(tensors: Tensors, name: str, x: np.ndarray) -> np.ndarray:
    y = x @ tensors[f"{name}.weight"].T.astype(np.float64)
    return y + tensors.get(f"{name}.bias", 0.0)


def _capped(x: np.ndarray, cap: float | None) -> np.ndarray:
    return cap * np.tanh(x / cap) if cap else x


def _feed_forward(
    config: Mapping[str, Any], tensors: Tensors, layer: int, x: np.ndarray
) -> np.ndarray:
    name = f"model.layers.{layer}.mlp"
    if config["model_type"] == "phi3":
        gate, up = np.split(_project(tensors, f"{name}.gate_up_proj", x), 2, axis=-1)
    else:
        gate, up = (_project(tensors, f"{name}.{part}_proj", x) for part in ("gate", "up"))
    if config["model_type"].startswith("gemma"):
        inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
        gate = 0.5 * gate * (1 + np.tanh(inner))
    else:
        gate = gate / (1 + np.exp(-gate))
    return _project(tensors, f"{name}.down_proj", gate * up)


def _attention(
    config: Mapping[str, Any], tensors: Tensors, layer: int, x: np.ndarray
) -> np.ndarray:
    name, kind = f"model.layers.{layer}.self_attn", config["model_type"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size, length = config["head_dim"], len(x)
    if kind == "phi3":
        whole = _project(tensors, f"{name}.qkv_proj", x)
        ends = [heads * size, (heads + groups) * size]
        queries, keys, values = np.split(whole, ends, axis=-1)
    else:
        queries, keys, values = (_project(tensors, f"{name}.{p}_proj", x) for p in "qkv")
    local = _is_local(config, layer)
    window = config["sliding_window"] if local else length
    back = np.arange(length)[:, None] - np.arange(length)
    visible = (back >= 0) & (back < window)
    scale = config.get("query_pre_attn_scalar", size) ** -0.5
    mixed = []
    for head in range(heads):
        query = queries[:, head * size :][:, :size]
        shared = head // (heads // groups) * size
        key, value = keys[:, shared:][:, :size], values[:, shared:][:, :size]
        if f"{name}.q_norm.weight" in tensors:
            query = _norm(config, tensors[f"{name}.q_norm.weight"], query)
            key = _norm(config, tensors[f"{name}.k_norm.weight"], key)
        query, key = (_rotated(config, local, item) for item in (query, key))
        scores = _capped(query @ key.T * scale, config.get("attn_logit_softcapping"))
        shares = np.exp(scores - scores.max()) * visible
        mixed.append(shares / shares.sum(-1, keepdims=True) @ value)
    return _project(tensors, f"{name}.o_proj", np.concatenate(mixed, axis=-1))


def _is_local(config: Mapping[str, Any], layer: int) -> bool:
    match config["model_type"]:
        case "mistral" | "phi3":
            return "sliding_window" in config
        case "qwen2":
            return layer >= config["max_window_layers"]
        case "gemma2":
            return layer % 2 == 0
        case "gemma3_text":
            return (layer + 1) % config["sliding_window_pattern"] != 0
    return False


def _rotated(config: Mapping[str, Any], local: bool, x: np.ndarray) -> np.ndarray:
    """Turn dimension i with i + n / 2, of the n that are turned."""
    turned = int(config["head_dim"] * config.get("partial_rotary_factor", 1.0))
    base = config.get("rope_theta", 10000.0)
    scaling = config.get("rope_scaling") or {}
    if local and config["model_type"] == "gemma3_text":
        base, scaling = config["rope_local_base_freq"], {}
    frequencies = np.array([base ** (-2 * i / turned) for i in range(turned // 2)])
    factor = 1.0
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "linear":
        frequencies = frequencies / scaling["factor"]
    elif kind == "llama3":
        frequencies = np.array([_llama3(scaling, f) for f in frequencies])
    elif kind == "longrope":
        before = config["original_max_position_embeddings"]
        frequencies = frequencies / np.array(scaling["long_factor"])
        factor = math.sqrt(
            1 + math.log(config["max_position_embeddings"] / before) / math.log(before)
        )
    turns = np.exp(1j * np.outer(np.arange(len(x)), frequencies)) * factor
    pairs = (x[:, : turned // 2] + 1j * x[:, turned // 2 : turned]) * turns
    return np.concatenate([pairs.real, pairs.imag, x[:, turned:]], axis=-1)


def _llama3(scaling: Mapping[str, Any], frequency: float) -> float:
    length, factor = 2 * math.pi / frequency, scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    before = scaling["original_max_position_embeddings"]
    if length < before / high:
        return frequency
    if length > before / low:
        return frequency / factor
    smooth = (before / length - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency
