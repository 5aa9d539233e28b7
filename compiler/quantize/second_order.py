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

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.quantize.codebook import CodebookWeight, fit_codebook, nearest
from edgec.compiler.quantize.encode import (
    HalfWeight,
    StoredWeight,
    from_rows,
    summed_axis,
    to_rows,
)
from edgec.compiler.quantize.moments import Moments
from edgec.compiler.quantize.numerics import (
    ChannelWeight,
    Floats,
    GroupWeight,
    log2_codes,
    log2_values,
    pack_nibbles,
    unpack_nibbles,
    within_sums,
)
from edgec.compiler.quantize.plan import Operator
from edgec.compiler.quantize.recipe import Resolved

# Added to the diagonal, as a share of its mean, so that H has an inverse (their section 3.3).
DAMPING = 0.01

Rounded = tuple[NDArray[np.float64], NDArray[np.int64]]
Rounding = Callable[[NDArray[np.float64], int], Rounded]


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
    per_group = len(rows) // groups
    if isinstance(stored, CodebookWeight):
        power = np.diagonal(moments.second, axis1=1, axis2=2)
        important = np.repeat(power, per_group, axis=0)
        stored = fit_codebook(rows.astype(np.float32), len(stored.table), important)
    codes = np.zeros(rows.shape, np.int64)
    for group in range(groups):
        part = slice(group * per_group, (group + 1) * per_group)
        codes[part] = _round_rows(
            rows[part], moments.second[group], _rounding(stored, part, resolved.largest_weight)
        )
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
    stored: ChannelWeight | CodebookWeight | GroupWeight, part: slice, largest: int
) -> Rounding:
    """Rounds a column of some rows: values and codes."""
    if isinstance(stored, CodebookWeight):
        table, row_scales = stored.table.astype(np.float64), stored.scales[part]

        def to_entry(column: NDArray[np.float64], _: int) -> Rounded:
            codes = nearest(stored.table, column / row_scales)
            return table[codes] * row_scales, codes

        return to_entry
    if isinstance(stored, ChannelWeight):
        scales = stored.scales[part].astype(np.float64)

        def to_channel(column: NDArray[np.float64], _: int) -> Rounded:
            codes = np.clip(np.rint(column / scales), -largest, largest)
            return codes * scales, codes.astype(np.int64)

        return to_channel
    group_scales = stored.scales[part].astype(np.float64)
    if stored.zero_points is None:

        def to_power(column: NDArray[np.float64], index: int) -> Rounded:
            scale = group_scales[:, index // stored.group]
            codes = log2_codes((column / scale).astype(np.float32))
            return log2_values(codes) * scale, codes.astype(np.int64)

        return to_power
    zeros = stored.zero_points[part].astype(np.float64)
    lowest = 1 if np.all(stored.zero_points == 8) else 0

    def to_group(column: NDArray[np.float64], index: int) -> Rounded:
        block = index // stored.group
        scale, zero = group_scales[:, block], zeros[:, block]
        codes = np.clip(np.rint(column / scale) + zero, lowest, 15)
        return (codes - zero) * scale, codes.astype(np.int64)

    return to_group


def _round_rows(rows: NDArray[np.float64], second: Floats, rounding: Rounding) -> NDArray[np.int64]:
    """Codes of rows [rows, columns] given H [columns, columns]; the most used column first."""
    hessian = second.astype(np.float64)
    power = np.diag(hessian).copy()
    hessian[np.diag_indices_from(hessian)] += DAMPING * max(power.mean(), 1e-12)
    order = np.argsort(-power, kind="stable")
    inverse = np.linalg.inv(hessian[np.ix_(order, order)])
    upper = np.linalg.cholesky((inverse + inverse.T) / 2).T
    left = rows[:, order].copy()
    codes = np.zeros(rows.shape, np.int64)
    for place, column in enumerate(order):
        values, codes[:, column] = rounding(left[:, place], int(column))
        error = (left[:, place] - values) / upper[place, place]
        left[:, place + 1 :] -= np.outer(error, upper[place, place + 1 :])
    return codes


def expected_error(operator: Operator, change: Floats, moments: Moments) -> float:
    """E[(D x)^2] summed over the outputs, for a change D of the weights."""
    rows = to_rows(change, operator).astype(np.float64)
    parts = rows.reshape(len(moments.second), -1, rows.shape[1])
    return float(sum(np.sum((d @ h) * d) for d, h in zip(parts, moments.second, strict=True)))
