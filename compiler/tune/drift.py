"""Provide times on one scale: machines run faster and slower while they are measured."""

import random
import statistics
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from edgec.compiler.tune.search import TaskSearch

# A step that takes less says nothing about how fast the machine is at the moment.
LEAST_CONTROL_SECONDS = 2e-5
# How much of the model's time stays as it is in every round, to show the machine's drift.
CONTROL_SHARE = 0.15


@dataclass
class ModelTimes:
    """Model times describe times of the model's steps, on the scale of the first round.

    Attributes:
        searches: what was measured of the kernels that are tuned, by number of the task.
        fixed: times of the steps that are not tuned [s], by step.
    """

    searches: Mapping[int, TaskSearch]
    fixed: dict[int, float] = field(default_factory=dict)

    def fix(self, seconds: Sequence[float], drift: float) -> None:
        """Take the times of the steps that are not tuned from a round, once."""
        if not self.fixed:
            tuned = {step for search in self.searches.values() for step in search.task.steps}
            self.fixed = {i: s / drift for i, s in enumerate(seconds) if i not in tuned}

    def calls(self, seconds: Sequence[float]) -> dict[int, float]:
        """Return the mean time of one call of each task, from the times of all steps."""
        return {
            number: statistics.fmean(seconds[step] for step in search.task.steps)
            for number, search in self.searches.items()
        }

    def drift(
        self,
        decisions: Mapping[int, str],
        explored: Set[int],
        measured: Sequence[float],
        calls: Mapping[int, float],
    ) -> float:
        """Return how much slower the machine is than before, by what did not change.

        The scale is that of the first round, or of the database where there is one.
        """
        now, before = 0.0, 0.0
        for step, seconds in self.fixed.items():
            if seconds > LEAST_CONTROL_SECONDS:
                now, before = now + measured[step], before + seconds
        for number, search in self.searches.items():
            known = search.seconds(search.task.default)
            is_default = decisions[number] == search.task.default
            if is_default and number not in explored and np.isfinite(known):
                steps = len(search.task.steps)
                now, before = now + calls[number] * steps, before + known * steps
        return min(4.0, max(0.25, now / before)) if before > LEAST_CONTROL_SECONDS else 1.0

    def model_seconds(self) -> float:
        """Return the time of the model by the best decisions so far [s]."""
        tuned = sum(s.seconds(s.best) * len(s.task.steps) for s in self.searches.values())
        return tuned + sum(self.fixed.values())

    def controls(self, generator: random.Random) -> set[int]:
        """Return kernels that stay with their default in the next round, some of the model's time.

        They tell how fast the machine is at the moment. The best decisions would not do: a lucky
        time made some of them the best, and what follows always looks slow beside it.
        """
        whole = self.model_seconds()
        covered = sum(s for s in self.fixed.values() if s > LEAST_CONTROL_SECONDS)
        chosen: set[int] = set()
        order = sorted(self.searches)
        generator.shuffle(order)
        for number in order[: len(order) // 2]:
            if covered >= CONTROL_SHARE * whole:
                break
            search = self.searches[number]
            seconds = search.seconds(search.task.default) * len(search.task.steps)
            if np.isfinite(seconds):
                chosen.add(number)
                covered += seconds
        return chosen
