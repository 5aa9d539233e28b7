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
from edgec.compiler.quantize.codebook import CodebookWeight, fit_codebook, nearest
from edgec.compiler.quantize.encode import (
    HalfWeight,
    StoredWeight,
    from_rows,
    summed_axis,
    to_rows,
)
from edgec.compiler.quantize.plan import Operator
from edgec.compiler.quantize.recipe import Resolved

# Added to the diagonal, as a share of its mean, so that H has an inverse (their section 3.3).
DAMPING = 0.01

# Columns whose errors are handed on together.
BLOCK = 64

Wide = NDArray[np.float64]
Rounded = tuple[Wide, NDArray[np.int64]]
Rounding = Callable[[Wide, NDArray[np.intp]], Rounded]
Settle = Callable[[Wide, int], Wide]


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


def inverse_factor(second: Floats) -> Wide:
    """U, the upper Cholesky factors of the inverses of H [groups, columns, columns], damped."""
    hessian = second.astype(np.float64)
    diagonal = np.arange(hessian.shape[1])
    power = np.diagonal(hessian, axis1=1, axis2=2).mean(axis=1)
    hessian[:, diagonal, diagonal] += DAMPING * np.maximum(power, 1e-12)[:, None]
    inverse = np.linalg.inv(hessian)
    lower = np.linalg.cholesky((inverse + inverse.transpose(0, 2, 1)) / 2)
    return np.asarray(lower.transpose(0, 2, 1), np.float64)


def settle_columns(rows: Wide, upper: Wide, settle: Settle, block: int = BLOCK) -> Wide:
    """Fix one column of rows after the other, the later ones making up for the change.

    What a block of columns leaves to the columns after it is added up in one product (section 3.2
    of the paper, "lazy batch-updates").

    Args:
        rows: weights [groups, rows, columns].
        upper: U.
        settle: gives the final values of a column, given all columns as they are now, of which
            those of its block are up to date.
        block: columns.
    """
    left, columns = rows.copy(), rows.shape[2]
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = np.zeros((*rows.shape[:2], stop - start))
        for place in range(start, stop):
            values = settle(left, place)
            error = (left[:, :, place] - values) / upper[:, place, place, None]
            left[:, :, place] = values
            following = upper[:, None, place, place + 1 : stop]
            left[:, :, place + 1 : stop] -= error[:, :, None] * following
            errors[:, :, place - start] = error
        left[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    return left


def expected_error(operator: Operator, change: Floats, moments: Moments) -> float:
    """E[(D x)^2] summed over the outputs, for a change D of the weights."""
    rows = to_rows(change, operator).astype(np.float64)
    parts = rows.reshape(len(moments.second), -1, rows.shape[1])
    return float(sum(np.sum((d @ h) * d) for d, h in zip(parts, moments.second, strict=True)))
