"""Guess how much accuracy a version of a model loses, from the versions that were measured.

The logarithm of the drop is taken to be a sum of what each recipe does to it; the parts are found
by Bayesian linear regression (Bishop 2006, 3.49 to 3.59). What is known before anything is measured
is only that more costs more.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.fit.space import QUANTIZATIONS, STEPS, Point

# log10 of the drop of the model as it is, and what is added: before anything is measured.
_BASE = -3.5
_QUANTIZE: dict[str, float] = {
    "none": 0.0,
    "fp16": 0.0,
    "int8-weight-only": 0.3,
    "int8-dynamic": 0.7,
    "int8-mixed": 0.5,
    "int8": 0.7,
    "int4-weight-only": 1.5,
}
# At full strength, 100 %; in between it grows with the strength.
_STEP = 4.0
# How far these may be off, and how far a measured drop is from the sum.
_PRIOR_SD = 1.2
_NOISE_SD = 0.35
# A drop of nothing is one that was too small to be seen.
_LEAST_DROP = 10**_BASE


class DropModel:
    """A drop model is what measured drops say of others."""

    def __init__(self, measured: Sequence[tuple[Point, float]]) -> None:
        """Learn from points and their drops; those that are not known are left out."""
        known = [(point, drop) for point, drop in measured if not math.isnan(drop)]
        mean = np.array([_BASE, *_QUANTIZE.values(), *([_STEP] * len(STEPS))])
        precision = np.eye(len(mean)) / _PRIOR_SD**2
        rows = np.array([_features(point) for point, _ in known]).reshape(len(known), len(mean))
        values = np.log10([max(drop, _LEAST_DROP) for _, drop in known])
        self._covariance = np.linalg.inv(precision + rows.T @ rows / _NOISE_SD**2)
        self._mean = self._covariance @ (precision @ mean + rows.T @ values / _NOISE_SD**2)

    def expected(self, point: Point) -> float:
        """Return the drop that half of the cases exceed."""
        return float(10 ** (_features(point) @ self._mean))

    def chance(self, point: Point, limit: float) -> float:
        """Return the probability that the drop is within a limit.

        >>> model = DropModel([(Point("int8", (("channels", 50),)), 0.3)])
        >>> model.chance(Point("int8"), 0.01) > model.chance(Point("int8", (("channels", 40),)), 0.01)
        True
        """
        features = _features(point)
        spread = math.sqrt(features @ self._covariance @ features + _NOISE_SD**2)
        distance = math.log10(max(limit, _LEAST_DROP)) - float(features @ self._mean)
        return 0.5 * (1 + math.erf(distance / spread / math.sqrt(2)))


def _features(point: Point) -> NDArray[np.float64]:
    """Return 1, which quantization it is, and the strength of each step, 0..1."""
    steps = dict(point.steps)
    quantize = [float(point.quantize == name) for name in QUANTIZATIONS]
    return np.array([1.0, *quantize, *(steps.get(name, 0) / 100 for name in STEPS)])
