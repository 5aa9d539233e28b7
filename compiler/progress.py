"""Numbered steps with their time, on stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console


class Progress(Protocol):
    """Told when a step begins; the step ends with the context."""

    def step(self, number: int, total: int, title: str) -> AbstractContextManager[None]:
        """Begin a step."""

    def detail(self, text: str) -> None:
        """More about the step before, for those who ask."""

    def warn(self, text: str) -> None:
        """Something that the user should know."""


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


@dataclass
class Steps:
    """Writes `[3/9] import … 0.4 s`; on a terminal with a spinner while a step runs."""

    verbose: bool = False
    console: Console = field(default_factory=lambda: Console(file=sys.stderr, highlight=False))

    def detail(self, text: str) -> None:
        """Show a line below the step before, if asked for."""
        if self.verbose:
            self.console.print(f"        {text}", markup=False)

    def warn(self, text: str) -> None:
        """Show a line."""
        self.console.print(f"warning: {text}", markup=False)

    @contextmanager
    def step(self, number: int, total: int, title: str) -> Iterator[None]:
        """Show one step; a step that fails is shown as failed."""
        label = f"[{number}/{total}] {title}"
        start = time.monotonic()
        outcome = "failed after "
        try:
            # The spinner draws nothing where there is no terminal.
            with self.console.status(label.replace("[", r"\[")):
                yield
            outcome = ""
        finally:
            seconds = time.monotonic() - start
            self.console.print(f"{label:<40} {outcome}{seconds:.1f} s", markup=False)
