from pathlib import Path

import pytest

from edgec.compiler.errors import BadInputError, UsageError
from edgec.compiler.update.fleet import Fleet, FleetLimits, ReleaseStatus
from edgec.compiler.update.reports import Report

LIMITS = FleetLimits(most_failed_percent=10, allowed_failures=1, at_once=3, silence_seconds=100)


class Clock:
    """Seconds that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fleet(tmp_path: Path, clock: Clock) -> Fleet:
    return Fleet(tmp_path / "fleet", LIMITS, clock)


def ask(fleet: Fleet, board: str, number: int = 2) -> tuple[bool, str]:
    answer = fleet.report(board, Report(channel="c", installed=1, wants=number))
    return answer.proceed, answer.reason


def works(fleet: Fleet, board: str) -> None:
    assert fleet.report(board, Report(channel="c", installed=2)).proceed


def fails(fleet: Fleet, board: str) -> None:
    fleet.report(board, Report(channel="c", installed=1, failed={2: "too slow"}))


def status_of(fleet: Fleet, number: int = 2) -> ReleaseStatus:
    (found,) = [release for release in fleet.releases() if release.number == number]
    return found


def test_so_many_boards_install_at_once(fleet: Fleet) -> None:
    assert [ask(fleet, f"b{number}")[0] for number in range(4)] == [True, True, True, False]
    assert ask(fleet, "b3") == (False, "3 other boards are installing it first")
    # Who asks again is not another board.
    assert ask(fleet, "b0") == (True, "")
    works(fleet, "b0")
    assert ask(fleet, "b3") == (True, "")
    assert status_of(fleet) == ReleaseStatus("c", 2, 1, 3, 0, "")


def test_a_release_that_fails_is_stopped(fleet: Fleet) -> None:
    works(fleet, "b0")
    fails(fleet, "b1")
    # One may.
    assert ask(fleet, "b2") == (True, "")
    fails(fleet, "b2")
    expected = "it is stopped: it failed on 2 of 3 boards"
    assert ask(fleet, "b3") == (False, expected)
    # More that work do not let it go on, a person does; then it is not stopped again.
    for number in range(10, 60):
        works(fleet, f"b{number}")
    assert ask(fleet, "b3") == (False, expected)
    fleet.set_stopped("c", 2, "")
    fails(fleet, "b4")
    assert ask(fleet, "b3") == (True, "")
    fleet.set_stopped("c", 2, "by hand")
    assert ask(fleet, "b3") == (False, "it is stopped: by hand")


def test_few_of_many_may_fail(fleet: Fleet) -> None:
    for number in range(40):
        works(fleet, f"b{number}")
    for number in range(40, 44):
        fails(fleet, f"b{number}")
    assert ask(fleet, "new") == (True, "")
    fails(fleet, "b44")
    assert "it failed on 5 of 45 boards" in ask(fleet, "other")[1]


def test_a_board_that_is_not_heard_of_again_failed(fleet: Fleet, clock: Clock) -> None:
    assert ask(fleet, "b0")[0]
    assert ask(fleet, "b1")[0]
    clock.now += 101
    assert ask(fleet, "b2") == (False, "it is stopped: it failed on 2 of 2 boards")
    works(fleet, "b0")
    assert status_of(fleet).failed == 1


def test_a_board_that_works_after_all_did_not_fail(fleet: Fleet) -> None:
    fails(fleet, "b0")
    assert status_of(fleet).failed == 1
    works(fleet, "b0")
    assert status_of(fleet).failed == 0


def test_what_was_reported_outlives_the_coordinator(
    fleet: Fleet, tmp_path: Path, clock: Clock
) -> None:
    fails(fleet, "b0")
    fails(fleet, "b1")
    fleet.report("b0", Report(channel="d", problem="no network"))
    fleet.close()
    clock.now += 7
    again = Fleet(tmp_path / "fleet", LIMITS, clock)
    assert status_of(again).stopped
    first, second, _ = again.boards()
    assert (first.board, first.channel, first.installed, first.failed) == (
        "b0",
        "c",
        1,
        {2: "too slow"},
    )
    assert (second.channel, second.problem, second.seen_seconds) == ("d", "no network", 7)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one board"):
        FleetLimits(at_once=0)
    with pytest.raises(UsageError, match="0 to 100 percent"):
        FleetLimits(most_failed_percent=101)
    (tmp_path / "other").write_text("no database" * 100)
    with pytest.raises(BadInputError, match="other cannot be used: file is not a database"):
        Fleet(tmp_path / "other")
