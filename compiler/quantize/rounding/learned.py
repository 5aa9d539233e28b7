"""Provide up or down for each weight, learned (AdaRound: Nagel et al. 2020, arXiv:2004.10568).

With H = E[x x^T] of what a sum reads, the variables V of the fractions h(V) are found by Adam:

    minimize  tr(D H D^T) + strength * sum(1 - |2 h(V) - 1|^beta)                  (their eq. 25)
    D = s * clip(floor(W / s) + h(V), -largest, largest) - W
    h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)                                        (their eq. 23)

`beta` falls from 20 to 2, which pushes every fraction to 0 or 1 in the end. Their loss is over
samples; its mean is this quadratic form, so neither samples nor outputs are kept.
"""

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.calibration.moments import Moments
from edgec.compiler.ir.anchors import Operator
from edgec.compiler.ir.weight_rows import to_rows
from edgec.compiler.numerics.affine import ChannelWeight, Floats
from edgec.compiler.quantize.encode import PackedWeight
from edgec.compiler.quantize.quantization_recipe import ResolvedRecipe
from edgec.compiler.quantize.rounding.second_order import with_quantized

STEPS = 300
RATE = 0.1
WARM_UP = 0.2
STRENGTH = 10.0
_DECAYS = 0.9, 0.999


def round_learned(
    operator: Operator, packed_weight: PackedWeight, moments: Moments, resolved: ResolvedRecipe
) -> PackedWeight:
    """Return int8 values with the same scales and a smaller expected error.

    Other formats as they are.

    Args:
        operator: whose weights.
        packed_weight: them, rounded to the nearest.
        moments: the moments of what the operator reads.
        resolved: the quantized values that the target wants.
    """
    if not isinstance(packed_weight, ChannelWeight) or operator.weight is None:
        return packed_weight
    rows = to_rows(operator.weight.array, operator)
    parts = rows.reshape(len(moments.second), -1, rows.shape[1])
    ratio = parts / packed_weight.scales.reshape(*parts.shape[:2], 1)
    quantized = _learn(ratio, moments.second, resolved.largest_weight)
    return with_quantized(packed_weight, quantized.reshape(rows.shape), operator, resolved)


def _learn(ratio: Floats, second: Floats, largest: int) -> NDArray[np.int64]:
    """Return quantized values of weights in units of their scales, [groups, rows, columns]."""
    # In units in which rounding to the nearest costs about 1 for each weight.
    power = np.diagonal(second, axis1=1, axis2=2).mean(axis=1)
    hessian = (second * (12 / np.maximum(power, 1e-12))[:, None, None]).astype(np.float32)
    low = np.floor(ratio)
    inverse = (np.clip(ratio - low, 0.01, 0.99) + 0.1) / 1.2
    variables = np.log(inverse / (1 - inverse)).astype(np.float32)
    first, squared = np.zeros_like(variables), np.zeros_like(variables)
    for step in range(1, STEPS + 1):
        sigmoid = 1 / (1 + np.exp(-variables))
        fraction = np.clip(1.2 * sigmoid - 0.1, 0, 1)
        slope = 1.2 * sigmoid * (1 - sigmoid) * ((fraction > 0) & (fraction < 1))
        quantized = low + fraction
        inside = np.abs(quantized) <= largest
        gradient = 2 * (np.clip(quantized, -largest, largest) - ratio) @ hessian * inside
        done = step / STEPS
        if done > WARM_UP:
            beta = 2 + 9 * (1 + np.cos(np.pi * (done - WARM_UP) / (1 - WARM_UP)))
            off = 2 * fraction - 1
            gradient -= STRENGTH * 2 * beta * np.sign(off) * np.abs(off) ** (beta - 1)
        gradient *= slope
        first += (1 - _DECAYS[0]) * (gradient - first)
        squared += (1 - _DECAYS[1]) * (gradient**2 - squared)
        mean, deviation = first / (1 - _DECAYS[0] ** step), squared / (1 - _DECAYS[1] ** step)
        variables -= RATE * mean / (np.sqrt(deviation) + 1e-8)
    up = variables >= 0
    return np.clip(low + up, -largest, largest).astype(np.int64)
