"""Describe how a change of weights moves the mean of an operator's outputs."""

import numpy as np

from edgec.compiler.calibration.moments import Moments
from edgec.compiler.ir.anchors import Operator
from edgec.compiler.ir.weight_rows import to_rows
from edgec.compiler.numerics.affine import Floats


def mean_change(operator: Operator, change: Floats, moments: Moments) -> Floats:
    """Return E[D x] of each output channel, for a change D of the weights."""
    rows = to_rows(change, operator)
    parts = rows.reshape(len(moments.mean), -1, rows.shape[1])
    return np.concatenate([d @ m for d, m in zip(parts, moments.mean, strict=True)])
