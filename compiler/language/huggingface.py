"""Provide the language model that a folder of Hugging Face's holds.

`config.json` says what is computed, `model.safetensors` (or its parts, which
`model.safetensors.index.json` lists) has the weights, `tokenizer.json` the tokenizer, and
`tokenizer_config.json`, `generation_config.json` and `chat_template.jinja` special tokens and the
form of a chat. Settings are those of the configurations of `transformers`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import ModelFileError, UnsupportedModelError
from edgec.compiler.language import rotary
from edgec.compiler.language.architectures import Decoder, Family, Rows, family
from edgec.compiler.language.check_tensors import check_tensors
from edgec.compiler.language.folder_text import describe_text, read_json
from edgec.compiler.language.grouped_weight import Matrix
from edgec.compiler.language.language_model import ModelSource, chosen_context
from edgec.compiler.language.rotary import Rotary
from edgec.compiler.language.safetensors_file import SafeTensor, Tensors, read_safetensors
from edgec.compiler.language.settings import Settings

CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"

# What `config.json` calls a model where it is not the name of the family.
_MODEL_TYPES = {"gemma3_text": "gemma3"}
_ACTIVATIONS = {"silu": ("silu",), "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new")}

_OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_INSIDE = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_WITH_POST_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder with a model's settings."""
    return (path / CONFIG).is_file()


def read_huggingface(folder: Path, context: int | None = None) -> ModelSource:
    """Read a folder's description of its model; weights stay in their files until asked for.

    Args:
        folder: with `config.json`.
        context: rows of the cache; by default those that the model was made for, at most 4,096.

    Raises:
        ModelFileError: a file is missing, is not what its name says, or contradicts another.
        UnsupportedModelError: an architecture or a setting that is not known.
    """
    config = Settings(folder / CONFIG, read_json(folder / CONFIG))
    name = config.text("model_type")
    kind = family(_MODEL_TYPES.get(name, name), config.path)
    _refuse_others(config)
    rows = chosen_context(context, config.integer("max_position_embeddings", 2048), folder)
    decoder = _describe(config, kind, rows)
    tensors, files = _tensors(folder)
    weights = _FolderWeights(tensors, decoder, config.flag("tie_word_embeddings", kind.tied))
    check_tensors(folder, decoder, weights.names, weights.shape)
    tokenizer, language = describe_text(
        folder,
        config,
        [folder / CONFIG, *files],
        architecture=kind.name,
        context=rows,
        trained_context=decoder.trained_context,
        vocabulary=decoder.vocabulary,
    )
    return ModelSource(decoder, weights, language, tokenizer)


def _refuse_others(config: Settings) -> None:
    classes = config.get("architectures") or []
    if not isinstance(classes, list) or any(not str(n).endswith("ForCausalLM") for n in classes):
        raise UnsupportedModelError(
            f"{config.path}: {classes} is no decoder of text (…ForCausalLM)"
        )
    method = config.section("quantization_config").get("quant_method")
    if config.get("quantization_config") is not None:
        raise UnsupportedModelError(
            f"{config.path}: weights quantized by {method or 'an unknown method'} are not read; "
            "take the float model, or a GGUF file"
        )
    if config.get("use_bidirectional_attention"):
        raise UnsupportedModelError(f"{config.path}: bidirectional attention is not supported")


# What is computed


