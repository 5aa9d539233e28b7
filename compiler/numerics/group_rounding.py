"""Round matrices to a few bits with a scale and a minimum for each group.

Scales and minima of a group are those of the least squares, of some ranges that codes may cover,
weighted by how much its columns are used (as llama.cpp's `make_qkx2_quants`). Codes are then
rounded column by column (GPTQ, see `second_order`), the most used ones first: scales and minima
are fixed before, so that a group's columns need not follow each other.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.numerics.second_order import inverse_factor, round_columns

Floats = NDArray[np.float32]
Float64s = NDArray[np.float64]

# Codes that a group's range is laid over, less and more than there are.
_RANGES = np.linspace(-1.0, 3.0, 9)
# Rows that are fitted together: what is made of them on the way fits a cache.
_ROWS = 32
# How often scales and codes follow each other.
_ROUNDS = 2


@dataclass(frozen=True)
class RoundedGroups:
    """Rounded groups stand for scale * code + minimum.

    Attributes:
        codes: uint8 [rows, columns].
        scales: float32 [rows, groups], exact in float16.
        minima: likewise.
    """

    codes: NDArray[np.uint8]
    scales: Floats
    minima: Floats


def round_groups(rows: Floats, second: Float64s | None, group: int, bits: int) -> RoundedGroups:
    """Return rows [rows, columns] in codes, with a small expected error of what they multiply.

    Args:
        rows: the weights.
        second: E[x x^T] of what they multiply, [columns, columns]; None: all are used alike.
        group: consecutive columns that share a scale.
        bits: of a code.
    """
    most, (count, columns) = (1 << bits) - 1, rows.shape
    blocks = rows.reshape(count, -1, group)
    power = np.ones(columns) if second is None else np.diagonal(second)
    # Columns that the text never used are not worthless.
    power = power + 1e-3 * power.mean() + 1e-12
    used = power.reshape(-1, group).astype(np.float32)
    parts = [_fit(blocks[row : row + _ROWS], used, most) for row in range(0, count, _ROWS)]
    scales, minima = (np.concatenate(part) for part in zip(*parts, strict=True))
    if second is None:
        codes = _codes(blocks, scales, minima, most).reshape(count, columns)
        return RoundedGroups(codes.astype(np.uint8), scales, minima)
    return RoundedGroups(_columns(rows, second, scales, minima, most), scales, minima)


def _codes(blocks: Floats, scales: Floats, minima: Floats, most: int) -> Floats:
    with np.errstate(all="ignore"):
        codes = (blocks - minima[..., np.newaxis]) / scales[..., np.newaxis]
    codes = np.where(scales[..., np.newaxis] == 0, np.float32(0), codes)
    return np.clip(np.rint(codes), 0, most)


def _halves(values: Floats) -> Floats:
    largest = np.float32(np.finfo(np.float16).max)
    return np.clip(values, -largest, largest).astype(np.float16).astype(np.float32)


def _fit(blocks: Floats, power: Floats, most: int) -> tuple[Floats, Floats]:
    """Return scales and minima of blocks [rows, groups, group] with weights [groups, group]."""
    low, high = blocks.min(axis=2), blocks.max(axis=2)
    best = np.full(low.shape, np.inf, np.float32)
    scales, minima = np.zeros_like(low), low
    weight = power.sum(axis=1)
    first = (blocks * power).sum(axis=2)
    for more in _RANGES:
        scale, minimum = (high - low) / np.float32(most + more), low
        for _ in range(_ROUNDS):
            codes = _codes(blocks, scale, minimum, most)
            used = codes * power
            sums, squares = used.sum(axis=2), (used * codes).sum(axis=2)
            mixed = (used * blocks).sum(axis=2)
            spread = weight * squares - sums * sums
            with np.errstate(all="ignore"):
                scale = np.where(spread > 0, (weight * mixed - sums * first) / spread, scale)
            minimum = _halves((first - scale * sums) / weight)
            scale = _halves(scale)
        codes = _codes(blocks, scale, minimum, most)
        off = codes * scale[..., np.newaxis] + minimum[..., np.newaxis] - blocks
        error = (np.square(off) * power).sum(axis=2)
        better = error < best
        best = np.where(better, error, best)
        scales, minima = np.where(better, scale, scales), np.where(better, minimum, minima)
    return scales, minima


def _columns(
    rows: Floats, second: Float64s, scales: Floats, minima: Floats, most: int
) -> NDArray[np.uint8]:
    """Round column by column, the most used one first."""
    group = rows.shape[1] // scales.shape[1]
    order = np.argsort(-np.diagonal(second), kind="stable")
    codes = np.zeros(rows.shape, np.uint8)
    wide, low = scales.astype(np.float64), minima.astype(np.float64)
    safe = np.where(wide == 0, 1.0, wide)

    def round_column(left: Float64s, place: int) -> Float64s:
        column = int(order[place])
        of = column // group
        found = np.clip(np.rint((left[0, :, place] - low[:, of]) / safe[:, of]), 0, most)
        codes[:, column] = np.where(wide[:, of] == 0, 0, found)
        return (codes[:, column] * wide[:, of] + low[:, of])[np.newaxis]

    ordered = second[np.newaxis, order[:, np.newaxis], order]
    factor = inverse_factor(ordered.astype(np.float32))
    round_columns(rows[np.newaxis][:, :, order].astype(np.float64), factor, round_column)
    return codes
