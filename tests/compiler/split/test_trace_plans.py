"""The few plans that matter over a network, against all ways that there are."""

from itertools import permutations

import numpy as np
import pytest

from edgec.compiler.split.link import Link, Network
from edgec.compiler.split.planner import Problem, Step
from edgec.compiler.split.trace_plans import cost_of, plans_over

SIZES = [600_000, 200_000, 60_000, 20_000, 4_000]


def problem() -> Problem:
    """Return a board and a server that is eight times as fast, and what shrinks on the way."""
    server = np.array([0.0, 10, 40, 90, 100])
    count = len(server)
    return Problem(
        ms=np.stack([8 * server, server]),
        weights=np.zeros((2, count)),
        activations=np.zeros((count, count)),
        send_ms=np.zeros(count),
        source=0,
        memory=np.full(2, 1e9),
    )


def network(seed: int = 0) -> Network:
    """Return links from 0.3 to 300 Mbit/s."""
    random = np.random.default_rng(seed)
    rates = 10 ** random.uniform(5.5, 8.5, 200)
    return Network(tuple(Link(float(rate), 5.0) for rate in rates))


def fastest_of_all(link: Link) -> float:
    """Return what the best of all ways takes over a link [ms]."""
    crossing, last = np.array(SIZES, float), problem().last
    ways = [(Step(device, 0, last),) for device in (0, 1)]
    ways += [
        (Step(one, 0, cut), Step(other, cut, last))
        for one, other in permutations((0, 1))
        for cut in range(1, last)
    ]
    delay, per_byte = np.array([link.delay_ms]), np.array([8e3 / link.bits_per_second])
    return min(float(cost_of(problem(), crossing, way).ms(delay, per_byte)[0]) for way in ways)


def test_kept_plans_are_near_the_best_over_every_link() -> None:
    kept = plans_over(problem(), SIZES, network())
    assert 2 < len(kept) <= 4
    assert sum(one.share for one in kept) == pytest.approx(1)
    alone = plans_over(problem(), SIZES, network(), most=1)
    excess = {"kept": [], "alone": []}
    for link in network(1).links:
        delay, per_byte = np.array([link.delay_ms]), np.array([8e3 / link.bits_per_second])
        best = fastest_of_all(link)
        for name, plans in (("kept", kept), ("alone", alone)):
            excess[name].append(min(float(p.ms(delay, per_byte)[0]) for p in plans) / best - 1)
    assert np.mean(excess["kept"]) < 0.02
    # One plan for all links is far from that.
    assert np.mean(excess["alone"]) > 0.2


def test_links_that_are_alike_need_one_plan() -> None:
    kept = plans_over(problem(), SIZES, Network((Link(1e9, 0.1), Link(1e9, 0.2))))
    assert [one.share for one in kept] == [1.0]
