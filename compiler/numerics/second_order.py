"""Provide rounding column by column.

Each making up for the error of those before it (OBS, GPTQ).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.numerics.affine import (
    Floats,
)

# Added to the diagonal, as a share of its mean, so that H has an inverse (their section 3.3).
DAMPING = 0.01


# Columns whose errors are handed on together.
BLOCK = 64


Float64s = NDArray[np.float64]


RoundColumn = Callable[[Float64s, int], Float64s]


def inverse_factor(second: Floats) -> Float64s:
    """Return U, upper Cholesky factors of the inverses of H [groups, columns, columns]."""
    hessian = second.astype(np.float64)
    diagonal = np.arange(hessian.shape[1])
    power = np.diagonal(hessian, axis1=1, axis2=2).mean(axis=1)
    hessian[:, diagonal, diagonal] += DAMPING * np.maximum(power, 1e-12)[:, None]
    # H = R R' with R upper, the Cholesky factor of H read from its end; then U = R^-1.
    ends = np.linalg.cholesky(hessian[:, ::-1, ::-1])
    return _inverse_of_upper(np.ascontiguousarray(ends[:, ::-1, ::-1]))


def _inverse_of_upper(factor: Float64s) -> Float64s:
    """Return the inverses of upper triangular matrices [groups, n, n], by halves.

    ( A B )^-1   ( A^-1  -A^-1 B D^-1 )
    ( 0 D )    = (  0         D^-1    )   is two matrix products, a sixth of a general inverse.
    """
    size = factor.shape[1]
    if size <= BLOCK:
        return np.triu(np.linalg.inv(factor))
    half = size // 2
    inverse = np.zeros_like(factor)
    first = inverse[:, :half, :half] = _inverse_of_upper(factor[:, :half, :half])
    last = inverse[:, half:, half:] = _inverse_of_upper(factor[:, half:, half:])
    inverse[:, :half, half:] = -(first @ factor[:, :half, half:] @ last)
    return inverse


def round_columns(
    rows: Float64s, upper: Float64s, round_column: RoundColumn, block: int = BLOCK
) -> Float64s:
    """Fix one column of rows after the other, the later ones making up for the change.

    What a block of columns leaves to the columns after it is added up in one product (section 3.2
    of the paper, "lazy batch-updates").

    Args:
        rows: weights [groups, rows, columns].
        upper: U.
        round_column: gives the final values of a column, given all columns as they are now, of
            which those of its block are up to date.
        block: columns.
    """
    left, columns = rows.copy(), rows.shape[2]
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = np.zeros((*rows.shape[:2], stop - start))
        for place in range(start, stop):
            values = round_column(left, place)
            error = (left[:, :, place] - values) / upper[:, place, place, None]
            left[:, :, place] = values
            following = upper[:, None, place, place + 1 : stop]
            left[:, :, place + 1 : stop] -= error[:, :, None] * following
            errors[:, :, place - start] = error
        left[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    return left
