"""Measure the planner of split models: against all ways that there are, and its time.

    python tests/benchmarks/benchmark_split_planner.py

For 200 random sets of 2 to 4 devices and models of 4 to 9 parts it prints how far the chosen way is
from the best of all, the mean and the worst; then the seconds for 100 parts and 8 devices.
"""

import sys
import time
from itertools import combinations, permutations

import numpy as np

from edgec.compiler.split.planner import OBJECTIVES, Problem, Step, evaluate, solve

SETS = 200


def random_problem(seed: int, devices: int, cuts: int, memory: float = 1e9) -> Problem:
    """Return a model of random work, weights and values over devices of random speed."""
    random = np.random.default_rng(seed)
    work = np.cumsum(np.r_[0, random.uniform(0.1, 5, cuts - 1)])
    weights = np.cumsum(np.r_[0, random.uniform(1e4, 1e6, cuts - 1)])
    sizes = random.uniform(1e3, 1e5, cuts)
    return Problem(
        ms=work[None] * random.uniform(0.2, 3, (devices, 1)),
        weights=np.repeat(weights[None], devices, 0),
        activations=np.maximum(sizes[:, None], sizes[None, :]),
        send_ms=random.uniform(0.05, 2, cuts),
        source=int(random.integers(-1, devices)),
        memory=random.uniform(0.3, 1, devices) * memory,
    )


def best_of_all(problem: Problem, objective: str) -> float:
    """Return the cost of the best of all ways; endless if there is none."""
    allowed, best = problem.allowed(), np.inf
    for count in range(1, problem.devices + 1):
        for inner in combinations(range(1, problem.last), count - 1):
            ends = [0, *inner, problem.last]
            for order in permutations(range(problem.devices), count):
                way = [Step(d, ends[n], ends[n + 1]) for n, d in enumerate(order)]
                if all(allowed[s.device, s.begin, s.end] for s in way):
                    best = min(best, evaluate(problem, way, objective))  # type: ignore[arg-type]
    return best


def main() -> int:
    """Print both tables."""
    print("objective    sets  mean excess  worst excess")
    for objective in OBJECTIVES:
        excess = []
        for seed in range(SETS):
            random = np.random.default_rng(1000 + seed)
            devices, cuts = int(random.integers(2, 5)), int(random.integers(5, 9))
            problem = random_problem(seed, devices, cuts, 1e9 if seed % 2 else 4e6)
            best = best_of_all(problem, objective)
            if np.isfinite(best):
                found = evaluate(problem, solve(problem, objective), objective)  # type: ignore[arg-type]
                excess.append(found / best - 1)
        print(f"{objective:11s}  {len(excess):4d}  {np.mean(excess):10.4%}  {max(excess):11.4%}")
    print("\nobjective    seconds for 100 parts and 8 devices: median, worst of 10")
    for objective in OBJECTIVES:
        seconds = []
        for seed in range(10):
            problem = random_problem(seed, 8, 101, 1e9 if seed % 2 else 4e7)
            start = time.perf_counter()
            solve(problem, objective)  # type: ignore[arg-type]
            seconds.append(time.perf_counter() - start)
        print(f"{objective:11s}  {np.median(seconds):6.2f}  {max(seconds):6.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
