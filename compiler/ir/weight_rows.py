"""Provide weights as rows, one for each output."""

import numpy as np

from edgec.compiler.ir.anchors import Operator
from edgec.compiler.numerics.affine import (
    Floats,
)


def to_rows(array: Floats, operator: Operator) -> Floats:
    """Return weights as [rows, columns].

    A row is an index of the first axis, for a matrix product of the last: an output channel.
    """
    if operator.kind == "matmul":
        return np.ascontiguousarray(array.reshape(-1, array.shape[-1]).T)
    return array.reshape(len(array), -1)


def from_rows(rows: Floats, operator: Operator) -> Floats:
    """Return the inverse of `to_rows`."""
    assert operator.weight is not None
    shape = operator.weight.array.shape
    return np.ascontiguousarray(rows.T if operator.kind == "matmul" else rows).reshape(shape)
