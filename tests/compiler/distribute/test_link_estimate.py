"""Delay and rate of a link, from the times of what passed it."""

import pytest

from edgec.compiler.distribute.link_estimate import LinkEstimate
from edgec.compiler.distribute.plan_choice import estimate_of
from edgec.compiler.split.link import Link, Network

DELAY, RATE = 0.02, 1e-7


def test_requests_of_two_sizes_tell_delay_from_rate() -> None:
    link = LinkEstimate(0.005, 1e-6, 0.05, 1e-6)
    for number in range(40):
        size = (10_000, 500_000)[number % 2]
        link.note(2, size, 2 * DELAY + size * RATE, now=number * 0.1)
    assert link.delay == pytest.approx(DELAY, 0.05)
    assert link.seconds_per_byte == pytest.approx(RATE, 0.05)


def test_a_link_that_changes_is_followed_in_a_few_requests() -> None:
    link = LinkEstimate(DELAY)
    for number in range(20):
        rate = RATE if number < 15 else 10 * RATE
        link.note(1, 500_000, DELAY + 500_000 * rate, now=float(number))
    assert link.seconds(1, 500_000) == pytest.approx(DELAY + 500_000 * 10 * RATE, 0.1)


def test_what_is_late_is_believed_to_take_as_long_again() -> None:
    link = LinkEstimate(DELAY, RATE)
    link.note_loss(1, 500_000, 1.0, now=0.0)
    assert link.seconds(1, 500_000) == pytest.approx(2.0)
    link.note_loss(1, 500_000, 0.1, now=0.1)
    assert link.seconds(1, 500_000) == pytest.approx(2.0)


def test_a_network_is_what_is_believed_first() -> None:
    link = estimate_of(Network((Link(8e6, 10.0), Link(16e6, 30.0))))
    assert (link.delay, link.delay_deviation) == pytest.approx((0.02, 0.01))
    assert link.seconds_per_byte == pytest.approx(0.75e-6)
