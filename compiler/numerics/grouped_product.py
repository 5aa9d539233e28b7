"""Provide the arithmetic of products of int8 activations by group-wise weights, in NumPy.

C [M, N] = A [M, K] * B, where column n of B stands for (code - zero[n, g]) * scale[n, g] in its
group g of consecutive rows, or for code * scale[n, g] + minimum[n, g]. Each row of A is quantized
for each group by itself:

    step = largest |a| / 127,   code_a = round(a * (127 / largest |a|)), ties to even

and every product of a group is one sum of whole numbers:

    C += step * scale * (sum(code_a * code) - zero * sum(code_a))

    C += step * sum(code_a) * minimum               (where there are minima, and no zero points)

The parenthesis is exact in float32 where zero points are whole: a group of 256 values of 8 bits
stays below 2**24. Then the factors are multiplied, and the product is added with one rounding.
ONNX Runtime's MatMulNBits of accuracy level 4 quantizes the same way (`QuantizeARow_CompInt8`).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The largest code of an activation.
LARGEST = 127
# Rows whose largest value in a group is below this count as zeros there: 127 / it is finite.
SMALLEST = np.float32(2.0**-100)
# Values of a group: its sums stay exact in float32.
LARGEST_GROUP = 256


@dataclass(frozen=True)
class QuantizedRows:
    """Quantized rows hold the codes of activations, group by group.

    Attributes:
        codes: int8 [rows, groups, group]; 0 behind the end of a row.
        steps: float32 [rows, groups].
        sums: sums of codes, int32 [rows, groups].
    """

    codes: NDArray[np.int8]
    steps: NDArray[np.float32]
    sums: NDArray[np.int32]


def group_is_supported(group: int) -> bool:
    """Return whether kernels have groups of so many values.

    >>> [size for size in (8, 16, 32, 48, 64, 256, 512) if group_is_supported(size)]
    [16, 32, 64, 256]
    """
    return group == 16 or (group % 32 == 0 and 0 < group <= LARGEST_GROUP)


def quantize_rows(rows: NDArray[np.float32], group: int) -> QuantizedRows:
    """Return rows [M, K] float32 as codes of 8 bits with a step for each group.

    >>> found = quantize_rows(np.array([[1, -2, 4, 0.5]], np.float32), 2)
    >>> found.codes.tolist(), found.sums.tolist()
    ([[[64, -127], [127, 16]]], [[-63, 143]])
    """
    count = -(-rows.shape[1] // group)
    padded = np.pad(rows, ((0, 0), (0, count * group - rows.shape[1])))
    parts = padded.reshape(len(rows), count, group)
    largest = np.abs(parts).max(axis=2)
    safe = np.where(largest >= SMALLEST, largest, np.float32(1))
    inverse = np.where(largest >= SMALLEST, np.float32(LARGEST) / safe, np.float32(0))
    codes = np.rint(parts * inverse[..., np.newaxis].astype(np.float32)).astype(np.int8)
    steps = (largest * np.float32(1 / LARGEST)).astype(np.float32)
    return QuantizedRows(codes, steps, codes.sum(axis=2, dtype=np.int32))


def grouped_product(
    rows: QuantizedRows,
    codes: NDArray[np.uint8],
    scales: NDArray[Any],
    zeros: NDArray[Any],
    minima: NDArray[Any] | None = None,
) -> NDArray[np.float32]:
    """Return C float32 [M, N].

    Args:
        rows: the activations.
        codes: uint8 [N, groups, group]; what is behind the end of a column counts for nothing.
        scales: floats [N, groups].
        zeros: numbers [N, groups].
        minima: floats [N, groups], if there are any.
    """
    total = np.zeros((len(rows.codes), len(codes)), np.float32)
    for group in range(codes.shape[1]):
        left = rows.codes[:, group].astype(np.int64)
        sums = (left @ codes[:, group].T.astype(np.int64)).astype(np.float64)
        shift = np.outer(rows.sums[:, group], zeros[:, group].astype(np.float64))
        exact = (sums - shift).astype(np.float32)
        factors = np.outer(rows.steps[:, group], scales[:, group].astype(np.float32))
        # In float64 a product of two float32 is exact: the sum is that of a fused multiply-add.
        total = (exact.astype(np.float64) * factors.astype(np.float32) + total).astype(np.float32)
        if minima is not None:
            sums = (rows.steps[:, group] * rows.sums[:, group].astype(np.float32)).astype(
                np.float64
            )
            total = (np.outer(sums, minima[:, group].astype(np.float64)) + total).astype(np.float32)
    return total
