"""The plan that is chosen is the one whose request takes least over the link that was seen."""

import numpy as np
import pytest

from edgec.compiler.distribute.plan_choice import PROBE_SECONDS, PlanChooser, PlanCost
from edgec.compiler.errors import UsageError


def plans() -> list[PlanCost]:
    """Return all on the server, half there, and all here."""
    return [
        PlanCost("server", 0.010, 600_000, 2),
        PlanCost("half", 0.030, 50_000, 2),
        PlanCost("here", 0.100, 0, 0),
    ]


@pytest.mark.parametrize(
    ("bandwidth", "expected"), [(1e9, "server"), (5e6, "half"), (0.5e6, "here")]
)
def test_the_fastest_is_chosen(bandwidth: float, expected: str) -> None:
    chooser = PlanChooser(plans(), latency=0.001)
    for _ in range(20):
        chooser.note(1, 0.030, 0.002 + 50_000 / bandwidth, now=0.0)
    assert chooser.bandwidth == pytest.approx(bandwidth, 0.01)
    assert plans()[chooser.choose()].name == expected


def test_a_link_that_recovers_is_seen_again() -> None:
    chooser = PlanChooser(plans())
    chooser.note(1, 0.03, 0.01, now=0.0)
    chooser.note_loss(1, 1.0, now=1.0)
    assert chooser.choose() == 2
    # A request beside it says that the link is back; it is not asked twice.
    assert chooser.probe(now=1.0 + PROBE_SECONDS / 2) is None
    assert chooser.probe(now=1.5 + PROBE_SECONDS) == 1
    assert chooser.probe(now=1.5 + PROBE_SECONDS) is None
    chooser.note(1, 0.03, 0.01, now=2.6)
    assert chooser.choose() in (0, 1)
    with pytest.raises(UsageError, match="no plan"):
        PlanChooser([])


def test_choices_over_a_trace_are_near_the_best_of_each_moment() -> None:
    """Over bandwidths that drift, in p50 and p95 of the time of a request."""
    random = np.random.default_rng(0)
    costs = plans()
    spent, best = [], []
    chooser = PlanChooser(plans())
    bandwidth = 5e6
    for step in range(2000):
        bandwidth = float(np.clip(bandwidth * np.exp(random.normal(0, 0.03)), 1e5, 1e8))
        times = [c.compute_s + (c.size_bytes / bandwidth) for c in costs]
        number = chooser.choose()
        chooser.note(
            number, costs[number].compute_s, times[number] - costs[number].compute_s, step * 0.1
        )
        spent.append(times[number])
        best.append(min(times))
    for share in (50, 95):
        assert np.percentile(spent, share) <= 1.05 * np.percentile(best, share)
