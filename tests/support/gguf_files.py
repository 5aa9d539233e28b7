"""GGUF files of small language models, made with the package `gguf`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edgec.compiler.language.gguf_types import TYPES

Tensors = Mapping[str, np.ndarray]

# Where blocks have float16 scales of everything in them [byte].
_SCALES = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
}
_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GEMMA_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def random_blocks(
    kind: str, outputs: int, inputs: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes of a random matrix [outputs, bytes], and the numbers that they mean.

    Every bit is random but for the scales, which make numbers of the size of a trained layer's.
    """
    number = gguf.GGMLQuantizationType[kind]
    deviation = 1.5 * inputs**-0.5
    if kind not in _SCALES:
        values = random.normal(0, deviation, (outputs, inputs)).astype(np.float32)
        data = gguf.quants.quantize(values, number)
        return data, np.array(gguf.quants.dequantize(data, number))
    type_ = TYPES[number.value]
    data = random.integers(0, 256, (outputs, inputs // type_.values, type_.size), np.uint8)

    def scaled(scale: float) -> np.ndarray:
        for index, place in enumerate(_SCALES[kind]):
            # A minimum is subtracted in the K types and added in the others.
            centre = 1.0 if index == 0 or kind.endswith("K") else -8.0
            field = np.full(data.shape[:2], scale * centre, np.float16)
            data[..., place : place + 2] = field[..., None].view(np.uint8)
        return np.array(gguf.quants.dequantize(data.reshape(outputs, -1), number))

    values = scaled(deviation / scaled(1.0).std())
    return data.reshape(outputs, -1), values


def write_gguf(
    path: Path,
    config: Mapping[str, Any],
    tensors: Tensors,
    types: Mapping[str, str] | None = None,
    architecture: str = "",
    chat_template: str = "",
    **metadata: Any,
) -> dict[str, np.ndarray]:
    """Write the model of a folder of Hugging Face's as llama.cpp converts it.

    Args:
        path: the file.
        config: `config.json`.
        tensors: by the names of Hugging Face.
        types: type by the end of a GGUF tensor's name; F32 else. Those matrices become random.
        architecture: of the file, if not that of the configuration.
        chat_template: in Jinja.
        metadata: further entries, dots written as two underscores.

    Returns:
        The tensors that the file means, by the names of Hugging Face.
    """
    random = np.random.default_rng(2)
    kind = architecture or config["model_type"].removesuffix("_text").replace("mistral", "llama")
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if "sliding_window" in config:
        writer.add_sliding_window(config["sliding_window"])
    if config.get("rope_scaling", {}).get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config["rope_scaling"]["factor"])
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if name in config:
            writer.add_float32(f"{kind}.{name}", config[name])
    vocabulary = config["vocab_size"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    letters = [chr(0x100 + number) for number in range(vocabulary - 1)]
    writer.add_token_list([*letters, letters[4] + letters[5]])
    writer.add_token_types([3] * 3 + [1] * (vocabulary - 3))
    writer.add_token_merges([f"{letters[4]} {letters[5]}"])
    writer.add_eos_token_id(2)
    if chat_template:
        writer.add_chat_template(chat_template)
    for name, value in metadata.items():
        key = name.replace("__", ".")
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(key, value)
    meant = {}
    for name, values in tensors.items():
        target = _gguf_name(name, kind)
        wanted = next((t for end, t in (types or {}).items() if target.endswith(end)), "F32")
        data = values
        if wanted != "F32":
            data, values = random_blocks(wanted, *values.shape, random)
        meant[name] = values
        if kind == "llama" and ".attn_q." in target:
            data = _pairs(data, config["num_attention_heads"])
        if kind == "llama" and ".attn_k." in target:
            data = _pairs(data, config["num_key_value_heads"])
        if kind.startswith("gemma") and target.endswith("norm.weight"):
            data = data + np.float32(1)
        writer.add_tensor(target, data, raw_dtype=gguf.GGMLQuantizationType[wanted])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def write_gguf_adapter(
    path: Path,
    config: Mapping[str, Any],
    factors: Mapping[str, tuple[np.ndarray, np.ndarray]],
    **metadata: Any,
) -> Path:
    """Write an adapter as llama.cpp's `convert_lora_to_gguf.py` converts PEFT's.

    Args:
        path: the file.
        config: `config.json` of the model.
        factors: A and B, by module.
        metadata: entries that are text or numbers, dots written as two underscores.
    """
    kind = config["model_type"]
    writer = gguf.GGUFWriter(path, kind)
    entries = {"general__type": "adapter", "adapter__type": "lora", "adapter__lora__alpha": 6.0}
    for name, value in (entries | metadata).items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_string
        add(name.replace("__", "."), value)
    for module, (down, up) in factors.items():
        target = _gguf_name(f"{module}.weight", kind)
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
        part = target.split(".")[-2]
        if kind == "llama" and part in heads:
            up = _pairs(up, config[heads[part]])
        writer.add_tensor(f"{target}.lora_a", down)
        writer.add_tensor(f"{target}.lora_b", up)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_name(name: str, kind: str) -> str:
    stem, _, ending = name.removeprefix("model.").rpartition(".")
    names = _NAMES | (_GEMMA_NAMES if kind.startswith("gemma") else {})
    if stem.startswith("layers."):
        _, layer, inner = stem.split(".", 2)
        return f"blk.{layer}.{names[inner]}.{ending}"
    return f"{names[stem]}.{ending}"


def _pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Put outputs that are rotated together side by side, as llama.cpp's converter does."""
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))
