"""The search, on costs that are made up: what it finds, what it compiles for that, what it says."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from edgec.compiler.errors import BadInputError, UsageError
from edgec.compiler.fit.beliefs import Belief
from edgec.compiler.fit.limits import Costs, Limits, is_dominated, parse_quantity
from edgec.compiler.fit.search import Search, Trial
from edgec.compiler.fit.space import Point, Space
from edgec.compiler.fit.why_not_met import why_not_met

# Time, size and drop of each quantization, as shares of the model as it is.
QUANTIZED = {
    "none": (1.0, 1.0, 0.0),
    "int8-weight-only": (1.0, 0.26, 0.001),
    "int8-dynamic": (0.8, 0.27, 0.002),
    "int8": (0.6, 0.27, 0.003),
}
SPACE = Space(
    quantize=tuple(QUANTIZED),
    steps={"layers": (0, 10), "channels": (0, 10, 20, 30, 40), "low-rank": (0, 25, 50)},
)


def truth(point: Point) -> Costs:
    time, size, drop = QUANTIZED[point.quantize]
    steps = dict(point.steps)
    channels, rank = steps.get("channels", 0) / 100, steps.get("low-rank", 0) / 100
    latency = 10 * time * (1 - channels) * (1 - 0.6 * rank)
    drop += 0.05 * channels**2 + 0.1 * rank**2
    return Costs(latency, drop, 1e6 * size * (1 - channels), 1e5, latency)


@dataclass
class MadeUp:
    """Finds out what is made up, and remembers what it was asked for."""

    compiled: list[Point] = field(default_factory=list)
    predicted: list[Point] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def predict(self, points: Sequence[Point]) -> list[Costs | str]:
        self.predicted += points
        return [
            "layers: no residual block"
            if dict(point.steps).get("layers")
            else Costs(**{**truth(point).fields(), "drop": math.nan})  # type: ignore[arg-type]
            for point in points
        ]

    def evaluate(self, points: Sequence[Point]) -> list[Costs | str]:
        self.compiled += points
        return [truth(point) for point in points]

    def tried(self, trial: Trial, search: Search) -> None:
        self.seen.append(trial.point.label)


def searched(limits: Limits, trials: int = 15) -> tuple[Search, MadeUp]:
    search = Search(SPACE, limits, limits.goal, trials, seed=0, knows_drop=True)
    work = MadeUp()
    search.run(work, work)
    assert work.seen == [point.label for point in work.compiled]
    assert len(set(work.compiled)) == len(work.compiled) <= trials
    assert len(set(work.predicted)) == len(work.predicted)
    return search, work


def grid(limits: Limits) -> list[Point]:
    """Return the points that keep the limits, the best first."""
    points = [p for p in SPACE.points() if "layers" not in dict(p.steps)]
    assert len(points) == 60
    kept = [point for point in points if limits.keeps(truth(point))]
    return sorted(kept, key=lambda point: truth(point)[limits.goal])


@pytest.mark.parametrize(
    "limits", [Limits(drop=0.01), Limits(drop=0.004, size=300e3), Limits(latency=4)]
)
def test_the_best_of_sixty_is_found_with_a_quarter_of_the_compiles(limits: Limits) -> None:
    search, work = searched(limits)
    best = truth(grid(limits)[0])[limits.goal]
    found = search.ranked[0].costs
    assert found is not None
    assert found[limits.goal] <= 1.05 * best
    # Nothing is compiled that is known to exceed a limit before.
    first, *others = work.compiled
    assert first == Point()
    for point in others:
        known = Costs(**{**truth(point).fields(), "drop": math.nan})  # type: ignore[arg-type]
        assert not limits.excess(known)
    front = [trial.costs for trial in search.front if trial.costs is not None]
    assert not any(is_dominated(costs, front, search.objectives) for costs in front)


def test_a_search_is_decided_by_its_facts() -> None:
    one, two = (searched(Limits(drop=0.01), trials=5)[1] for _ in range(2))
    assert one == two


def test_what_cannot_be_met_is_named_with_the_nearest() -> None:
    search, work = searched(Limits(latency=1, drop=0.02))
    assert not search.ranked
    assert 1 < len(work.compiled) <= 15
    message = why_not_met(search)
    limits = Limits(latency=1, drop=0.02)
    points = [p for p in SPACE.points() if "layers" not in dict(p.steps)]

    def misses(costs: Costs) -> float:
        return sum(limits.excess(costs).values())

    found = min(misses(t.costs) for t in search.evaluated if t.costs is not None)
    assert found <= 1.3 * min(misses(truth(point)) for point in points)
    assert "which misses --latency 1 ms (it has " in message
    assert "drop" in message
    search, _ = searched(Limits(size=1000))
    assert "misses --size 1 kB (it has 15" in why_not_met(search)


def test_a_search_in_which_nothing_can_be_compiled_blames_its_input() -> None:
    search, _ = searched(Limits(drop=0.02), trials=1)
    failed = Trial(Point(), failure="calibration data x.npy is no NumPy file")
    search.trials = {Point(): failed}
    with pytest.raises(BadInputError, match="no version can be compiled: calibration data x"):
        why_not_met(search)


def test_belief_learns() -> None:
    points = [Point(), Point("none", (("channels", 20),)), Point("none", (("channels", 50),))]
    belief = Belief("latency", [(p, truth(p).latency) for p in points])
    between = Point("none", (("channels", 40),))
    assert belief.expected(between) == pytest.approx(truth(between).latency, rel=0.15)
    assert belief.chance(between, 100) > 0.99
    assert belief.chance(between, 1) < 0.01


@pytest.mark.parametrize("text", ["20", "ms", "-3ms", "3 parsec", "1e3ms"])
def test_limits_are_checked(text: str) -> None:
    with pytest.raises(UsageError, match=r"--latency .* write 20ms"):
        parse_quantity("latency", text)
    with pytest.raises(UsageError, match="a limit is a positive number"):
        Limits(latency=0)


def test_training_is_for_versions_with_steps_and_keeps_more() -> None:
    space = Space(("none", "int8"), {"channels": (0, 50)}, distill=True)
    labels = [point.label for point in space.points()]
    assert labels == [
        "as it is",
        "channels-50",
        "channels-50,distill",
        "int8",
        "int8 channels-50",
        "int8 channels-50,distill",
    ]
    plain, trained = space.points()[1], space.points()[2]
    assert plain.is_at_least(trained)
    assert not trained.is_at_least(plain)
    assert space.point(space.chosen(trained)) == trained
