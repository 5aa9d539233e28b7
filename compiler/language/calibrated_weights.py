"""Quantize the weights of a decoder to 4 bits, layer by layer, as text goes through it.

Matrices of layers take 4 bits, with a scale and a minimum for each group; what each of them reads
decides how it is rounded, and the next one reads what the rounded ones give (GPTQ, Frantar et al.
2022). The table of tokens and the output take 8 bits. One layer at a time is in memory.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import UnsupportedModelError, UsageError
from edgec.compiler.language.architectures import Decoder, Rows, WeightSource
from edgec.compiler.language.float_decoder import FloatDecoder, Floats, float_matrix
from edgec.compiler.language.grouped_weight import GroupedWeight, Matrix, rows_of
from edgec.compiler.numerics.group_rounding import round_groups

BITS, OUTSIDE_BITS = 4, 8
# Values that share a scale in what takes 8 bits.
OUTSIDE_GROUP = 32
# Tokens of a piece of text, and of all that is read.
PIECE, MOST_TOKENS = 512, 4096


class CalibratedWeights:
    """Calibrated weights are a decoder's, quantized when they are asked for.

    Matrices of layers are asked for layer by layer.

    Args:
        decoder: what is computed.
        weights: the floats.
        tokens: text that they are rounded for, [pieces, length]; without any, all that a matrix
            may read is alike.
        group: values of a matrix of layers that share a scale.
    """

    def __init__(
        self,
        decoder: Decoder,
        weights: WeightSource,
        tokens: NDArray[np.int64] | None,
        group: int,
    ) -> None:
        self.weights, self.group = weights, group
        self._decoder = FloatDecoder(decoder, weights, self._products)
        self._tokens, self._hidden, self._layer = tokens, np.zeros(0, np.float32), 0
        self._made: dict[str, GroupedWeight] = {}

    @property
    def names(self) -> frozenset[str]:
        """Return the tensors that there are."""
        return self.weights.names

    def origin(self, name: str) -> tuple[str, Rows]:
        """Return the tensor of the file that a tensor is made of, and which of its rows."""
        return self.weights.origin(name)

    def vector(self, name: str) -> NDArray[np.float32]:
        """Return a tensor of one dimension."""
        return self.weights.vector(name)

    def matrix(self, name: str) -> Matrix:
        """Return a tensor of two dimensions, [outputs, inputs]."""
        if not name.startswith("blk."):
            return _around_middle(float_matrix(self.weights, name))
        if self._tokens is None:
            return self._rounded(name, None)
        if name not in self._made:
            self._go_on(self._tokens)
        return self._made.pop(name)

    def _go_on(self, tokens: NDArray[np.int64]) -> None:
        """Quantize the next layer."""
        if not self._layer:
            table = _around_middle(float_matrix(self.weights, "token_embd.weight"))
            used, places = np.unique(tokens, return_inverse=True)
            rows = rows_of(table, used)
            floats = rows.dequantize() if isinstance(rows, GroupedWeight) else rows
            self._hidden = self._decoder.embed(floats, places.reshape(tokens.shape))
        self._hidden = self._decoder.layer(self._hidden, self._layer)
        self._layer += 1

    def _products(self, names: Sequence[str], data: Floats) -> list[Floats]:
        second = (data.T @ data).astype(np.float64) / len(data)
        found = []
        for name in names:
            self._made[name] = self._rounded(name, second)
            found.append(data @ self._made[name].dequantize().T)
        return found

    def _rounded(self, name: str, second: NDArray[np.float64] | None) -> GroupedWeight:
        matrix = self.weights.matrix(name)
        if isinstance(matrix, GroupedWeight):
            if matrix.bits <= BITS:
                raise UsageError("its weights have 4 bits already: leave out --quantize")
            matrix = matrix.dequantize()
        if matrix.shape[1] % self.group:
            raise UnsupportedModelError(
                f"{name} has rows of {matrix.shape[1]} values, which are no groups of {self.group}"
            )
        made = round_groups(matrix, second, self.group, BITS)
        return GroupedWeight(
            codes=made.codes, bits=BITS, group=self.group, scales=made.scales, minima=made.minima
        )


def _around_middle(matrix: Floats) -> Matrix:
    """Return a matrix in 8 bits around their middle, or as it is if its rows are no groups."""
    outputs, inputs = matrix.shape
    if inputs % OUTSIDE_GROUP:
        return matrix
    blocks = matrix.reshape(outputs, -1, OUTSIDE_GROUP)
    largest = (1 << OUTSIDE_BITS - 1) - 1
    scales = (np.abs(blocks).max(axis=2) / np.float32(largest)).astype(np.float16)
    wide = scales.astype(np.float32)[..., np.newaxis]
    with np.errstate(all="ignore"):
        codes = np.where(wide == 0, np.float32(0), np.rint(blocks / wide))
    codes = np.clip(codes, -largest, largest).astype(np.int16) + np.int16(largest + 1)
    return GroupedWeight(
        codes=codes.astype(np.uint8).reshape(outputs, inputs),
        bits=OUTSIDE_BITS,
        group=OUTSIDE_GROUP,
        scales=scales.astype(np.float32),
    )
