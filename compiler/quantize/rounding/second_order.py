"""Provide rounding that minds what a sum makes of the errors (GPTQ: Frantar et al. 2022).

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
    log2_values,
    pack_nibbles,
    quantize_to_log2,
    shrink_to_pair_sums,
    unpack_nibbles,
)
from edgec.compiler.numerics.second_order import Float64s, inverse_factor, round_columns
from edgec.compiler.quantize.codebook import CodebookWeight, fit_codebook, nearest
from edgec.compiler.quantize.encode import HalfWeight, PackedWeight, sum_limit
from edgec.compiler.quantize.quantization_recipe import ResolvedRecipe

RoundedColumn = tuple[Float64s, NDArray[np.int64]]
Rounding = Callable[[Float64s, NDArray[np.intp]], RoundedColumn]


def round_second_order(
    operator: Operator, packed_weight: PackedWeight, moments: Moments, resolved: ResolvedRecipe
) -> PackedWeight:
    """Round to the same format and scales with a smaller expected error in the outputs.

    Args:
        operator: whose weights.
        packed_weight: them, rounded to the nearest.
        moments: the moments of what the operator reads.
        resolved: the recipe on the target.
    """
    assert operator.weight is not None
    if isinstance(packed_weight, HalfWeight):
        return packed_weight
    rows = to_rows(operator.weight.array, operator).astype(np.float64)
    groups = len(moments.second)
    parts = rows.reshape(groups, -1, rows.shape[1])
    if isinstance(packed_weight, CodebookWeight):
        power = np.diagonal(moments.second, axis1=1, axis2=2)
        important = np.repeat(power, parts.shape[1], axis=0)
        packed_weight = fit_codebook(rows.astype(np.float32), len(packed_weight.table), important)
    quantized = _round_rows(
        parts, moments.second, _rounding(packed_weight, groups, resolved.largest_weight)
    )
    return with_quantized(packed_weight, quantized.reshape(rows.shape), operator, resolved)


def with_quantized(
    packed_weight: PackedWeight,
    quantized: NDArray[np.int64],
    operator: Operator,
    resolved: ResolvedRecipe,
) -> PackedWeight:
    """Return packed weights with other quantized values [rows, columns]."""
    assert not isinstance(packed_weight, HalfWeight)
    if isinstance(packed_weight, ChannelWeight):
        shaped = from_rows(quantized.astype(np.float32), operator).astype(np.int8)
        limit = sum_limit(operator, resolved)
        kept = shaped if limit is None else shrink_to_pair_sums(shaped, *limit)
        return replace(packed_weight, quantized=kept)
    if isinstance(packed_weight, CodebookWeight):
        return packed_weight.with_indices(quantized)
    padded = unpack_nibbles(packed_weight.packed).copy()
    padded[:, : packed_weight.columns] = quantized
    return replace(packed_weight, packed=pack_nibbles(padded))


def _rounding(
    packed_weight: ChannelWeight | CodebookWeight | GroupWeight, groups: int, largest: int
) -> Rounding:
    """Rounds one column of each group, [groups, rows], given its index.

    Values and quantized values.
    """
    scales = packed_weight.scales.astype(np.float64).reshape(
        groups, -1, *packed_weight.scales.shape[1:]
    )
    if isinstance(packed_weight, CodebookWeight):
        table = packed_weight.table.astype(np.float64)

        def to_entry(column: Float64s, _: NDArray[np.intp]) -> RoundedColumn:
            quantized = nearest(packed_weight.table, column / scales)
            return table[quantized] * scales, quantized

        return to_entry
    if isinstance(packed_weight, ChannelWeight):

        def to_channel(column: Float64s, _: NDArray[np.intp]) -> RoundedColumn:
            quantized = np.clip(np.rint(column / scales), -largest, largest)
            return quantized * scales, quantized.astype(np.int64)

        return to_channel

    def at(parameters: NDArray[Any], index: NDArray[np.intp]) -> NDArray[Any]:
        block = (index // packed_weight.group)[:, None, None]
        return np.take_along_axis(parameters, block, axis=2)[..., 0]

    if packed_weight.zero_points is None:

        def to_power(column: Float64s, index: NDArray[np.intp]) -> RoundedColumn:
            scale = at(scales, index)
            quantized = quantize_to_log2((column / scale).astype(np.float32))
            return log2_values(quantized) * scale, quantized.astype(np.int64)

        return to_power
    zeros = packed_weight.zero_points.astype(np.float64).reshape(scales.shape)
    lowest = 1 if np.all(packed_weight.zero_points == 8) else 0

    def to_group(column: Float64s, index: NDArray[np.intp]) -> RoundedColumn:
        scale, zero = at(scales, index), at(zeros, index)
        quantized = np.clip(np.rint(column / scale) + zero, lowest, 15)
        return (quantized - zero) * scale, quantized.astype(np.int64)

    return to_group


def _round_rows(rows: Float64s, second: Floats, rounding: Rounding) -> NDArray[np.int64]:
    """Return quantized values of rows [groups, rows, columns] given H [groups, columns, columns].

    The most used column is rounded first.
    """
    power = np.diagonal(second, axis1=1, axis2=2)
    order = np.argsort(-power, axis=1, kind="stable")
    group = np.arange(len(rows))
    ordered = second[group[:, None, None], order[:, :, None], order[:, None, :]]
    quantized = np.zeros(rows.shape, np.int64)

    def round_column(left: Float64s, place: int) -> Float64s:
        values, found = rounding(left[:, :, place], order[:, place])
        quantized[group, :, order[:, place]] = found
        return values

    round_columns(
        np.take_along_axis(rows, order[:, None, :], axis=2), inverse_factor(ordered), round_column
    )
    return quantized


def expected_error(operator: Operator, change: Floats, moments: Moments) -> float:
    """Return E[(D x)^2] summed over the outputs, for a change D of the weights."""
    rows = to_rows(change, operator).astype(np.float64)
    parts = rows.reshape(len(moments.second), -1, rows.shape[1])
    return float(sum(np.sum((d @ h) * d) for d, h in zip(parts, moments.second, strict=True)))
