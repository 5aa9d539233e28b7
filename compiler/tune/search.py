"""Choose which decision to try next for one kernel."""

import json
import random
import statistics
from functools import cache
from typing import Any

from edgec.compiler.tune.cost_model import CostModel, features_of
from edgec.compiler.tune.options import Strategy
from edgec.compiler.tune.tasks import Task

# A candidate is the one that the cost model likes best: of relatives of the best decisions so far,
# or of the whole space (a sample of a large one). Some are taken at random, so that the model
# learns where it has not been.
EXPLORE = 0.15
MUTATE = 0.5
ELITES = 4
POOL = 1024
# A kernel rests after so many trials without a gain of more than GAIN.
PATIENCE = 40
GAIN = 0.01


class TaskSearch:
    """A task search is the search for one task: what was measured, and what is left.

    Attributes:
        task: the kernel.
        times: measurements of each decision [s], on the scale of the first round.
        failed: decisions that gave no time, with the reason.
        trials: distinct decisions tried, in order.
    """

    def __init__(self, task: Task, strategy: Strategy, model: CostModel | None, seed: int) -> None:
        self.task = task
        self.times: dict[str, list[float]] = {}
        self.failed: dict[str, str] = {}
        self.trials: list[str] = []
        self._strategy = strategy
        self._model = model
        self._random = random.Random(f"{seed} {task.key}")
        self._since_gain = 0
        # The default is measured before anything is proposed.
        self._proposed = {task.default}
        self._workload = json.loads(task.key.workload)

    @property
    def best(self) -> str:
        """Return the decision of the best median."""
        medians = self.medians()
        return min(medians, key=medians.__getitem__, default=self.task.default)

    def medians(self) -> dict[str, float]:
        """Return median time of each decision that ran."""
        return {d: statistics.median(t) for d, t in self.times.items() if d not in self.failed}

    def seconds(self, decision: str) -> float:
        """Return median time of a decision; infinity if there is none."""
        times = self.times.get(decision)
        return statistics.median(times) if times and decision not in self.failed else float("inf")

    def gain_expected(self) -> float:
        """Return seconds that more trials might save in a model run.

        Less and less as they do not.
        """
        if self.exhausted:
            return 0.0
        return self.seconds(self.best) * len(self.task.steps) / (1 + self._since_gain / 8)

    @property
    def exhausted(self) -> bool:
        """Return whether everything was tried, or trials stopped to help."""
        if len(self._proposed | set(self.trials)) >= len(self.task.estimates):
            return True
        return self._strategy != "exhaustive" and self._since_gain >= PATIENCE

    def propose(self) -> str | None:
        """Return a decision that was not tried, None if there is none left."""
        tried = self._proposed.union(self.trials)
        left = [decision for decision in self.task.estimates if decision not in tried]
        if not left:
            return None
        chosen = self._choose(left)
        self._proposed.add(chosen)
        return chosen

    def _choose(self, left: list[str]) -> str:
        if self._strategy == "exhaustive":
            return left[0]
        dice = self._random.random()
        if self._strategy == "random" or dice < EXPLORE:
            return self._random.choice(left)
        pool = self._relatives(left) if dice < EXPLORE + MUTATE else []
        if not pool:
            pool = left if len(left) <= POOL else self._random.sample(left, POOL)
        return min(zip(self.predict(pool), pool, strict=True))[1]

    def _relatives(self, left: list[str]) -> list[str]:
        """Return decisions that differ in one field from one of the best.

        In two from the very best.
        """
        medians = self.medians()
        elites = sorted(medians, key=medians.__getitem__)[:ELITES]
        return [
            decision
            for decision in left
            if any(_differences(decision, elite) <= 1 for elite in elites)
            or any(_differences(decision, elite) <= 2 for elite in elites[:1])
        ]

    def predict(self, decisions: list[str]) -> list[float]:
        """Return predicted relative times."""
        assert self._model is not None
        estimates = [self.task.estimates[decision] for decision in decisions]
        features = [self.features(decision) for decision in decisions]
        return [float(value) for value in self._model.predict(features, estimates)]

    def features(self, decision: str) -> dict[str, float]:
        """Return what the cost model sees of a decision."""
        return features_of(self.task.key.operator, self._workload, _fields(decision))

    def learn(self, decision: str, seconds: float) -> bool:
        """Take a measurement; whether it is a gain."""
        before = min(self.medians().values(), default=float("inf"))
        new = decision not in self.times
        self.times.setdefault(decision, []).append(seconds)
        if not new:
            return False
        self.trials.append(decision)
        if self._model is not None:
            self._model.add(self.features(decision), seconds, self.task.estimates.get(decision, 0))
        gained = seconds < before * (1 - GAIN)
        self._since_gain = 0 if gained else self._since_gain + 1
        return gained

    def fail(self, decision: str, reason: str) -> None:
        """Take note that a decision gives no time."""
        self.failed[decision] = reason
        if decision not in self.trials:
            self.trials.append(decision)
        self._since_gain += 1

    def candidates(self, count: int) -> list[str]:
        """Return the best decisions measured, best first, always with the default."""
        medians = self.medians()
        ranked = sorted(medians, key=medians.__getitem__)[:count]
        return [*ranked, *(d for d in [self.task.default] if d not in ranked)]


def _differences(one: str, other: str) -> int:
    """Return fields that two decisions differ in; decisions of different kinds differ in all."""
    left, right = _fields(one), _fields(other)
    if left.keys() != right.keys():
        return len(left)
    return sum(left[name] != right[name] for name in left)


@cache
def _fields(decision: str) -> dict[str, Any]:
    return json.loads(decision)  # type: ignore[no-any-return]
