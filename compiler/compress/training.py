"""Provide gradient descent that can be stopped and taken up again: Adam, a schedule, a checkpoint.

All that chance decides follows from the seed and the number of the step, so a run that was
killed and resumed gives the weights of one that was not, bit for bit.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import BadInputError
from edgec.compiler.support.files import write_atomically
from edgec.compiler.support.npy_files import NpyError, npz_bytes, read_arrays

Arrays = list[NDArray[Any]]

# Of Kingma and Ba 2015, algorithm 1.
_DECAYS = (0.9, 0.999)
_EPSILON = 1e-8

# Between two checkpoints within an epoch.
CHECKPOINT_SECONDS = 30.0


@dataclass(frozen=True)
class Schedule:
    """A schedule describes what a descent needs to know.

    Attributes:
        epochs: at most.
        rate: largest step size of Adam.
        warmup: share of the steps in which the rate rises.
        patience: epochs without a smaller loss after which it ends.
        clip: largest norm of a gradient; a longer one is shortened.
    """

    epochs: int
    rate: float
    warmup: float
    patience: int
    clip: float


def rate_at(step: int, total: int, schedule: Schedule) -> float:
    """Return the step size: linear warm-up, then half a cosine (Loshchilov and Hutter 2017)."""
    rising = max(1, round(schedule.warmup * total))
    if step < rising:
        return schedule.rate * (step + 1) / rising
    done = (step - rising) / max(1, total - rising)
    return schedule.rate * 0.5 * (1 + math.cos(math.pi * done))


@dataclass
class State:
    """A state describes a descent.

    Attributes:
        values: the values of the parameters.
        first: mean of the gradients, decayed.
        second: mean of their squares, decayed.
        best: values of the smallest loss.
        loss: the smallest; infinite before the first.
        step: how many were taken.
        stale: epochs since the smallest loss.
    """

    values: Arrays
    first: Arrays = field(default_factory=list)
    second: Arrays = field(default_factory=list)
    best: Arrays = field(default_factory=list)
    loss: float = math.inf
    step: int = 0
    stale: int = 0

    def __post_init__(self) -> None:
        """Start with no motion."""
        for moments in (self.first, self.second):
            if not moments:
                moments.extend(np.zeros_like(array) for array in self.values)
        if not self.best:
            self.best.extend(self.values)

    def judge(self, loss: float) -> None:
        """Note the loss of the present values."""
        self.stale += 1
        if loss < self.loss:
            self.loss, self.stale, self.best = loss, 0, list(self.values)

    def descend(self, gradients: Sequence[NDArray[Any]], rate: float, clip: float) -> None:
        """Take one step of Adam."""
        norm = math.sqrt(sum(float(np.vdot(g, g)) for g in gradients))
        scale = np.float32(min(1.0, clip / norm) if norm > 0 else 1.0)
        self.step += 1
        unbiased = [1 - decay**self.step for decay in _DECAYS]
        for index, gradient in enumerate(gradients):
            g = gradient * scale
            for moments, decay, power in zip(
                (self.first, self.second), _DECAYS, (g, g * g), strict=True
            ):
                moments[index] = np.float32(decay) * moments[index] + np.float32(1 - decay) * power
            width = np.sqrt(self.second[index] / np.float32(unbiased[1])) + np.float32(_EPSILON)
            move = np.float32(rate / unbiased[0]) * self.first[index] / width
            self.values[index] = self.values[index] - move


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint describes a file that holds a descent.

    Attributes:
        path: replaced as a whole.
        key: the key of the run; a file of another run is refused.
    """

    path: Path
    key: str

    def save(self, state: State) -> None:
        """Write the state.

        Raises:
            OutputError: the file cannot be written.
        """
        arrays: dict[str, NDArray[Any]] = {
            "key": np.array(self.key),
            "numbers": np.array([state.step, state.stale], np.int64),
            "loss": np.array(state.loss),
        }
        for name in _LISTS:
            for index, array in enumerate(getattr(state, name)):
                arrays[f"{name}.{index}"] = array
        write_atomically(self.path, npz_bytes(arrays))

    def load(self) -> State | None:
        """Return the state of the file, None if there is none.

        Raises:
            BadInputError: it is no checkpoint, or one of another run.
        """
        if not self.path.exists():
            return None
        try:
            arrays = read_arrays(self.path)
            if not isinstance(arrays, dict):
                raise ValueError("it holds one array")
            key = str(arrays["key"])
            step, stale = (int(n) for n in arrays["numbers"])
            lists = {
                name: [arrays[f"{name}.{i}"] for i in range(_count(arrays, name))]
                for name in _LISTS
            }
            loss = float(arrays["loss"])
        except (NpyError, ValueError, KeyError, TypeError) as error:
            raise BadInputError(
                f"checkpoint {self.path} is none of edgec ({error}): delete it or name another file"
            ) from None
        if key != self.key:
            raise BadInputError(
                f"checkpoint {self.path} is of another run (other model, recipe or samples were "
                "given): delete it or name another file"
            )
        return State(**lists, loss=loss, step=step, stale=stale)


_LISTS = ("values", "first", "second", "best")


def _count(arrays: dict[str, NDArray[Any]], name: str) -> int:
    return sum(key.startswith(f"{name}.") for key in arrays)


def descend(
    state: State,
    schedule: Schedule,
    steps_per_epoch: int,
    gradient: Callable[[Arrays, int, int], Arrays],
    loss: Callable[[Arrays], float],
    checkpoint: Checkpoint | None,
    advance: Callable[[], None],
) -> Arrays:
    """Descend from a state; the values of the smallest loss.

    Args:
        state: the begin, or what a checkpoint held.
        schedule: the settings.
        steps_per_epoch: after so many the loss is looked at.
        gradient: called with values, epoch, and place in the epoch.
        loss: on data that gradients do not see.
        checkpoint: written at the end of epochs, and of steps now and then.
        advance: called after each step.
    """
    total = schedule.epochs * steps_per_epoch
    if state.step == 0:
        state.judge(loss(state.values))
    for _ in range(state.step):
        advance()
    saved = time.monotonic()
    while state.step < total and state.stale < schedule.patience:
        epoch, place = divmod(state.step, steps_per_epoch)
        rate = rate_at(state.step, total, schedule)
        state.descend(gradient(state.values, epoch, place), rate, schedule.clip)
        ends = state.step % steps_per_epoch == 0
        if ends:
            state.judge(loss(state.values))
        if checkpoint and (ends or time.monotonic() - saved > CHECKPOINT_SECONDS):
            checkpoint.save(state)
            saved = time.monotonic()
        advance()
    return state.best
