"""Provide scales that give the outputs of rounded weights back their spread.

Batch norms are constants of the convolutions before them. What they took for the mean and the
variance of a channel is off once the weights are rounded, so both are estimated again, as Sun et
al. 2019 do from data for networks that still have theirs. The mean is `bias_correction`'s. For the
variance, each output channel w_q x is scaled by its regression on what it was, w x,

    factor = (w C w_q^T) / (w_q C w_q^T),   C the covariance of x

which has the least squared error; a factor of equal variances would be no smaller one. Without a
bias, nothing takes the mean back, and E[x x^T] stands for C.
"""

from dataclasses import replace

import numpy as np

from edgec.compiler.calibration.moments import Moments
from edgec.compiler.ir.anchors import Operator
from edgec.compiler.ir.weight_rows import to_rows
from edgec.compiler.quantize.encode import HalfWeight, PackedWeight, Quantization

# A channel whose rounded weights are this far from its weights has nothing left to scale.
_LIMITS = 0.5, 2.0


def scale_corrected(
    quantization: Quantization, operator: Operator, moments: Moments
) -> PackedWeight:
    """Return the packed weights of an operator with scales that are multiplied by the factors."""
    packed_weight = quantization.weights[operator.name]
    assert operator.weight is not None
    if isinstance(packed_weight, HalfWeight):
        return packed_weight
    groups, length = moments.mean.shape
    covariance = moments.second.astype(np.float64)
    if operator.bias is not None:
        mean = moments.mean.astype(np.float64)
        covariance = covariance - mean[:, :, None] * mean[:, None, :]
    exact, rounded = (
        to_rows(array, operator).reshape(groups, -1, length).astype(np.float64)
        for array in (operator.weight.array, quantization.weight_values(operator))
    )
    spread = rounded @ covariance
    power = (spread * rounded).sum(axis=2)
    shared = (spread * exact).sum(axis=2)
    factor = np.where(power > 0, shared / np.where(power > 0, power, 1), 1.0).reshape(-1)
    factor = np.clip(factor, *_LIMITS)
    along = factor.reshape(-1, *[1] * (packed_weight.scales.ndim - 1))
    return replace(packed_weight, scales=(packed_weight.scales * along).astype(np.float32))
