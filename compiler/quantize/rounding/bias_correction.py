"""Biases that take back the mean of what rounding the weights adds.

E[W x] - E[W_q x] = (W - W_q) E[x]  for each output channel (Nagel et al. 2019, section 4.2, with
the mean measured instead of derived).
"""

import numpy as np

from edgec.compiler.calibration.moments import Moments
from edgec.compiler.numerics.affine import Floats
from edgec.compiler.quantize.encode import Quantization, to_rows
from edgec.compiler.quantize.plan import Operator


def corrected_bias(
    quantization: Quantization, operator: Operator, moments: Moments
) -> Floats | None:
    """The new bias of an operator, None if it has none that could take the correction."""
    bias = quantization.biases.get(operator.name)
    if bias is None or operator.weight is None:
        return None
    lost = operator.weight.array - quantization.weight_values(operator)
    return (bias + mean_change(operator, lost, moments)).astype(np.float32)


def mean_change(operator: Operator, change: Floats, moments: Moments) -> Floats:
    """E[D x] of each output channel, for a change D of the weights."""
    rows = to_rows(change, operator)
    parts = rows.reshape(len(moments.mean), -1, rows.shape[1])
    return np.concatenate([d @ m for d, m in zip(parts, moments.mean, strict=True)])
