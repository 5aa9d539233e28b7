"""Provide biases that take back the mean of what rounding the weights adds.

E[W x] - E[W_q x] = (W - W_q) E[x]  for each output channel (Nagel et al. 2019, section 4.2, with
the mean measured instead of derived).
"""

import numpy as np

from edgec.compiler.calibration.mean_change import mean_change
from edgec.compiler.calibration.moments import Moments
from edgec.compiler.ir.anchors import Operator
from edgec.compiler.numerics.affine import Floats
from edgec.compiler.quantize.encode import Quantization


def corrected_bias(
    quantization: Quantization, operator: Operator, moments: Moments
) -> Floats | None:
    """Return the new bias of an operator, None if it has none that could take the correction."""
    bias = quantization.biases.get(operator.name)
    if bias is None or operator.weight is None:
        return None
    lost = operator.weight.array - quantization.weight_values(operator)
    return (bias + mean_change(operator, lost, moments)).astype(np.float32)
