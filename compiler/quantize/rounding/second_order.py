"""Rounding that minds what a sum makes of the errors (GPTQ: Frantar et al. 2022).

Columns of the weights are rounded one after the other. What rounding a column adds to the
outputs' expected squared error is made up for, as far as that goes, by the columns still to
come: with H = E[x x^T] and U the upper Cholesky factor of its inverse,

    w_j' = w_j - (w_i - q_i) U_ij / U_ii          for all j > i       (their eq. 2 and 3)

The scales stay those of rounding to the nearest. A codebook is fitted anew, to weights that are as
important as the diagonal of H says.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.calibration.moments import Moments
from edgec.compiler.ir.anchors import Operator
from edgec.compiler.ir.weight_rows import from_rows, to_rows
from edgec.compiler.numerics.affine import (
    ChannelWeight,
    Floats,
    GroupWeight,
    log2_codes,
    log2_values,
    pack_nibbles,
    unpack_nibbles,
    within_sums,
)
from edgec.compiler.numerics.second_order import Wide, inverse_factor, settle_columns
from edgec.compiler.quantize.codebook import CodebookWeight, fit_codebook, nearest
from edgec.compiler.quantize.encode import HalfWeight, StoredWeight, summed_axis
from edgec.compiler.quantize.recipe import Resolved

Rounded = tuple[Wide, NDArray[np.int64]]
Rounding = Callable[[Wide, NDArray[np.intp]], Rounded]


def round_second_order(
    operator: Operator, stored: StoredWeight, moments: Moments, resolved: Resolved
) -> StoredWeight:
    """Codes of the same format and scales with a smaller expected error in the outputs.

    Args:
        operator: whose weights.
        stored: them, rounded to the nearest.
        moments: of what the operator reads.
        resolved: the recipe on the target.
    """
    assert operator.weight is not None
    if isinstance(stored, HalfWeight):
        return stored
    rows = to_rows(operator.weight.array, operator).astype(np.float64)
    groups = len(moments.second)
    parts = rows.reshape(groups, -1, rows.shape[1])
    if isinstance(stored, CodebookWeight):
        power = np.diagonal(moments.second, axis1=1, axis2=2)
        important = np.repeat(power, parts.shape[1], axis=0)
        stored = fit_codebook(rows.astype(np.float32), len(stored.table), important)
    codes = _round_rows(parts, moments.second, _rounding(stored, groups, resolved.largest_weight))
    return with_codes(stored, codes.reshape(rows.shape), operator, resolved)


def with_codes(
    stored: StoredWeight, codes: NDArray[np.int64], operator: Operator, resolved: Resolved
) -> StoredWeight:
    """Stored weights with other codes [rows, columns]."""
    assert not isinstance(stored, HalfWeight)
    if isinstance(stored, ChannelWeight):
        shaped = from_rows(codes.astype(np.float32), operator).astype(np.int8)
        summed = summed_axis(operator, resolved)
        return replace(stored, codes=shaped if summed is None else within_sums(shaped, summed))
    if isinstance(stored, CodebookWeight):
        return stored.with_indices(codes)
    padded = unpack_nibbles(stored.packed).copy()
    padded[:, : stored.columns] = codes
    return replace(stored, packed=pack_nibbles(padded))


def _rounding(
    stored: ChannelWeight | CodebookWeight | GroupWeight, groups: int, largest: int
) -> Rounding:
    """Rounds one column of each group, [groups, rows], given its index: values and codes."""
    scales = stored.scales.astype(np.float64).reshape(groups, -1, *stored.scales.shape[1:])
    if isinstance(stored, CodebookWeight):
        table = stored.table.astype(np.float64)

        def to_entry(column: Wide, _: NDArray[np.intp]) -> Rounded:
            codes = nearest(stored.table, column / scales)
            return table[codes] * scales, codes

        return to_entry
    if isinstance(stored, ChannelWeight):

        def to_channel(column: Wide, _: NDArray[np.intp]) -> Rounded:
            codes = np.clip(np.rint(column / scales), -largest, largest)
            return codes * scales, codes.astype(np.int64)

        return to_channel

    def at(parameters: NDArray[Any], index: NDArray[np.intp]) -> NDArray[Any]:
        block = (index // stored.group)[:, None, None]
        return np.take_along_axis(parameters, block, axis=2)[..., 0]

    if stored.zero_points is None:

        def to_power(column: Wide, index: NDArray[np.intp]) -> Rounded:
            scale = at(scales, index)
            codes = log2_codes((column / scale).astype(np.float32))
            return log2_values(codes) * scale, codes.astype(np.int64)

        return to_power
    zeros = stored.zero_points.astype(np.float64).reshape(scales.shape)
    lowest = 1 if np.all(stored.zero_points == 8) else 0

    def to_group(column: Wide, index: NDArray[np.intp]) -> Rounded:
        scale, zero = at(scales, index), at(zeros, index)
        codes = np.clip(np.rint(column / scale) + zero, lowest, 15)
        return (codes - zero) * scale, codes.astype(np.int64)

    return to_group


def _round_rows(rows: Wide, second: Floats, rounding: Rounding) -> NDArray[np.int64]:
    """Codes of rows [groups, rows, columns] given H [groups, columns, columns].

    The most used column is rounded first.
    """
    power = np.diagonal(second, axis1=1, axis2=2)
    order = np.argsort(-power, axis=1, kind="stable")
    group = np.arange(len(rows))
    ordered = second[group[:, None, None], order[:, :, None], order[:, None, :]]
    codes = np.zeros(rows.shape, np.int64)

    def settle(left: Wide, place: int) -> Wide:
        values, found = rounding(left[:, :, place], order[:, place])
        codes[group, :, order[:, place]] = found
        return values

    settle_columns(
        np.take_along_axis(rows, order[:, None, :], axis=2), inverse_factor(ordered), settle
    )
    return codes


def expected_error(operator: Operator, change: Floats, moments: Moments) -> float:
    """E[(D x)^2] summed over the outputs, for a change D of the weights."""
    rows = to_rows(change, operator).astype(np.float64)
    parts = rows.reshape(len(moments.second), -1, rows.shape[1])
    return float(sum(np.sum((d @ h) * d) for d, h in zip(parts, moments.second, strict=True)))
