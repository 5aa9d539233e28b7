"""End a tuning run: the best decisions take turns, are checked and written down."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.lowering.tuning_records import append
from edgec.compiler.tune.devices import Measurement
from edgec.compiler.tune.report_data import TaskResult, TuneReport
from edgec.compiler.tune.run_state import RunState

# Decisions of each kernel that are compared at the end, in how many processes, and what a change
# must gain.
FINALISTS = 4
FINAL_PROCESSES = 3
LEAST_GAIN = 0.01
# How often what was chosen is compared with the defaults before they are taken instead.
CONFIRMATIONS = 3
# Largest difference from the default's result, as part of the largest value, where sums of floats
# depend on their order; and what it may move where the result is quantized then.
ROUNDING = 1e-4
QUANTUM = 1
# What comparing the finalists takes.
FINAL_MEASUREMENTS = FINAL_PROCESSES * (FINALISTS + 3)

_NOISY = (
    "this machine is too noisy at the moment: the tuned model was slower than the untuned one in "
    "a process of the comparison; measuring again"
)
_LOST = "kernels that were faster before were slower now: they return to their defaults"


@dataclass(frozen=True)
class _Times:
    """Times describe times of a model [s]: of all its steps, and of one call of each kernel."""

    model: float
    calls: Mapping[int, float]


def _median(times: Sequence[_Times]) -> _Times:
    return _Times(
        statistics.median(item.model for item in times),
        {n: statistics.median(item.calls[n] for item in times) for n in times[0].calls},
    )


def why_differs(expected: NDArray[Any], found: NDArray[Any], *, exact: bool) -> str:
    """Return how a kernel's result differs from the default's; empty if it is as good.

    Args:
        expected: the default's, of any dtype.
        found: the same shape and dtype.
        exact: whether the kernel sums integers: then every order gives the same bits.

    >>> why_differs(np.array([1, 2], np.uint8), np.array([1, 3], np.uint8), exact=True)
    'differs in 1 of 2 values'
    """
    if exact:
        kind = f"u{expected.itemsize}"
        different = int((expected.view(kind) != found.view(kind)).sum())
        return f"differs in {different} of {expected.size} values" if different else ""
    if np.issubdtype(expected.dtype, np.integer):
        steps = int(np.abs(expected.astype(np.int64) - found.astype(np.int64)).max(initial=0))
        return f"differs by {steps} steps of quantization" if steps > QUANTUM else ""
    largest = float(np.abs(expected).max(initial=1e-30))
    difference = float(np.abs(expected - found).max(initial=0.0)) / largest
    return "" if difference <= ROUNDING else f"differs by {difference:.1e} of the largest value"


class Finals:
    """Finals are the comparison of the best decisions of each kernel."""

    def __init__(self, run: RunState) -> None:
        self.run = run

    def conclude(self, reason: str) -> TuneReport:
        """Compare the best decisions of each kernel in turn, check them and write them down.

        What is chosen must also be faster in a comparison that did not choose it, kernel by kernel
        and as a whole, in each of several processes; else it is the default that is written down.
        """
        chosen, rejected = self._choose(self.medians())
        chosen, before, after, noisy = self._confirm(chosen)
        results = [
            TaskResult(
                search.task,
                before.calls[number],
                after.calls[number],
                chosen[number],
                len(search.trials),
                rejected.get(number, ""),
            )
            for number, search in self.run.searches.items()
        ]
        device = self.run.slots.first
        append(
            self.run.database,
            [self.run.record(r.task, r.decision, r.after, device, confirmed=True) for r in results],
        )
        results.sort(key=lambda r: -r.before * len(r.task.steps))
        report = TuneReport(
            before.model,
            after.model,
            self.run.measured,
            self.run.seconds,
            tuple(results),
            tuple(self.run.history),
            reason,
            noisy,
        )
        self.run.observer.event("end", report=report)
        return report

    def _confirm(self, chosen: dict[int, str]) -> tuple[dict[int, str], _Times, _Times, bool]:
        """Return decisions that are no loss, times by the defaults and by them, and if it is noisy.

        Kernels that lose return to their defaults. Where the model as a whole loses it is measured
        again, and in the end nothing is left but the defaults.
        """
        defaults = self.run.defaults()
        noisy = False
        for _ in range(CONFIRMATIONS):
            if chosen == defaults:
                break
            pairs = [self._times(items) for items in self._processes([defaults, chosen])]
            before = _median([first for first, _ in pairs])
            ratios = {
                number: statistics.median(b.calls[number] / a.calls[number] for a, b in pairs)
                for number in chosen
            }
            lost = {n for n, ratio in ratios.items() if chosen[n] != defaults[n] and ratio > 1}
            whole = [second.model / first.model for first, second in pairs]
            if not lost and max(whole) <= 1:
                calls = {
                    n: seconds * (ratios[n] if chosen[n] != defaults[n] else 1)
                    for n, seconds in before.calls.items()
                }
                after = _Times(before.model * statistics.median(whole), calls)
                return chosen, before, after, noisy
            noisy = noisy or max(whole) > 1
            chosen = {n: defaults[n] if n in lost else decision for n, decision in chosen.items()}
            self.run.observer.event("warning", text=_NOISY if max(whole) > 1 else _LOST)
        before = _median([self._times(items)[0] for items in self._processes([defaults])])
        return defaults, before, before, noisy

    def _times(self, items: Sequence[Measurement]) -> list[_Times]:
        return [_Times(sum(item.seconds), self.run.times.calls(item.seconds)) for item in items]

    def medians(self) -> dict[int, dict[str, float]]:
        """Return times of one call by each kernel's best decisions, all compared in turn."""
        finalists = {n: search.candidates(FINALISTS) for n, search in self.run.searches.items()}
        count = max(len(found) for found in finalists.values())
        variants = [
            {n: found[min(place, len(found) - 1)] for n, found in finalists.items()}
            for place in range(count)
        ]
        variants.append(self.run.defaults())
        calls: dict[int, dict[str, list[float]]] = {n: {} for n in self.run.searches}
        for variant, seconds in zip(variants, self._compare(variants), strict=True):
            for number, call in self.run.times.calls(seconds).items():
                calls[number].setdefault(variant[number], []).append(call)
        return {
            number: {decision: statistics.median(times) for decision, times in found.items()}
            for number, found in calls.items()
        }

    def _choose(
        self, medians: Mapping[int, Mapping[str, float]]
    ) -> tuple[dict[int, str], dict[int, str]]:
        """Return the fastest decisions with the default's results, and why others are rejected."""
        rejected: dict[int, str] = {}
        wrong: set[tuple[int, str]] = set()
        right = {(number, search.task.default) for number, search in self.run.searches.items()}
        while True:
            chosen = {}
            for number, found in medians.items():
                default = self.run.searches[number].task.default
                left = [decision for decision in found if (number, decision) not in wrong]
                best = min(left, key=found.__getitem__)
                gains = found[best] <= found[default] * (1 - LEAST_GAIN)
                chosen[number] = best if gains else default
            unchecked = {n: d for n, d in chosen.items() if (n, d) not in right}
            if not unchecked:
                return chosen, rejected
            for number, why in self._differences(unchecked).items():
                decision, search = unchecked[number], self.run.searches[number]
                if not why:
                    right.add((number, decision))
                    continue
                wrong.add((number, decision))
                rejected[number] = f"{decision} {why}"
                self.run.fail(search, decision, rejected[number])
                self.run.observer.event("rejected", task=search.task.label, why=rejected[number])

    def _compare(self, variants: Sequence[Mapping[int, str]]) -> list[tuple[float, ...]]:
        """Return times of every step of each variant, measured in turn."""
        return [
            tuple(np.median([item.seconds for item in items], axis=0))
            for items in zip(*self._processes(variants), strict=True)
        ]

    def _processes(self, variants: Sequence[Mapping[int, str]]) -> Sequence[Sequence[Measurement]]:
        """Return measurements of each variant, in turn, by process."""
        built = [self.run.rounds.build(self.run.complete(variant)) for variant in variants]
        # Where its memory happens to lie makes a process faster or slower than the next.
        processes = [
            self.run.slots.patiently(lambda device: device.time(*built))
            for _ in range(FINAL_PROCESSES)
        ]
        for variant in built:
            self.run.rounds.discard(variant)
        return processes

    def _differences(self, batch: Mapping[int, str]) -> dict[int, str]:
        """Return how each result differs from the default's; empty where it does not."""
        built = self.run.rounds.build_check(batch)
        outputs = built.library.parent / "outputs.bin"
        self.run.slots.patiently(lambda device: device.compute(built, outputs))
        data = outputs.read_bytes()
        # Those of the model come before them.
        position = len(data) - sum(built.output_bytes[-2 * len(batch) :])
        found = {}
        for number in batch:
            step = self.run.plan.program.steps[self.run.plan.tasks[number].steps[0]]
            result = step.arguments[-1]
            count = math.prod(result.shape)
            pair = np.frombuffer(data, result.dtype, 2 * count, position).reshape(2, count)
            position += pair.nbytes
            reads_integers = np.issubdtype(step.arguments[0].dtype, np.integer)
            found[number] = why_differs(pair[0], pair[1], exact=reads_integers)
        self.run.rounds.discard(built)
        return found
