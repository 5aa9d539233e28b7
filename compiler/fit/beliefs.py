"""Guess what versions of a model cost from those that are known, before anything is done.

The logarithm of each cost is taken to be a sum of what each recipe does to it; the parts are found
by Bayesian linear regression (Bishop 2006, 3.49 to 3.59). Before anything is known, more of a
recipe is believed to cost more accuracy and less of everything else.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.fit.limits import QUANTITIES, Costs, Limits, Quantity
from edgec.compiler.fit.space import QUANTIZATIONS, STEPS, Point

# A drop of nothing is one that was too small to be seen.
LEAST_DROP = 10**-3.5
# What is believed to be added to log10 of the drop, and of the other costs, by each quantization,
# and by a step of full strength (100 %).
_DROPS: Mapping[str, float] = {
    "none": 0.0,
    "fp16": 0.0,
    "int8-weight-only": 0.3,
    "int8-dynamic": 0.7,
    "int8-mixed": 0.5,
    "int8": 0.7,
    "int4-weight-only": 1.5,
}
_STEP_DROP = 4.0
_DISTILL_DROP = -0.4
_STEP_COST = -0.4
# How far these beliefs may be off.
_PRIOR_SD: Mapping[Quantity, float] = {"drop": 1.2, "latency": 0.4, "size": 0.4, "memory": 0.4}
# How far a cost is from the sum of its parts.
_NOISE_SD: Mapping[Quantity, float] = {"drop": 0.35, "latency": 0.06, "size": 0.06, "memory": 0.06}


class Belief:
    """A belief is what known costs say of one quantity of other points."""

    def __init__(
        self,
        quantity: Quantity,
        known: Iterable[tuple[Point, float]],
        programs: Sequence[str] = ("",),
    ) -> None:
        """Learn from points and their costs; those that are not known are left out.

        Args:
            quantity: which cost.
            known: points with it.
            programs: the programs that points may be of, the model as it is first.
        """
        self._others = tuple(programs[1:])
        self._least = LEAST_DROP if quantity == "drop" else 1e-9
        pairs = [(point, cost) for point, cost in known if not math.isnan(cost)]
        values = np.log10([max(cost, self._least) for _, cost in pairs])
        rows = np.array([self._features(point) for point, _ in pairs])
        base = float(values[0]) if len(values) else 0.0
        if quantity == "drop":
            base = math.log10(LEAST_DROP)
        mean = np.array([base, *_prior(quantity), *([0.0] * len(self._others))])
        self._noise = _NOISE_SD[quantity]
        precision = np.eye(len(mean)) / _PRIOR_SD[quantity] ** 2
        rows = rows.reshape(len(pairs), len(mean))
        self._covariance = np.linalg.inv(precision + rows.T @ rows / self._noise**2)
        self._mean = self._covariance @ (precision @ mean + rows.T @ values / self._noise**2)

    def expected(self, point: Point) -> float:
        """Return the cost that half of the cases exceed."""
        return float(10 ** (self._features(point) @ self._mean))

    def chance(self, point: Point, limit: float) -> float:
        """Return the probability that the cost is within a limit.

        >>> known = [(Point("int8", (("channels", 50),)), 0.3)]
        >>> belief = Belief("drop", known)
        >>> belief.chance(Point("int8"), 0.01) > belief.chance(known[0][0], 0.01)
        True
        """
        features = self._features(point)
        spread = math.sqrt(features @ self._covariance @ features + self._noise**2)
        distance = math.log10(max(limit, self._least)) - float(features @ self._mean)
        return 0.5 * (1 + math.erf(distance / spread / math.sqrt(2)))

    def _features(self, point: Point) -> NDArray[np.float64]:
        """Return 1, its quantization, strengths (0..1), whether it is trained, and its program."""
        steps = dict(point.steps)
        quantize = [float(point.quantize == name) for name in QUANTIZATIONS]
        strengths = [steps.get(name, 0) / 100 for name in STEPS]
        programs = [float(point.program == name) for name in self._others]
        return np.array([1.0, *quantize, *strengths, float(point.distill), *programs])


def _prior(quantity: Quantity) -> list[float]:
    if quantity == "drop":
        steps = [*([_STEP_DROP] * len(STEPS)), _DISTILL_DROP]
        return [*(_DROPS[name] for name in QUANTIZATIONS), *steps]
    return [*([0.0] * len(QUANTIZATIONS)), *([_STEP_COST] * len(STEPS)), 0.0]


class Beliefs:
    """Beliefs are what is guessed of all costs.

    Attributes:
        limits: what is to be kept.
        goal: what is to be small.
        least: the goal of the best version so far; None if there is none.
    """

    def __init__(
        self,
        limits: Limits,
        goal: Quantity,
        predicted: Mapping[Point, Costs],
        evaluated: Mapping[Point, Costs],
        best: Point | None,
        programs: Sequence[str],
    ) -> None:
        """Learn from what is predicted and what was compiled."""
        self.limits, self.goal = limits, goal
        self.least = None if best is None else predicted[best][goal]
        self._predicted = predicted
        self._of: dict[Quantity, Belief] = {
            quantity: Belief(quantity, [(p, c[quantity]) for p, c in predicted.items()], programs)
            for quantity in QUANTITIES
            if quantity != "drop" and (quantity in limits.given or quantity == goal)
        }
        self._plain = Point(program=programs[0])
        self._of["drop"] = Belief("drop", [(p, c.drop) for p, c in evaluated.items()], programs)

    def drop(self, point: Point) -> float:
        """Return the drop that is expected of a point."""
        return self._of["drop"].expected(point)

    def worth(self, point: Point) -> float:
        """Return the chance that a point keeps the limits, times what it gains."""
        known = self._predicted.get(point)
        chance = 1.0
        for quantity, limit in self.limits.given.items():
            if quantity == "drop" or known is None:
                chance *= self._of[quantity].chance(point, limit)
        if self.goal == "drop":
            return chance / max(self._of["drop"].expected(point), LEAST_DROP)
        goal = self._of[self.goal].expected(point) if known is None else known[self.goal]
        if self.least is None:
            # First of all something that keeps the limits; of such, what is small.
            return chance / (1 + goal / self._of[self.goal].expected(self._plain))
        return chance * max(0.0, 1 - goal / self.least)
