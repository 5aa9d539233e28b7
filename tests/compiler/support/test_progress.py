"""Progress where there is no terminal: a line now and then, with the time that is left."""

import io

import pytest
from rich.console import Console

from edgec.compiler.support import progress
from edgec.compiler.support.progress import Steps, counted


class _Clock:
    """A clock that goes two seconds further each time it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 2
        return self.now


def _said(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(progress, "time", _Clock())
    stream = io.StringIO()
    steps = Steps(console=Console(file=stream, force_terminal=terminal, highlight=False))
    assert list(counted(range(10), steps, "rounding", 10)) == list(range(10))
    return stream.getvalue()


def test_lines_come_five_seconds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    # Read at 2 s, then after each item at 4, 6, 8 s, and so on.
    assert _said(False, monkeypatch).split("\n") == [
        "        rounding 3/10, 14 s left",
        "        rounding 6/10, 8 s left",
        "        rounding 9/10, 2 s left",
        "",
    ]


def test_a_terminal_has_the_spinner_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "rounding" not in _said(True, monkeypatch)


def test_nothing_to_do_says_nothing() -> None:
    assert list(counted([], Steps(), "rounding", None)) == []
