"""Run a cascade: the small model, and the large one where the small one is not sure."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.cascade.cascade import LARGE, SMALL, Cascade
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.exits.heads import softmax
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


class CascadeSession:
    """A cascade session answers by the small model where it is sure, else by the large one.

    The small one answers too where the large one cannot be reached, or would be too late. One
    thread calls it.

    Attributes:
        cascade: the threshold, and what it is worth.
        answers: how many requests the `small` model answered as it was sure, the `large` one, and
            the small one although it was not sure, as the other could not be reached (`lost`) or
            would have been too late (`late`).
        large_seconds: how long the large model takes, as last seen [s]; 0 before it was asked.
        on_close: lets go of what asks the large model.
    """

    def __init__(self, cascade: Cascade, small: Bundle, large: Bundle, ask: Ask, threads: int = 0):
        """Load the small model.

        Args:
            cascade: what `cascade.json` says.
            small: the bundle that is asked first.
            large: the other one, for what it takes and gives.
            ask: asks the large model.
            threads: that the small one computes on; 0 is one for each core.

        Raises:
            BundleError: the small one is for another machine.
        """
        self.cascade = cascade
        self.signature = large.manifest.signature
        self.index_bounds = dict(large.manifest.settings.index_bounds)
        self.answers: Counter[str] = Counter()
        self.large_seconds = 0.0
        self.lock = threading.RLock()
        self._small = small.open(threads)
        self._given = class_output(small.manifest.signature).name
        self._wanted = class_output(self.signature).name
        self._input = self.signature.inputs[0].name
        self._ask = ask
        self.on_close: Callable[[], None] = lambda: None
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
        small, large = Bundle.load(folder / SMALL), Bundle.load(folder / LARGE)
        return cls(Cascade.load(folder), small, large, ask or large.open(threads).run, threads)

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
            deadline: seconds from now; where the large model would be later the small one answers.

        Returns:
            Outputs by name, as the large model calls them.

        Raises:
            TensorInputError: the inputs do not fit.
        """
        del program
        began = time.monotonic()
        with self.lock:
            named = {self._input: inputs} if isinstance(inputs, np.ndarray) else inputs
            own = self.ask_small(named)
            if self.confidence(own[self._wanted]) >= self.cascade.threshold:
                return self._answered("small", own)
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

    def ask_small(self, inputs: Tensors) -> Outputs:
        """Return what the small model gives, whether it is sure or not."""
        return {self._wanted: self._small.run(inputs)[self._given]}

    def ask_large(self, inputs: Tensors) -> Outputs | None:
        """Return what the large model gives; None if it cannot be reached."""
        return self._ask(inputs)

    def confidence(self, scores: NDArray[Any]) -> float:
        """Return the largest probability, of several samples the smallest of these."""
        wide = scores.astype(np.float64)
        found = wide if self.cascade.probabilities else softmax(wide)
        return float(found.max(axis=1).min())

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
        UnsupportedModelError: there is none, or more than one.
    """
    found = [s for s in signature.outputs if s.dtype == "float32" and len(s.shape) == 2]
    if len(found) != 1 or (found[0].shape[1] or 0) < 2:
        given = ", ".join(map(str, signature.outputs))
        raise UnsupportedModelError(
            f"a cascade is of classifiers, with one output [N,classes] float32; found {given}"
        )
    return found[0]
