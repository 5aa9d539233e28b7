"""Provide numbered steps with their time, on stderr."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol, TypeVar

from rich.console import Console
from rich.status import Status

_Item = TypeVar("_Item")

# Between two lines about one step where there is no terminal.
LINE_SECONDS = 5.0


class Progress(Protocol):
    """Progress is notified when a step begins; the step ends with the context."""

    def step(self, number: int, total: int, title: str) -> AbstractContextManager[None]:
        """Begin a step."""

    def detail(self, text: str) -> None:
        """Say more about the step before, for those who ask."""

    def warn(self, text: str) -> None:
        """Say something that the user should know."""

    def parts(self, title: str, total: int | None) -> AbstractContextManager[Callable[[], None]]:
        """Begin work in `total` equal parts, None if unknown; each call is one part done."""


def counted(
    items: Iterable[_Item], progress: "Progress", title: str, total: int | None
) -> Iterator[_Item]:
    """Yield the items, and show that each is done when the next one is asked for.

    The time before the first item is not counted: that is when they are all prepared.
    """
    rest = iter(items)
    first = next(rest, None)
    if first is None:
        return
    with progress.parts(title, total) as advance:
        for item in chain([first], rest):
            yield item
            advance()


@dataclass
class Silent:
    """Shows nothing."""

    @contextmanager
    def step(self, number: int, total: int, title: str) -> Iterator[None]:
        """Do nothing."""
        yield

    def detail(self, text: str) -> None:
        """Do nothing."""

    def warn(self, text: str) -> None:
        """Do nothing."""

    @contextmanager
    def parts(self, title: str, total: int | None) -> Iterator[Callable[[], None]]:
        """Do nothing."""
        yield lambda: None


@dataclass
class Steps:
    """Writes `[3/9] import … 0.4 s`; on a terminal with a spinner while a step runs.

    Elsewhere, where a spinner draws nothing, a step that takes long gets a line now and then.
    """

    verbose: bool = False
    console: Console = field(default_factory=lambda: Console(file=sys.stderr, highlight=False))
    _status: Status | None = field(default=None, init=False, repr=False)
    _label: str = field(default="", init=False, repr=False)

    def detail(self, text: str) -> None:
        """Show a line below the step before, if asked for."""
        if self.verbose:
            self.console.print(f"        {text}", markup=False)

    def warn(self, text: str) -> None:
        """Show a line."""
        self.console.print(f"warning: {text}", markup=False)

    @contextmanager
    def parts(self, title: str, total: int | None) -> Iterator[Callable[[], None]]:
        """Count beside the spinner, or in lines, with the time that is left."""
        start, done = time.monotonic(), 0
        told = start

        def advance() -> None:
            nonlocal done, told
            done += 1
            now = time.monotonic()
            of = f"/{total}, {(now - start) / done * (total - done):.0f} s left" if total else ""
            if self._status is not None:
                self._status.update(f"{self._label}: {title} {done}{of}")
            if not self.console.is_terminal and now - told >= LINE_SECONDS:
                told = now
                self.console.print(f"        {title} {done}{of}", markup=False)

        yield advance
        if self._status is not None:
            self._status.update(self._label)

    @contextmanager
    def step(self, number: int, total: int, title: str) -> Iterator[None]:
        """Show one step; a step that fails is shown as failed."""
        label = f"[{number}/{total}] {title}"
        start = time.monotonic()
        outcome = "failed after "
        try:
            # The spinner draws nothing where there is no terminal.
            self._label = label.replace("[", r"\[")
            with self.console.status(self._label) as self._status:
                yield
            outcome = ""
        finally:
            self._status = None
            seconds = time.monotonic() - start
            self.console.print(f"{label:<40} {outcome}{seconds:.1f} s", markup=False)
