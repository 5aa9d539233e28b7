"""The planner beside all ways that there are, on small random problems."""

from itertools import combinations, permutations

import numpy as np
import pytest

from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.split.planner import OBJECTIVES, Objective, Problem, Step, evaluate, solve


def random_problem(seed: int, devices: int = 3, cuts: int = 7, memory: float = 1e9) -> Problem:
    random = np.random.default_rng(seed)
    work = np.cumsum(np.r_[0, random.uniform(0.1, 5, cuts - 1)])
    weights = np.cumsum(np.r_[0, random.uniform(1e4, 1e6, cuts - 1)])
    sizes = random.uniform(1e3, 1e5, cuts)
    activations = np.maximum(sizes[:, None], sizes[None, :])
    return Problem(
        ms=work[None] * random.uniform(0.2, 3, (devices, 1)),
        weights=np.repeat(weights[None], devices, 0),
        activations=activations,
        send_ms=random.uniform(0.05, 2, cuts),
        source=int(random.integers(-1, devices)),
        memory=random.uniform(0.5, 1, devices) * memory,
    )


def all_ways(problem: Problem) -> list[list[Step]]:
    ways = []
    for count in range(1, problem.devices + 1):
        for inner in combinations(range(1, problem.last), count - 1):
            ends = [0, *inner, problem.last]
            for order in permutations(range(problem.devices), count):
                ways.append([Step(d, ends[n], ends[n + 1]) for n, d in enumerate(order)])
    return ways


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("memory", [1e9, 3e6])
def test_nothing_is_better_than_what_is_chosen(objective: Objective, memory: float) -> None:
    for seed in range(6):
        problem = random_problem(seed, memory=memory)
        allowed = problem.allowed()
        ways = [
            way for way in all_ways(problem) if all(allowed[s.device, s.begin, s.end] for s in way)
        ]
        if not ways:
            with pytest.raises(UnsupportedModelError, match="fits no cut over these devices"):
                solve(problem, objective)
            continue
        best = min(evaluate(problem, way, objective) for way in ways)
        chosen = solve(problem, objective)
        assert chosen in ways
        if objective == "latency":
            assert evaluate(problem, chosen, objective) == pytest.approx(best, rel=1e-5)
        else:
            assert evaluate(problem, chosen, objective) <= 1.05 * best
