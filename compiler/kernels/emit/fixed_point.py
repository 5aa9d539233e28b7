"""Find the numbers by which accumulators are requantized in 16 bits, as `requantize` writes it."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.kernels.emit.requantize import (
    LOGISTIC_REACH,
    TOP,
    Gate,
    Logistic,
    Requantization,
)

# Binary digits after the point, at least.
LEAST_FRACTION = 4
# Digits after the point that one shift for all channels has to leave.
_LEAST_OF_ONE_SHIFT = 5
_MOST_FRACTION = 7
_MOST_LEFT, _MOST_RIGHT = -8, 16
_MOST_RAISED = 4


def swished_requantization(
    scales: NDArray[Any], reach: NDArray[Any], scale: float, high: float
) -> Requantization | None:
    """Return the finest one with a hard swish; None if it is coarser than `LEAST_FRACTION`.

    Args:
        scales: the scales of the accumulators, by channel.
        reach: largest magnitude of the accumulators, by channel.
        scale: the scale of the quantized values.
        high: largest quantized value less the zero point.
    """
    scales = scales.astype(np.float64)
    # Accumulators beyond give 0 or the largest quantized value in any case.
    bound = max(3.0, high * scale) + scale
    used = np.minimum(reach, bound / np.maximum(scales, np.finfo(np.float32).tiny))
    shifts = np.maximum(_MOST_LEFT, np.ceil(np.log2(np.maximum(used, 1) / TOP)))
    if not _fit(reach, shifts):
        return None
    for raised in range(_MOST_RAISED + 1):
        for fraction in range(_MOST_FRACTION, LEAST_FRACTION - 1, -1):
            unit = math.sqrt(2.0 ** (15 + fraction - raised) / (6 * scale))
            multipliers = np.rint(scales * unit * 2.0 ** (shifts + 15))
            if max(6.0 * 2**raised, bound) * unit <= TOP and multipliers.max() <= TOP:
                words = multipliers.astype(np.int16), shifts.astype(np.int16)
                return Requantization(fraction, *words, Gate(round(3 * unit), raised))
    return None


def logistic_requantization(
    scales: NDArray[Any], reach: NDArray[Any], scale: float, high: float
) -> Requantization | None:
    """Return one with a SiLU; None if it is coarser than `LEAST_FRACTION`.

    Args as of `swished_requantization`.
    """
    # Below this argument a SiLU is less than half a step from 0.
    arguments = np.arange(1.0, 24.0, 0.5)
    near = arguments / (1 + np.exp(arguments)) < scale / 2
    lowest = float(arguments[near][0] if near.any() else arguments[-1])
    span = math.ceil(max(high, lowest / scale)) + 1
    fraction = min(_MOST_FRACTION, math.floor(math.log2(TOP / span)))
    found = requantization(scales / scale, reach, span, fraction)
    if found is None:
        return None
    # The argument that v could be at most.
    most = 2**15 * scale / 2**found.fraction
    doublings = max(0, math.ceil(math.log2(most / LOGISTIC_REACH)))
    factor = round(2**15 * most / (LOGISTIC_REACH * 2**doublings))
    return replace(found, gate=Logistic(min(factor, TOP), doublings))


def requantization(
    factors: NDArray[Any], reach: NDArray[Any], span: int, most_fraction: int = _MOST_FRACTION
) -> Requantization | None:
    """Return one without a gate, if there is one: with one shift for all channels, else fine.

    Args:
        factors: what one of an accumulator is worth, in steps of the result, by channel.
        reach: largest magnitude of the accumulators, by channel.
        span: a magnitude beyond which the result less its zero point is at an end.
        most_fraction: f at most.
    """
    factors = factors.astype(np.float64)
    room = np.log2(TOP / np.maximum(factors, np.finfo(np.float32).tiny))
    for same, least in ((True, _LEAST_OF_ONE_SHIFT), (False, LEAST_FRACTION)):
        for fraction in range(most_fraction, least - 1, -1):
            most = np.floor(room) - fraction - 15
            most = np.full_like(most, most.min()) if same else most
            shifts = np.clip(most, 0 if same else _MOST_LEFT, _MOST_RIGHT)
            multipliers = np.rint(factors * 2.0 ** (shifts + fraction + 15))
            fits = (reach <= TOP * 2.0**shifts) | (multipliers >= span * 2**fraction)
            if (shifts <= most).all() and fits.all() and _fit(reach, shifts):
                words = multipliers.astype(np.int16), shifts.astype(np.int16)
                return Requantization(fraction, *words)
    return None


def _fit(reach: NDArray[Any], shifts: NDArray[Any]) -> bool:
    """Return whether 32 bits hold accumulators that are shifted to the left, or have a half."""
    halves = np.where(shifts > 0, 2.0 ** (shifts - 1), 0)
    return bool((reach * 2.0 ** -np.minimum(0, shifts) + halves < 2**31).all())
