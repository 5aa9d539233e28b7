"""Describe a matrix whose values are small codes with a scale, and perhaps a minimum, per group."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class GroupedWeight:
    """A grouped weight holds codes; each group of neighbours in a row shares a scale.

    A value is `scale * (code - 2 ** (bits - 1))`, or `scale * code + minimum` with minima.

    Attributes:
        codes: [outputs, inputs] uint8, below `2 ** bits`.
        bits: 4 or 8.
        group: values that share a scale; a power of two from 16 on, which divides the inputs.
        scales: [outputs, inputs / group] float32.
        minima: likewise; None where the codes lie around the middle of their range.
    """

    codes: NDArray[np.uint8]
    bits: int
    group: int
    scales: NDArray[np.float32]
    minima: NDArray[np.float32] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Return outputs and inputs."""
        outputs, inputs = self.codes.shape
        return outputs, inputs

    def rows(self, which: "slice | NDArray[np.int64]") -> "GroupedWeight":
        """Return some of the outputs, in the order asked for."""
        minima = None if self.minima is None else self.minima[which]
        return replace(self, codes=self.codes[which], scales=self.scales[which], minima=minima)

    def dequantize(self) -> NDArray[np.float32]:
        """Return the values, [outputs, inputs] float32."""
        outputs, inputs = self.shape
        grouped = self.codes.reshape(outputs, inputs // self.group, self.group)
        scales = self.scales[..., np.newaxis]
        # Codes from random bytes may have scales that are no numbers.
        with np.errstate(all="ignore"):
            if self.minima is None:
                middle = np.float32(1 << self.bits - 1)
                values = scales * (grouped.astype(np.float32) - middle)
            else:
                values = scales * grouped.astype(np.float32) + self.minima[..., np.newaxis]
        return values.reshape(outputs, inputs)

    def packed(self) -> NDArray[np.uint8]:
        """Return the codes in whole bytes, low bits first: [outputs, inputs * bits / 8]."""
        if self.bits == 8:
            return self.codes
        return self.codes[:, 0::2] | self.codes[:, 1::2] << np.uint8(4)

    def with_zero_points(self) -> tuple["GroupedWeight", NDArray[np.float32] | None]:
        """Return the same values as `scale * (code - zero)`, and the zeros [outputs, groups].

        A group whose scale is zero is constant; its minimum becomes the scale, and the zero -1.
        None stands for the middle of the codes.
        """
        if self.minima is None:
            return self, None
        constant = self.scales == 0
        scales = np.where(constant, self.minima, self.scales)
        with np.errstate(all="ignore"):
            zeros = np.where(constant, np.float32(-1), -self.minima / self.scales)
        codes = self.codes
        if constant.any():
            codes = np.where(np.repeat(constant, self.group, axis=1), np.uint8(0), codes)
        return replace(self, codes=codes, scales=scales), zeros.astype(np.float32)

    def around_middle(self) -> tuple["GroupedWeight", NDArray[np.float32] | None]:
        """Return codes around the middle, and what is added to `scale * (code - middle)`.

        Codes that use fewer bits lie as near to it as they can. The second is [outputs, groups],
        None if there are no minima.
        """
        if self.minima is None:
            return self, None
        used = int(self.codes.max(initial=0)).bit_length()
        half = 1 << max(used, 1) - 1
        codes = self.codes + np.uint8((1 << self.bits - 1) - half)
        return replace(self, codes=codes, minima=None), self.minima + self.scales * np.float32(half)


Matrix = GroupedWeight | NDArray[np.float32]
"""A matrix of a model, [outputs, inputs]."""


def rows_of(matrix: Matrix, which: "slice | NDArray[np.int64]") -> Matrix:
    """Return some of the outputs of a matrix."""
    return matrix.rows(which) if isinstance(matrix, GroupedWeight) else matrix[which]


def halves_from_pairs(heads: int, size: int, turned: int) -> NDArray[np.int64]:
    """Return the order of a query or key projection's outputs that turns pairs into halves.

    Llama's GGUF files store a head's outputs so that rotation turns the pairs (0, 1), (2, 3), ...;
    the graph's operator turns (0, n/2), (1, n/2 + 1), ... of the n outputs that are turned.

    Args:
        heads: of the projection.
        size: of a head.
        turned: its first outputs, which are rotated.

    >>> halves_from_pairs(heads=1, size=8, turned=6).tolist()
    [0, 2, 4, 1, 3, 5, 6, 7]
    """
    parts = (np.arange(0, turned, 2), np.arange(1, turned, 2), np.arange(turned, size))
    order: NDArray[np.int64] = np.concatenate(parts)
    return (np.arange(heads)[:, np.newaxis] * size + order).reshape(-1)
