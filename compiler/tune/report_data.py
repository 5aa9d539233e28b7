"""Describe what a tuning run is asked for, what it tells on the way, and what it finds."""

from dataclasses import dataclass
from typing import Any, Protocol

from edgec.compiler.tune.tasks import Task


@dataclass(frozen=True)
class TaskResult:
    """A task result describes one kernel at the end.

    Attributes:
        task: the kernel.
        before: time of a call by the default decision [s].
        after: by the chosen one.
        decision: as text.
        trials: decisions that were measured.
        rejected: a faster decision whose result was wrong, with the reason.
    """

    task: Task
    before: float
    after: float
    decision: str
    trials: int
    rejected: str = ""

    def gflops(self, seconds: float) -> float:
        """Return speed at a time [GFLOP/s]."""
        return self.task.flops / seconds / 1e9


@dataclass(frozen=True)
class TuneReport:
    """A tune report describes what a run found.

    Attributes:
        before: time of the model by the default decisions [s], every call counted.
        after: by the chosen ones, measured in turn with the others.
        trials: decisions that were measured in this run.
        seconds: how long it took.
        tasks: kernels, largest first.
        history: seconds, trials and time of the model by the best decisions then.
        reason: why it ended.
        noisy: whether the machine was too noisy for some of the comparisons at the end.
    """

    before: float
    after: float
    trials: int
    seconds: float
    tasks: tuple[TaskResult, ...]
    history: tuple[tuple[float, int, float], ...]
    reason: str
    noisy: bool = False

    @property
    def gained(self) -> bool:
        """Return whether the records make the model faster."""
        return self.after < self.before


class TuningObserver(Protocol):
    """A tuning observer is notified of what happens."""

    def event(self, kind: str, **fields: Any) -> None:
        """Take note of an event.

        It is one of `round`, `failed`, `rejected`, `rest`, `back`, `warning`, `phase`, `end`.
        """
