"""Run a cascade: a first part, and a large model where the first part is not sure.

The first part is a small model, or the half of a model with an early exit that is on this machine.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.cascade.cascade import LARGE, SMALL, Cascade
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.exits.heads import confidence_of, softmax
from edgec.compiler.ir.early_exits import ANSWERED_BY
from edgec.compiler.ir.signature import Signature, Tensors, TensorSpec

Outputs = dict[str, NDArray[Any]]
Ask = Callable[[Tensors], Outputs | None]
"""Gives the answer of the large model; None if it cannot be reached."""

# Without an answer of the large model for so long, it is asked again to see.
RETRY_SECONDS = 1.0
# Part of an estimate that one observation replaces.
_NEWEST = 0.3
# It may take so much longer than it did, and a thread so long to wake up.
_MARGIN, _WAKING_SECONDS = 1.2, 0.002


@dataclass(frozen=True)
class FirstAnswer:
    """A first answer is what the part of a cascade says that is asked first.

    Attributes:
        outputs: by name, as the large model calls them.
        sure: whether they are enough.
        handed: what the large model takes if they are not.
    """

    outputs: Outputs
    sure: bool
    handed: Tensors


class First(Protocol):
    """The part of a cascade that is asked first."""

    def run(self, inputs: Tensors) -> FirstAnswer:
        """Return its answer.

        Raises:
            TensorInputError: the inputs do not fit.
        """
        ...


class SmallModel:
    """A small model is a classifier of its own."""

    def __init__(self, cascade: Cascade, small: Bundle, wanted: str, threads: int = 0) -> None:
        """Load it.

        Args:
            cascade: when it is sure.
            small: the bundle.
            wanted: what the large model calls the output.
            threads: to compute on; 0 is one for each core.
        """
        self._cascade, self._wanted = cascade, wanted
        self._session = small.open(threads)
        self._given = class_output(small.manifest.signature).name

    def run(self, inputs: Tensors) -> FirstAnswer:
        """Return its answer: sure if the largest probability of each sample is enough."""
        scores = self._session.run(inputs)[self._given]
        cascade = self._cascade
        (confidence,) = confidence_of(scores, cascade.probabilities, len(scores))
        sure = float(confidence) >= cascade.threshold
        if cascade.large_probabilities and not cascade.probabilities:
            scores = softmax(scores)
        elif cascade.probabilities and not cascade.large_probabilities:
            scores = np.log(np.maximum(scores, np.finfo(np.float32).tiny))
        return FirstAnswer({self._wanted: scores}, sure, inputs)


class CascadeSession:
    """A cascade session answers by its first part where that is sure, else by the large model.

    The first part answers too where the large model cannot be reached, or would be too late. One
    thread calls it.

    Attributes:
        signature: what it takes and gives.
        index_bounds: rows by the name of an input that chooses from them.
        escalated: share of calibration samples that the large model was asked for.
        answers: how many requests the `first` part answered as it was sure, the `large` model, and
            the first part although it was not sure, as the other could not be reached (`lost`) or
            would have been too late (`late`).
        large_seconds: how long the large model takes, as last seen [s]; 0 before it was asked.
        on_close: lets go of what asks the large model.
    """

    def __init__(
        self,
        first: First,
        ask: Ask,
        signature: Signature,
        escalated: float,
        index_bounds: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Begin.

        Args:
            first: the part that is asked first.
            ask: asks the large model.
            signature: what both together take and give.
            escalated: share of requests that the large model is asked for.
            index_bounds: rows that an input chooses from, by name.
        """
        self.signature, self.escalated = signature, escalated
        self.index_bounds = dict(index_bounds)
        self.answers: Counter[str] = Counter()
        self.large_seconds = 0.0
        self.lock = threading.RLock()
        self.on_close: Callable[[], None] = lambda: None
        self._first, self._ask = first, ask
        self._pool = ThreadPoolExecutor(1, "edgec-cascade")
        self._waiting: Future[Outputs | None] | None = None
        self._lost_at = self._asked_at = -RETRY_SECONDS

    @classmethod
    def open(cls, folder: str | Path, ask: Ask | None = None, threads: int = 0) -> Self:
        """Open a cascade.

        Args:
            folder: what `edgec cascade` wrote.
            ask: asks the large model; None: it is loaded here.
            threads: that each model computes on.

        Raises:
            BundleError: there is no cascade, or a bundle of it is for another machine.
        """
        folder = Path(folder)
        cascade = Cascade.load(folder)
        small, large = Bundle.load(folder / SMALL), Bundle.load(folder / LARGE)
        classes = class_output(large.manifest.signature)
        signature = Signature(large.manifest.signature.inputs, (classes,))
        return cls(
            SmallModel(cascade, small, classes.name, threads),
            ask or large.open(threads).run,
            signature,
            cascade.escalated,
            large.manifest.settings.index_bounds,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        inputs: Tensors | NDArray[Any],
        program: str | None = None,
        *,
        deadline: float | None = None,
    ) -> Outputs:
        """Run once.

        Args:
            inputs: every input by name; of a model of one input the array itself will do.
            program: None; a cascade has one.
            deadline: seconds from now; where the large model would be later the first part answers.

        Returns:
            Outputs by name, as the large model calls them.

        Raises:
            TensorInputError: the inputs do not fit.
        """
        del program
        began = time.monotonic()
        with self.lock:
            if isinstance(inputs, np.ndarray):
                inputs = {self.signature.inputs[0].name: inputs}
            first = self._first.run(inputs)
            own, named = first.outputs, first.handed
            if first.sure:
                return self._answered("first", own)
            left = None if deadline is None else deadline - (time.monotonic() - began)
            now = time.monotonic()
            if now - self._lost_at < RETRY_SECONDS:
                return self._answered("lost", own)
            slow = left is not None and self.large_seconds * _MARGIN + _WAKING_SECONDS > left
            if slow and now - self._asked_at < RETRY_SECONDS:
                return self._answered("late", own)
            if self._waiting is not None and not self._waiting.done():
                # It has not answered the request before.
                return self._answered("late", own)
            return self._escalated(named, own, left)

    def ask_first(self, inputs: Tensors) -> FirstAnswer:
        """Return what the first part says, whether it is sure or not."""
        return self._first.run(inputs)

    def ask_large(self, handed: Tensors) -> Outputs | None:
        """Return what the large model makes of what is handed over; None: it is out of reach."""
        return self._ask(handed)

    def _escalated(self, inputs: Tensors, own: Outputs, left: float | None) -> Outputs:
        """Ask the large model, for so many seconds at most."""
        began = self._asked_at = time.monotonic()
        if left is None:
            found = self._ask(inputs)
        else:
            self._waiting = self._pool.submit(self._ask, inputs)
            try:
                found = self._waiting.result(max(0.0, left - _WAKING_SECONDS))
            except FutureTimeoutError:
                self.large_seconds = max(self.large_seconds, time.monotonic() - began)
                return self._answered("late", own)
        if found is None:
            self._lost_at = time.monotonic()
            return self._answered("lost", own)
        seconds = time.monotonic() - began
        found = {spec.name: found[spec.name] for spec in self.signature.outputs}
        before = self.large_seconds or seconds
        self.large_seconds = before + _NEWEST * (seconds - before)
        return self._answered("large", found)

    def _answered(self, by: str, outputs: Outputs) -> Outputs:
        self.answers[by] += 1
        return outputs

    def close(self) -> None:
        """Let go of what waits for the large model."""
        self.on_close()
        self._pool.shutdown(wait=True, cancel_futures=True)


def class_output(signature: Signature) -> TensorSpec:
    """Return the output with the classes of a classifier.

    Raises:
        UnsupportedModelError: there is none, or another output beside it and what says which
            exit answered.
    """
    found = [s for s in signature.outputs if s.name != ANSWERED_BY]
    fits = len(found) == 1 and found[0].dtype == "float32" and len(found[0].shape) == 2
    if not fits or (found[0].shape[1] or 0) < 2:
        given = ", ".join(map(str, signature.outputs))
        raise UnsupportedModelError(
            f"a cascade is of classifiers, with one output [N,classes] float32; found {given}"
        )
    return found[0]
