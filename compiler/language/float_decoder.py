"""Compute a decoder in NumPy, on whole sequences, with products that the caller provides.

What reads calibration text, and what measures how far a quantized model is from the float one,
computes layer by layer: no graph, and no cache.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.language.architectures import Decoder, WeightSource
from edgec.compiler.language.grouped_weight import GroupedWeight
from edgec.compiler.language.rotary import Rotary

Floats = NDArray[np.float32]
Products = Callable[[Sequence[str], Floats], list[Floats]]
"""Given names of matrices that read the same [tokens, inputs], what each makes of it."""


def float_products(weights: WeightSource) -> Products:
    """Return products by the weights as they are."""

    def multiply(names: Sequence[str], data: Floats) -> list[Floats]:
        return [data @ float_matrix(weights, name).T for name in names]

    return multiply


def float_matrix(weights: WeightSource, name: str) -> Floats:
    """Return a matrix as floats, [outputs, inputs]."""
    matrix = weights.matrix(name)
    return matrix.dequantize() if isinstance(matrix, GroupedWeight) else matrix


class FloatDecoder:
    """A float decoder computes layers of hidden states.

    Args:
        decoder: what is computed.
        weights: gives norms and biases.
        products: multiplies by matrices.
    """

    def __init__(self, decoder: Decoder, weights: WeightSource, products: Products) -> None:
        self.decoder, self.weights, self.products = decoder, weights, products

    def embed(self, table: Floats, tokens: NDArray[np.int64]) -> Floats:
        """Return hidden states [sequences, length, width] of tokens [sequences, length]."""
        hidden: Floats = table[tokens].astype(np.float32)
        if self.decoder.family.scaled_embeddings:
            hidden *= np.float32(self.decoder.width**0.5)
        return hidden

    def layer(self, hidden: Floats, number: int) -> Floats:
        """Return hidden states behind a layer."""
        source, posts = f"blk.{number}", self.decoder.family.post_norms
        data = self._norm(hidden, f"{source}.attn_norm")
        parts = [f"{source}.attn_{part}" for part in "qkv"]
        queries, keys, values = self._linear(parts, data)
        mixed = self._attention(queries, keys, values, number)
        (result,) = self._linear([f"{source}.attn_output"], mixed)
        if posts:
            result = self._norm(result, f"{source}.post_attention_norm")
        hidden = hidden + result
        data = self._norm(hidden, f"{source}.ffn_norm")
        gate, up = self._linear([f"{source}.ffn_{part}" for part in ("gate", "up")], data)
        (result,) = self._linear([f"{source}.ffn_down"], self._activated(gate) * up)
        if posts:
            result = self._norm(result, f"{source}.post_ffw_norm")
        return hidden + result

    def logits(self, hidden: Floats, head: Floats) -> Floats:
        """Return logits [tokens, vocabulary] of hidden states [tokens, width]."""
        result: Floats = self._norm(hidden, "output_norm") @ head.T
        if "output.bias" in self.weights.names:
            result += self.weights.vector("output.bias")
        return _capped(result, self.decoder.output_cap)

    def _linear(self, names: Sequence[str], data: Floats) -> list[Floats]:
        rows = data.reshape(-1, data.shape[-1])
        found = self.products([f"{name}.weight" for name in names], rows)
        for name, result in zip(names, found, strict=True):
            if f"{name}.bias" in self.weights.names:
                result += self.weights.vector(f"{name}.bias")
        return [result.reshape(*data.shape[:-1], -1) for result in found]

    def _norm(self, data: Floats, name: str) -> Floats:
        power = np.square(data).mean(axis=-1, keepdims=True)
        root = np.sqrt(power + np.float32(self.decoder.norm_epsilon))
        result: Floats = data / root * self.weights.vector(f"{name}.weight")
        return result

    def _activated(self, gate: Floats) -> Floats:
        if self.decoder.family.activation == "silu":
            with np.errstate(over="ignore"):
                result: Floats = gate / (1 + np.exp(-gate))
            return result
        inner = np.float32((2 / np.pi) ** 0.5) * (gate + np.float32(0.044715) * gate**3)
        tanh: Floats = np.tanh(inner)
        return np.float32(0.5) * gate * (1 + tanh)

    def _attention(self, queries: Floats, keys: Floats, values: Floats, layer: int) -> Floats:
        """Return what heads make of the tokens up to each one, heads side by side."""
        decoder, length = self.decoder, queries.shape[1]
        tables = decoder.rotaries[layer].tables(length)
        queries, keys = (
            self._heads(data, f"blk.{layer}.attn_{part}_norm", decoder.rotaries[layer], tables)
            for data, part in ((queries, "q"), (keys, "k"))
        )
        values = _split(values, decoder.head_size)
        back = np.arange(length)[:, np.newaxis] - np.arange(length)
        visible = back >= 0
        if decoder.windows[layer]:
            visible &= back < decoder.windows[layer]
        shared = decoder.heads // decoder.key_heads
        mixed = np.empty_like(queries)
        for sequence, head in np.ndindex(*queries.shape[:2]):
            key, value = keys[sequence, head // shared], values[sequence, head // shared]
            scores = queries[sequence, head] @ key.T * np.float32(decoder.attention_scale)
            scores = _capped(scores, decoder.attention_cap)
            scores = np.where(visible, scores, np.float32(-np.inf))
            shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
            mixed[sequence, head] = shares / shares.sum(axis=-1, keepdims=True) @ value
        return mixed.transpose(0, 2, 1, 3).reshape(*mixed.shape[:1], length, -1)

    def _heads(
        self, data: Floats, norm: str, rotary: Rotary, tables: tuple[Floats, Floats]
    ) -> Floats:
        """Return rotated heads [sequences, heads, length, head size]."""
        heads = _split(data, self.decoder.head_size)
        if self.decoder.family.query_norm:
            heads = self._norm(heads, norm)
        cosines, sines = tables
        pairs = len(rotary.frequencies)
        first, second, rest = np.split(heads, [pairs, 2 * pairs], axis=-1)
        turned = [first * cosines - second * sines, first * sines + second * cosines]
        return np.concatenate([*turned, rest], axis=-1)


def _split(data: Floats, size: int) -> Floats:
    return data.reshape(*data.shape[:2], -1, size).transpose(0, 2, 1, 3)


def _capped(data: Floats, cap: float) -> Floats:
    return np.float32(cap) * np.tanh(data / np.float32(cap)) if cap else data
