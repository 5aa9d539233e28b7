"""Provide phases of a long run: shown, timed, and what they give written down."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from edgec.compiler.support.free_memory import return_free_memory
from edgec.compiler.support.progress import Progress

_T = TypeVar("_T")


class Show(Protocol):
    """Takes what a phase made, and returns it."""

    def __call__(self, result: _T, /) -> _T:
        """Return the result."""
        ...


def unshown(result: _T) -> _T:
    """Return the result; nobody looks at it."""
    return result


@contextmanager
def untold(name: str) -> Iterator[Show]:
    """Run a phase of which nobody is told."""
    del name
    yield unshown


class Phases:
    """Tells the progress of each phase, times it, and hands on what it made.

    Args:
        progress: reports each phase.
        names: the names of all phases of the run, in order.
        written: called with the number, the name and the result of a phase that ended; None
            if nothing is kept.

    Attributes:
        seconds: how long each phase took, by name [s].
    """

    def __init__(
        self,
        progress: Progress,
        names: Sequence[str],
        written: Callable[[int, str, object], None] | None = None,
    ) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._names = names
        self._written = written

    @contextmanager
    def __call__(self, name: str) -> Iterator[Show]:
        """Run a phase; it ends with the context."""
        number = self._names.index(name) + 1
        results: list[object] = []

        def show(result: _T, /) -> _T:
            results.append(result)
            return result

        start = time.monotonic()
        with self._progress.step(number, len(self._names), name):
            yield show
        self.seconds[name] = self.seconds.get(name, 0) + time.monotonic() - start
        if self._written is not None:
            for result in results:
                self._written(number, name, result)
        results.clear()
        return_free_memory()