def _describe(config: Settings, kind: Family, context: int) -> Decoder:
    activation = config.get("hidden_activation") or config.text("hidden_act", "")
    activation = activation or _ACTIVATIONS[kind.activation][0]
    # Gemma's first configurations said gelu where their models use its approximation.
    allowed = (*_ACTIVATIONS[kind.activation], *(("gelu",) if kind.post_norms else ()))
    if activation not in allowed:
        raise UnsupportedModelError(
            f"{config.path}: activation {activation!r}; {kind.title} has {allowed[0]}"
        )
    width, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    size = config.integer("head_dim", kind.head_size or max(1, width // heads))
    layers = config.integer("num_hidden_layers")
    if layers > 100_000:
        raise config.wrong("num_hidden_layers", layers, "fewer layers")
    scale = size**-0.5
    if kind.post_norms:
        scale = config.number("query_pre_attn_scalar", 256) ** -0.5
    is_gemma2 = kind.name == "gemma2"
    windows = _windows(config, kind, layers)
    return Decoder(
        family=kind,
        layers=layers,
        width=width,
        hidden=config.integer("intermediate_size"),
        heads=heads,
        key_heads=config.integer("num_key_value_heads", heads),
        head_size=size,
        vocabulary=config.integer("vocab_size"),
        trained_context=config.integer("max_position_embeddings", 2048),
        norm_epsilon=config.number("rms_norm_eps", 1e-6),
        attention_scale=scale,
        attention_cap=_cap(config, "attn_logit_softcapping", 50.0 if is_gemma2 else 0.0),
        output_cap=_cap(config, "final_logit_softcapping", 30.0 if is_gemma2 else 0.0),
        windows=windows,
        rotaries=_rotaries(config, kind, windows, size, context),
    )


def _cap(config: Settings, name: str, default: float) -> float:
    """Return a soft cap; here `null` means none, and only a missing setting the default."""
    return config.cap(name) if name in config.values else default


def _windows(config: Settings, kind: Family, layers: int) -> tuple[int, ...]:
    if kind.name in ("mistral", "phi3", "gemma2", "gemma3"):
        default = {"mistral": 4096, "phi3": 0}.get(kind.name, 4096)
        default = 0 if "sliding_window" in config.values else default
    elif kind.name in ("qwen2", "qwen3"):
        default = 4096 if config.flag("use_sliding_window", False) else 0
        if not default:
            return (0,) * layers
    else:
        return (0,) * layers
    window = config.integer("sliding_window", default, least=0)
    types = config.get("layer_types")
    if types is None:
        types = [_layer_type(config, kind, layer) for layer in range(layers)]
    known = {"sliding_attention": window, "full_attention": 0}
    if not isinstance(types, list) or len(types) != layers or not set(types) <= known.keys():
        raise config.wrong("layer_types", types, f"{layers} of {', '.join(known)}")
    return tuple(known[item] for item in types)


def _layer_type(config: Settings, kind: Family, layer: int) -> str:
    if kind.name in ("qwen2", "qwen3"):
        full = layer < config.integer("max_window_layers", 28, least=0)
    elif kind.post_norms:
        period = 2 if kind.name == "gemma2" else config.integer("sliding_window_pattern", 6)
        full = (layer + 1) % period == 0
    else:
        full = False
    return "full_attention" if full else "sliding_attention"


def _rotaries(
    config: Settings, kind: Family, windows: Sequence[int], size: int, context: int
) -> tuple[Rotary, ...]:
    scaling = config.section("rope_parameters")
    if not scaling.values:
        scaling = config.section("rope_scaling")
    if kind.name != "gemma3":
        base = scaling.number("rope_theta", config.number("rope_theta", 10000.0))
        return (_rotary(config, scaling, base, size, context),) * len(windows)
    local = scaling.section("sliding_attention")
    everywhere = scaling.section("full_attention")
    if not everywhere.values:
        everywhere = config.section("rope_scaling")
    base = everywhere.number("rope_theta", config.number("rope_theta", 1e6))
    wide = _rotary(config, everywhere, base, size, context)
    base = local.number("rope_theta", config.number("rope_local_base_freq", 10000.0))
    narrow = _rotary(config, local, base, size, context)
    types = config.get("layer_types")
    is_local = [bool(window) for window in windows]
    if isinstance(types, list):
        is_local = [item == "sliding_attention" for item in types]
    return tuple(narrow if item else wide for item in is_local)


def _rotary(config: Settings, scaling: Settings, base: float, size: int, context: int) -> Rotary:
    """Return the rotation stretched as the settings say."""
    share = scaling.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    turned = int(size * share)
    if not 2 <= turned <= size or turned % 2:
        raise config.wrong("partial_rotary_factor", share, f"an even part of {size}")
    plain = rotary.plain(base, turned)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    trained = config.integer("max_position_embeddings", 2048)
    given = scaling.get("original_max_position_embeddings")
    before = scaling if given else config
    original = before.integer("original_max_position_embeddings", trained)
    attention = scaling.number("attention_factor") if scaling.get("attention_factor") else None
    if kind == "default":
        return plain
    if kind == "linear":
        return rotary.linear(plain, scaling.number("factor"))
    if kind == "llama3":
        low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
        if not low < high:
            raise scaling.wrong("high_freq_factor", high, f"more than {low}")
        return rotary.llama3(plain, scaling.number("factor"), low, high, original)
    if kind == "yarn":
        factor = scaling.number("factor", trained / original)
        if scaling.get("mscale") or scaling.get("mscale_all_dim"):
            raise UnsupportedModelError(f"{config.path}: mscale of yarn is not supported")
        fast, slow = scaling.number("beta_fast", 32.0), scaling.number("beta_slow", 1.0)
        return rotary.yarn(plain, base, factor, original, fast, slow, attention)
    if kind in ("longrope", "su"):
        name = "long_factor" if context > original else "short_factor"
        factors = np.array(scaling.numbers(name, turned // 2), np.float32)
        if attention is None:
            factor = scaling.number("factor", trained / original)
            attention = rotary.longrope_attention(factor, original)
        return rotary.divided(plain, factors, attention)
    raise UnsupportedModelError(
        f"{config.path}: rope_type {kind!r} is not known; known are default, linear, llama3, "
        "yarn, longrope"
    )


# Weights


def _tensors(folder: Path) -> tuple[Tensors, list[Path]]:
    """Return all tensors, and the files that they are in."""
    if not (folder / _INDEX).is_file():
        return read_safetensors(folder / _WEIGHTS), [folder / _WEIGHTS]
    names = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise ModelFileError(f"{folder / _INDEX} has no weight_map of files")
    files = sorted(set(names.values()))
    tensors: dict[str, SafeTensor] = {}
    for file in files:
        if Path(file).name != file:
            raise ModelFileError(f"{folder / _INDEX} names {file}, which is not in the folder")
        found = read_safetensors(folder / file)
        twice = sorted(found.keys() & tensors.keys())
        if twice:
            raise ModelFileError(f"{folder / file} has {twice[0]} once more")
        tensors.update(found)
    lost = sorted(names.keys() - tensors.keys())
    if lost:
        raise ModelFileError(f"{folder / _INDEX} names {lost[0]}, which no file has")
    return tensors, [folder / file for file in files]


class _FolderWeights:
    """Gives the tensors of a folder in the layout of `WeightSource`."""

    def __init__(self, tensors: Tensors, decoder: Decoder, tied: bool) -> None:
        self.tensors = tensors
        self.decoder = decoder
        self._sources: dict[str, tuple[str, slice]] = {}
        inside = _INSIDE | (_WITH_POST_NORMS if decoder.family.post_norms else {})
        for name in tensors:
            if name.endswith("rotary_emb.inv_freq") or (tied and name.startswith("lm_head.")):
                continue
            self._add(name, inside)
        self.names = frozenset(self._sources)

    def _add(self, name: str, inside: Mapping[str, str]) -> None:
        stem, _, ending = name.rpartition(".")
        if stem in _OUTSIDE:
            self._sources[f"{_OUTSIDE[stem]}.{ending}"] = (name, slice(None))
            return
        parts = stem.split(".", 3)
        if parts[:2] == ["model", "layers"] and len(parts) == 4:
            block = f"blk.{parts[2]}"
            for piece, rows in self._pieces(parts[3], inside):
                self._sources[f"{block}.{piece}.{ending}"] = (name, rows)
        else:
            # Unknown: refused by its own name.
            self._sources[name] = (name, slice(None))

    def _pieces(self, stem: str, inside: Mapping[str, str]) -> list[tuple[str, slice]]:
        """Return the parts of a tensor: queries, keys and values may be one, gate and up, too."""
        decoder = self.decoder
        queries, keys = decoder.heads * decoder.head_size, decoder.key_heads * decoder.head_size
        if decoder.family.fused and stem == "self_attn.qkv_proj":
            return [
                ("attn_q", slice(0, queries)),
                ("attn_k", slice(queries, queries + keys)),
                ("attn_v", slice(queries + keys, None)),
            ]
        if decoder.family.fused and stem == "mlp.gate_up_proj":
            return [
                ("ffn_gate", slice(0, decoder.hidden)),
                ("ffn_up", slice(decoder.hidden, None)),
            ]
        return [(inside.get(stem, stem), slice(None))]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the extents of a tensor."""
        source, rows = self._sources[name]
        shape = self.tensors[source].shape
        return shape if rows == slice(None) else (len(range(*rows.indices(shape[0]))), *shape[1:])

    def origin(self, name: str) -> tuple[str, Rows]:
        """Return the tensor of the file that a tensor is made of, and which of its rows."""
        return self._sources[name]

    def vector(self, name: str) -> NDArray[np.float32]:
        """Return a tensor of one dimension; Gemma's norms multiply by one more than it."""
        values = self._floats(name)
        is_norm = name.split(".")[-2].endswith("norm")
        return values + np.float32(1) if self.decoder.family.post_norms and is_norm else values

    def matrix(self, name: str) -> Matrix:
        """Return a tensor of two dimensions, [outputs, inputs]."""
        return self._floats(name)

    def _floats(self, name: str) -> NDArray[np.float32]:
        source, rows = self._sources[name]
        tensor = self.tensors[source]
        if not tensor.is_float:
            raise UnsupportedModelError(f"tensor {source} holds {tensor.dtype}, no floats")
        return SafeTensor(tensor.dtype, tensor.shape, tensor.data[rows]).floats()
