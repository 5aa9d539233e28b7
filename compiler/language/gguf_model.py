"""Provide the language model that a GGUF file holds.

Keys and names of tensors are those of `docs/gguf.md` of ggml and of llama.cpp's `llama-arch.cpp`.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import ModelFileError, UnsupportedModelError
from edgec.compiler.language import rotary
from edgec.compiler.language.architectures import Decoder, Family, Rows, family
from edgec.compiler.language.check_tensors import check_tensors
from edgec.compiler.language.gguf_file import GgufFile, read_gguf
from edgec.compiler.language.gguf_tokenizer import tokenizer_json
from edgec.compiler.language.grouped_weight import Matrix, halves_from_pairs, rows_of
from edgec.compiler.language.language_model import LanguageModel, ModelSource, chosen_context
from edgec.compiler.language.rotary import Rotary
from edgec.compiler.language.settings import Settings

# Tensors of frequencies, which become tables of cosines.
_ROTARY_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# By their layers, the models that scale scores by the width of a head in the hidden state.
_WIDE_SCALE = {"gemma2": 46, "gemma3": 62}
# Every so many layers one sees everything.
_WINDOW_PERIODS = {"gemma2": 2, "gemma3": 6}


def read_gguf_model(path: Path, context: int | None = None) -> ModelSource:
    """Read a file's description of its model; weights are decoded when they are asked for.

    Args:
        path: the file.
        context: rows of the cache; by default those that the model was made for, at most 4,096.

    Raises:
        ModelFileError: it is no GGUF, or contradicts itself.
        UnsupportedModelError: an architecture, tensor type or tokenizer that is not known.
    """
    file = read_gguf(path)
    general = Settings(path, file.metadata, "general.")
    kind = family(general.text("architecture"), path)
    settings = Settings(path, file.metadata, f"{kind.name}.")
    rows = chosen_context(context, settings.integer("context_length"), path)
    decoder = _describe(file, kind, settings, rows)
    weights = _GgufWeights(file, decoder)
    check_tensors(path, decoder, weights.names, weights.shape)
    tokens = Settings(path, file.metadata, "tokenizer.ggml.")
    tokenizer = tokenizer_json(tokens, decoder.vocabulary)
    language = LanguageModel(
        name=general.text("name", path.stem),
        architecture=kind.name,
        context=rows,
        trained_context=decoder.trained_context,
        vocabulary=decoder.vocabulary,
        digest=_digest(path),
        begin_token=tokenizer.begin,
        add_begin=tokenizer.add_begin,
        end_tokens=tokenizer.ends,
        unknown_token=tokenizer.unknown,
        padding_token=tokenizer.padding,
        chat_template=Settings(path, file.metadata, "tokenizer.").text("chat_template", ""),
    )
    return ModelSource(decoder, weights, language, tokenizer.content)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _describe(file: GgufFile, kind: Family, settings: Settings, context: int) -> Decoder:
    if settings.integer("expert_count", 0, least=0):
        raise UnsupportedModelError(f"{file.path} has experts, which are not supported")
    embeddings = file.tensors.get("token_embd.weight")
    if embeddings is None or len(embeddings.shape) != 2:
        raise ModelFileError(f"{file.path}: the matrix token_embd.weight is missing")
    width, heads = settings.integer("embedding_length"), _one(settings, "attention.head_count")
    size = settings.integer("attention.key_length", max(1, width // heads))
    if settings.integer("attention.value_length", size) != size:
        raise UnsupportedModelError(f"{file.path}: keys and values have different sizes")
    layers = settings.integer("block_count")
    if layers > len(file.tensors):
        raise settings.wrong("block_count", layers, f"at most {len(file.tensors)} layers")
    scale = (width / heads if layers == _WIDE_SCALE.get(kind.name) else size) ** -0.5
    return Decoder(
        family=kind,
        layers=layers,
        width=width,
        hidden=_one(settings, "feed_forward_length"),
        heads=heads,
        key_heads=_one(settings, "attention.head_count_kv", heads),
        head_size=size,
        vocabulary=embeddings.shape[0],
        trained_context=settings.integer("context_length"),
        norm_epsilon=settings.number("attention.layer_norm_rms_epsilon"),
        attention_scale=settings.number("attention.scale", scale),
        attention_cap=settings.cap("attn_logit_softcapping", 50.0 if kind.name == "gemma2" else 0),
        output_cap=settings.cap("final_logit_softcapping", 30.0 if kind.name == "gemma2" else 0),
        windows=_windows(kind, settings, layers),
        rotaries=_rotaries(file, kind, settings, layers, size, context),
    )


def _one(settings: Settings, name: str, default: int | None = None) -> int:
    """Return a number that may be said for each layer, if it is the same for all."""
    value = settings.get(name)
    if isinstance(value, np.ndarray):
        if not value.size or (value != value[0]).any():
            raise UnsupportedModelError(
                f"{settings.path}: {settings.prefix}{name} differs between layers"
            )
        settings = Settings(settings.path, {name: value[0].item()})
    return settings.integer(name, default)


def _windows(kind: Family, settings: Settings, layers: int) -> tuple[int, ...]:
    window = settings.integer("attention.sliding_window", 0, least=0)
    if kind.name == "phi3":
        return (window,) * layers
    period = _WINDOW_PERIODS.get(kind.name)
    if period is None:
        # llama.cpp sees everything there, and so do the models that are published with a window.
        return (0,) * layers
    return tuple(0 if (layer + 1) % period == 0 else window for layer in range(layers))


def _rotaries(
    file: GgufFile, kind: Family, settings: Settings, layers: int, size: int, context: int
) -> tuple[Rotary, ...]:
    turned = settings.integer("rope.dimension_count", size)
    if turned > size or turned % 2:
        raise settings.wrong("rope.dimension_count", turned, f"an even number up to {size}")
    base = settings.number("rope.freq_base", 10000.0)
    everywhere = _stretched(file, settings, rotary.plain(base, turned), base, context)
    if kind.name != "gemma3":
        return (everywhere,) * layers
    local = rotary.plain(settings.number("rope.freq_base_swa", 10000.0), turned)
    windows = _windows(kind, settings, layers)
    return tuple(local if window else everywhere for window in windows)


def _stretched(
    file: GgufFile, settings: Settings, plain: Rotary, base: float, context: int
) -> Rotary:
    """Return the rotation stretched as the file says, by settings or by a tensor of factors."""
    scaling = settings.text("rope.scaling.type", "none")
    factor = settings.number("rope.scaling.factor", 1.0)
    attention = settings.number("rope.scaling.attn_factor", 1.0)
    trained = settings.integer("context_length")
    original = settings.integer("rope.scaling.original_context_length", trained)
    if "rope_freqs.weight" in file.tensors:
        plain = rotary.divided(plain, _factors(file, "rope_freqs.weight", plain))
    if "rope_factors_long.weight" in file.tensors:
        name = "long" if context > original else "short"
        factors = _factors(file, f"rope_factors_{name}.weight", plain)
        return rotary.divided(plain, factors, attention)
    if scaling == "none":
        return plain
    if scaling == "linear":
        return rotary.linear(plain, factor)
    if scaling == "yarn":
        default = rotary.yarn_attention(factor)
        return rotary.yarn(plain, base, factor, original, attention=attention * default)
    raise UnsupportedModelError(
        f"{file.path}: rope.scaling.type {scaling!r} is not known; known are none, linear, yarn "
        "and tensors of factors"
    )


def _factors(file: GgufFile, name: str, plain: Rotary) -> NDArray[np.float32]:
    if name not in file.tensors:
        raise ModelFileError(f"{file.path}: tensor {name} is missing")
    factors = _floats(file, name).reshape(-1)
    if factors.shape != plain.frequencies.shape or not (factors > 0).all():
        raise ModelFileError(
            f"{file.path}: {name} is no list of {len(plain.frequencies)} positive factors"
        )
    return factors


def _floats(file: GgufFile, name: str) -> NDArray[np.float32]:
    matrix = file.tensors[name].matrix()
    return matrix if isinstance(matrix, np.ndarray) else matrix.dequantize()


class _GgufWeights:
    """Gives the tensors of a file in the layout of `WeightSource`."""

    def __init__(self, file: GgufFile, decoder: Decoder) -> None:
        self.file = file
        self.decoder = decoder
        self._parts: dict[str, tuple[str, slice]] = {}
        if decoder.family.fused:
            self._split_fused()
        fused = {source for source, _ in self._parts.values()}
        self.names = frozenset(
            {name for name in file.tensors if name not in (*fused, *_ROTARY_TENSORS)}
            | self._parts.keys()
        )

    def _split_fused(self) -> None:
        """Find queries, keys and values, and gate and up, in the matrices that hold both."""
        decoder = self.decoder
        queries, keys = decoder.heads * decoder.head_size, decoder.key_heads * decoder.head_size
        parts = {
            "attn_qkv": (("attn_q", queries), ("attn_k", keys), ("attn_v", keys)),
            "ffn_up": (("ffn_gate", decoder.hidden), ("ffn_up", decoder.hidden)),
        }
        for layer in range(decoder.layers):
            for source, pieces in parts.items():
                self._split(f"blk.{layer}", source, pieces)

    def _split(self, block: str, source: str, pieces: Sequence[tuple[str, int]]) -> None:
        for ending in ("weight", "bias"):
            whole = self.file.tensors.get(f"{block}.{source}.{ending}")
            total = sum(count for _, count in pieces)
            # Whatever has other extents is refused with its own name.
            if whole is None or self._rows(whole.shape, ending) != total:
                continue
            start = 0
            for name, count in pieces:
                self._parts[f"{block}.{name}.{ending}"] = (
                    f"{block}.{source}.{ending}",
                    slice(start, start + count),
                )
                start += count

    @staticmethod
    def _rows(shape: tuple[int, ...], ending: str) -> int:
        return shape[0] if len(shape) == (2 if ending == "weight" else 1) else 0

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the extents of a tensor."""
        source, rows = self._parts.get(name, (name, None))
        shape = self.file.tensors[source].shape
        return shape if rows is None else (rows.stop - rows.start, *shape[1:])

    def origin(self, name: str) -> tuple[str, Rows]:
        """Return the tensor of the file that a tensor is made of, and which of its rows.

        No family has both parts of tensors and another order.
        """
        order = self._order(name)
        return self._parts.get(name, (name, slice(None))) if order is None else (name, order)

    def vector(self, name: str) -> NDArray[np.float32]:
        """Return a tensor of one dimension."""
        source, rows = self._parts.get(name, (name, slice(None)))
        values: NDArray[np.float32] = _floats(self.file, source).reshape(-1)[rows]
        order = self._order(name)
        return values if order is None else values[order]

    def matrix(self, name: str) -> Matrix:
        """Return a tensor of two dimensions, [outputs, inputs]."""
        source, rows = self._parts.get(name, (name, slice(None)))
        matrix = rows_of(self.file.tensors[source].matrix(), rows)
        order = self._order(name)
        return matrix if order is None else rows_of(matrix, order)

    def _order(self, name: str) -> NDArray[np.int64] | None:
        """Return the order of a projection's outputs, if neighbours are rotated together."""
        part: Any = name.split(".")[2] if name.startswith("blk.") else ""
        heads = {"attn_q": self.decoder.heads, "attn_k": self.decoder.key_heads}.get(part)
        if heads is None or not self.decoder.family.rotates_pairs:
            return None
        turned = 2 * len(self.decoder.rotaries[0].frequencies)
        return halves_from_pairs(heads, self.decoder.head_size, turned)
