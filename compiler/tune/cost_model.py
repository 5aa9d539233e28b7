"""Predicts the time of a decision from those measured so far, for any kernel of one target."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Fewer measurements than this say nothing.
LEAST_SAMPLES = 24
ROUNDS = 120


class CostModel:
    """A cost model is gradient-boosted trees on the numbers in workloads and decisions.

    They learn the logarithm of the time over the analytic estimate, so that a prediction without
    any evidence is the estimate, and kernels of all sizes count alike. Chen et al. 2018,
    "Learning to optimize tensor programs", use the same kind of model.
    """

    def __init__(self, seed: int) -> None:
        import xgboost

        self._xgboost = xgboost
        self._seed = seed
        self._columns: dict[str, int] = {}
        self._rows: list[dict[int, float]] = []
        self._targets: list[float] = []
        self._booster: Any = None
        self._trained_on = 0

    def add(self, features: dict[str, float], seconds: float, estimate: float) -> None:
        """Add one measurement."""
        self._rows.append(self._row(features, estimate))
        self._targets.append(math.log(seconds) - math.log(max(estimate, 1.0)))

    def fit(self) -> None:
        """Learn from all measurements, if there are new ones."""
        if len(self._rows) < LEAST_SAMPLES or len(self._rows) == self._trained_on:
            return
        data = self._xgboost.DMatrix(self._matrix(self._rows), label=np.array(self._targets))
        parameters = {
            "max_depth": 5,
            "eta": 0.12,
            "subsample": 0.8,
            "min_child_weight": 1,
            "objective": "reg:squarederror",
            "seed": self._seed,
            "nthread": 1,
            "verbosity": 0,
        }
        self._booster = self._xgboost.train(parameters, data, num_boost_round=ROUNDS)
        self._trained_on = len(self._rows)

    def predict(
        self, features: Sequence[dict[str, float]], estimates: Sequence[float]
    ) -> NDArray[np.float64]:
        """Return relative times: comparable with one another, in no unit."""
        logs = np.log(np.maximum(np.array(estimates, np.float64), 1.0))
        if self._booster is None:
            return np.exp(logs)
        rows = [self._row(f, e) for f, e in zip(features, estimates, strict=True)]
        learned = self._booster.predict(self._xgboost.DMatrix(self._matrix(rows)))
        predicted: NDArray[np.float64] = np.exp(logs + np.asarray(learned, np.float64))
        return predicted

    def _row(self, features: dict[str, float], estimate: float) -> dict[int, float]:
        named = {**features, "log_estimate": math.log(max(estimate, 1.0))}
        return {
            self._columns.setdefault(name, len(self._columns)): value
            for name, value in named.items()
        }

    def _matrix(self, rows: Sequence[dict[int, float]]) -> NDArray[np.float32]:
        matrix = np.full((len(rows), len(self._columns)), np.nan, np.float32)
        for number, row in enumerate(rows):
            for column, value in row.items():
                matrix[number, column] = value
        # Columns that appeared later than the trees do not matter to them.
        if self._booster is not None and len(rows) != len(self._rows):
            return matrix[:, : self._booster.num_features()]
        return matrix


def features_of(
    operator: str, workload: dict[str, Any], decision: dict[str, Any]
) -> dict[str, float]:
    """Return the numbers in a workload and a decision, and how they divide each other."""
    found: dict[str, float] = {f"is {operator}": 1.0}
    found.update(_numbers("w", workload))
    found.update(_numbers("d", decision))
    steps = workload.get("epilogue") or []
    found["epilogue"] = float(len(steps))
    width = workload.get("out_w") or workload.get("n")
    tile = decision.get("tile_w") or decision.get("tile_n")
    if width and tile:
        found["tiles"] = math.ceil(width / tile)
        found["waste"] = math.ceil(width / tile) * tile / width
    return found


def _numbers(prefix: str, value: Any) -> Iterable[tuple[str, float]]:
    if isinstance(value, bool | int | float):
        yield prefix, float(value)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name != "epilogue":
                yield from _numbers(f"{prefix}.{name}", item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _numbers(f"{prefix}.{index}", item)
