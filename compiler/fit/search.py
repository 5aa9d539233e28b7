"""Search the versions of a model for the best that keeps the limits.

Points are proposed by Optuna (a multi-objective tree-structured Parzen estimator with constraints,
Ozaki et al. 2022) and by what is believed of points from those that are known (`beliefs.py`). They
are predicted first. Of those that may be better than all before, the ones are compiled that promise
most. Points come in batches of one size, whatever number of workers there is, and each batch is
decided by the facts before it alone, so that a search gives the same on any pool.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from edgec.compiler.fit.beliefs import Beliefs
from edgec.compiler.fit.limits import Costs, Limits, Quantity, is_dominated
from edgec.compiler.fit.space import Point, Space

BATCH = 2
# Predictions before each batch, and if none of them is promising.
FRESH = 6
MOST_FRESH = 48
# What is less faster or smaller is not worth a compile.
LEAST_GAIN = 0.01
# A drop that exceeds its limit by this part of it counts as more than chance.
CLEAR_EXCESS = 0.25
# Points that are compiled where nothing keeps the limits, to say what comes nearest.
NEAREST = 4
# What Optuna may be asked for half of a batch of predictions; it does not know what is ruled out.
ASKS = 16


@dataclass(frozen=True)
class Trial:
    """A trial describes what is known of one point.

    Attributes:
        point: the version of the model.
        predicted: what it was predicted to cost; None if that failed.
        costs: what it costs, evaluated or compiled; None if it was not evaluated.
        failure: why it cannot be compiled; empty if it can.
        measured: whether the latency was measured, and not predicted.
    """

    point: Point
    predicted: Costs | None = None
    costs: Costs | None = None
    failure: str = ""
    measured: bool = False


class Work(Protocol):
    """Work finds out facts about points, and keeps them."""

    def predict(self, points: Sequence[Point]) -> list[Costs | str]:
        """Return what points are predicted to cost, or why they cannot be compiled."""
        ...

    def evaluate(self, points: Sequence[Point]) -> list[Costs | str]:
        """Return what points cost, or why they cannot be compiled."""
        ...


class Watcher(Protocol):
    """A watcher is notified of each trial that was evaluated, and of the best so far."""

    def tried(self, trial: Trial, search: "Search") -> None:
        """Take note of it."""
        ...


@dataclass
class Search:
    """A search goes through the points of a space.

    Attributes:
        space: what is searched.
        limits: what must be kept.
        goal: what is made small.
        budget: points to evaluate.
        seed: the seed of everything random.
        knows_drop: whether accuracy is measured.
        trials: what is known, by point.
        reason: why it ended.
    """

    space: Space
    limits: Limits
    goal: Quantity
    budget: int
    seed: int
    knows_drop: bool
    trials: dict[Point, Trial] = field(default_factory=dict)
    reason: str = ""

    @property
    def evaluated(self) -> list[Trial]:
        """Return the trials that were compiled."""
        return [trial for trial in self.trials.values() if trial.costs is not None]

    @property
    def attempts(self) -> int:
        """Return how many points were compiled, or could not be."""
        failed = [t for t in self.trials.values() if t.failure and t.predicted is not None]
        return len(self.evaluated) + len(failed)

    @property
    def objectives(self) -> tuple[Quantity, ...]:
        """Return what a front is made of: time, accuracy, and what else is limited or the goal."""
        wanted: list[Quantity] = ["latency"]
        if self.knows_drop:
            wanted.append("drop")
        more: tuple[Quantity, ...] = ("size", "memory")
        wanted += [q for q in more if q in self.limits.given or q == self.goal]
        return tuple(wanted)

    @property
    def front(self) -> list[Trial]:
        """Return the evaluated trials that no other one is better than in all, fastest first."""
        costs = [trial.costs for trial in self.evaluated if trial.costs is not None]
        best = [
            trial
            for trial in self.evaluated
            if trial.costs is not None and not is_dominated(trial.costs, costs, self.objectives)
        ]
        return sorted(best, key=self.order)

    @property
    def ranked(self) -> list[Trial]:
        """Return the trials that keep all limits, the best first."""
        return sorted((t for t in self.evaluated if self._keeps(t)), key=self.order)

    def _keeps(self, trial: Trial) -> bool:
        assert trial.costs is not None
        return not self.limits.excess(trial.costs)

    def order(self, trial: Trial, ratio: float = 1.0) -> tuple[float, ...]:
        """Return what trials are sorted by: the goal, then the rest.

        Args:
            trial: one that was evaluated.
            ratio: by how much latencies are longer than predicted.
        """
        assert trial.costs is not None
        costs = trial.costs
        if not trial.measured:
            costs = replace(costs, latency=costs.latency * ratio)
        rest = [q for q in self.objectives if q != self.goal]
        values = [costs[quantity] for quantity in (self.goal, *rest)]
        return tuple(math.inf if math.isnan(value) else value for value in values)

    def run(self, work: Work, watcher: Watcher) -> None:
        """Search until the budget is spent, or nothing is left that could be better."""
        proposals = _Proposals(self)
        first, *others = self.space.starts()
        self._evaluate([first], work, watcher, proposals)
        self._predict(others, work)
        while self.attempts < self.budget:
            size = min(BATCH, self.budget - self.attempts)
            predictions, promising = 0, self._promising()
            while predictions < FRESH or (len(promising) < size and predictions < MOST_FRESH):
                points = proposals.next(FRESH)
                if not points:
                    break
                predictions += len(points)
                self._predict(points, work)
                for point in points:
                    if not self.is_promising(point):
                        proposals.tell(self.trials[point])
                promising = self._promising()
            if not promising:
                left = min(NEAREST, self.budget - self.attempts)
                self._evaluate(self._nearest(left), work, watcher, proposals)
                break
            self._evaluate(self._most_promising(promising, size), work, watcher, proposals)
        spent = self.attempts >= self.budget
        self.reason = f"{self.budget} trials" if spent else "nothing is left that could be better"

    def _promising(self) -> list[Trial]:
        return [t for t in self.trials.values() if self.is_promising(t.point)]

    def _most_promising(self, promising: Sequence[Trial], count: int) -> list[Point]:
        """Return the points that are likely to keep the drop and gain much."""
        worth = self.beliefs().worth
        # The mildest of equals, as they were found.
        ordered = sorted(promising, key=lambda trial: worth(trial.point), reverse=True)
        return [trial.point for trial in ordered[:count]]

    def beliefs(self) -> Beliefs:
        """Return what is guessed of points, from all that is known."""
        known = self.trials.values()
        return Beliefs(
            self.limits,
            self.goal,
            {t.point: t.predicted for t in known if t.predicted is not None},
            {t.point: t.costs for t in known if t.costs is not None},
            self.ranked[0].point if self.ranked else None,
            self.space.programs,
        )

    def _nearest(self, count: int) -> list[Point]:
        """Return what is predicted to miss the limits by least, where nothing keeps them."""
        if self.ranked:
            return []
        drop = self.beliefs().drop
        near: list[tuple[float, int, Point]] = []
        for place, trial in enumerate(self.trials.values()):
            if trial.predicted is not None and trial.costs is None and not trial.failure:
                guessed = replace(trial.predicted, drop=drop(trial.point))
                near.append((sum(self.limits.excess(guessed).values()), place, trial.point))
        return [point for _, _, point in sorted(near)[:count]]

    def _predict(self, points: Sequence[Point], work: Work) -> None:
        for point, found in zip(points, work.predict(points), strict=True):
            if isinstance(found, str):
                self.trials[point] = Trial(point, failure=found)
            else:
                self.trials[point] = Trial(point, predicted=found)

    def _evaluate(
        self, points: Sequence[Point], work: Work, watcher: Watcher, proposals: "_Proposals"
    ) -> None:
        missing = [point for point in points if point not in self.trials]
        self._predict(missing, work)
        for point, found in zip(points, work.evaluate(points), strict=True):
            trial = self.trials[point]
            if isinstance(found, str):
                trial = replace(trial, failure=found)
            else:
                trial = replace(trial, costs=found)
            self.trials[point] = trial
            proposals.tell(trial)
            watcher.tried(trial, self)

    def may_be_better(self, point: Point) -> bool:
        """Return whether a point may keep the limits and be better, for what others say of it."""
        limit = self.limits.drop
        for trial in self.trials.values():
            # What cannot be done to the model as it is cannot be done with more.
            if trial.failure and trial.predicted is None and point.is_at_least(trial.point):
                return False
            # Nor is what cannot be trained.
            if trial.failure and trial.point.distill and point.distill:
                return False
        for trial in self.evaluated:
            assert trial.costs is not None
            if not point.is_at_least(trial.point):
                continue
            if limit is not None and trial.costs.drop > limit * (1 + CLEAR_EXCESS):
                return False
            if self.goal == "drop" and self._keeps(trial):
                return False
        return True

    def is_promising(self, point: Point) -> bool:
        """Return whether a predicted point is worth a compile."""
        trial = self.trials[point]
        if trial.predicted is None or trial.failure or trial.costs is not None:
            return False
        least = replace(trial.predicted, latency=trial.predicted.latency_low)
        if self.limits.excess(least) or not self.may_be_better(point):
            return False
        best = self.ranked[0] if self.ranked else None
        if best is None or best.predicted is None or best.costs is None:
            return True
        if self.goal == "drop":
            return best.costs.drop > 0
        return trial.predicted[self.goal] < (1 - LEAST_GAIN) * best.predicted[self.goal]


class _Proposals:
    """Asks Optuna for points."""

    def __init__(self, search: Search) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._search = search
        self._distributions: dict[str, Any] = {
            name: optuna.distributions.CategoricalDistribution(values)
            for name, values in search.space.choices.items()
        }
        sampler = optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=8)
        directions = [optuna.study.StudyDirection.MINIMIZE] * len(search.objectives)
        self._study = optuna.create_study(directions=directions, sampler=sampler)
        self._asked: dict[Point, Any] = {}
        self._all = search.space.points()

    def next(self, count: int) -> list[Point]:
        """Return points that nothing is known of and that may be better; fewer if there are few."""
        search = self._search
        left = [p for p in self._all if p not in search.trials and search.may_be_better(p)]
        worth = search.beliefs().worth
        found = sorted(left, key=worth, reverse=True)[: (count + 1) // 2]
        allowed = set(left).difference(found)
        for _ in range(ASKS):
            if len(found) == count:
                break
            trial = self._study.ask(self._distributions)
            point = search.space.point(trial.params)
            if point in allowed:
                allowed.discard(point)
                self._asked[point] = trial
                found.append(point)
            else:
                self._study.tell(trial, state=_failed())
        return found

    def tell(self, trial: Trial) -> None:
        """Say what is known of a point; one that is not worth a compile breaks a constraint."""
        costs = trial.costs or trial.predicted
        asked = self._asked.pop(trial.point, None)
        if asked is None:
            self._study.enqueue_trial(self._search.space.chosen(trial.point))
            asked = self._study.ask(self._distributions)
        if costs is None or trial.failure:
            self._study.tell(asked, state=_failed())
            return
        values = [costs[quantity] for quantity in self._search.objectives]
        excess = sum(min(e, 1e6) for e in self._search.limits.excess(costs).values())
        if trial.costs is None:
            excess += 1
        asked.set_constraint("limits", excess)
        self._study.tell(asked, [1.0 if math.isnan(value) else value for value in values])


def _failed() -> Any:
    import optuna

    return optuna.trial.TrialState.FAIL
