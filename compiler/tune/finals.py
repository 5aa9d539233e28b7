"""The end of a tuning run: the best decisions in turn, checked and written down."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from edgec.compiler.lowering.tuning_records import append
from edgec.compiler.tune.report_data import TaskResult, TuneReport
from edgec.compiler.tune.run_state import RunState

# Decisions of each kernel that are compared at the end, in how many processes, and what a change
# must gain.
FINALISTS = 4
FINAL_PROCESSES = 3
LEAST_GAIN = 0.01
# Largest difference from the default's result, as part of the largest value.
ROUNDING = 1e-4
# What comparing the finalists takes.
FINAL_MEASUREMENTS = FINAL_PROCESSES * (FINALISTS + 3)


class Finals:
    """The comparison of the best decisions of each kernel."""

    def __init__(self, run: RunState) -> None:
        self.run = run

    def conclude(self, reason: str) -> TuneReport:
        """Compare the best decisions of each kernel in turn, check them and write them down."""
        medians = self.medians()
        chosen, rejected = self._choose(medians)
        results = [
            TaskResult(
                search.task,
                medians[number][search.task.default],
                medians[number][chosen[number]],
                chosen[number],
                len(search.trials),
                rejected.get(number, ""),
            )
            for number, search in self.run.searches.items()
        ]
        device = self.run.places.first
        append(
            self.run.database,
            [self.run.record(r.task, r.decision, r.after, device, confirmed=True) for r in results],
        )
        before, after = map(sum, self._compare([self.run.defaults(), chosen]))
        results.sort(key=lambda r: -r.before * len(r.task.steps))
        history = tuple(self.run.history)
        report = TuneReport(
            before, after, self.run.measured, self.run.seconds, tuple(results), history, reason
        )
        self.run.observer.event("end", report=report)
        return report

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
            for number, difference in self._differences(unchecked).items():
                decision, search = unchecked[number], self.run.searches[number]
                if difference <= ROUNDING:
                    right.add((number, decision))
                    continue
                wrong.add((number, decision))
                rejected[number] = f"{decision} differs by {difference:.1e} of the largest value"
                self.run.fail(search, decision, rejected[number])
                self.run.observer.event("rejected", task=search.task.label, why=rejected[number])

    def _compare(self, variants: Sequence[Mapping[int, str]]) -> list[tuple[float, ...]]:
        """Return times of every step of each variant, measured in turn."""
        built = [self.run.rounds.build(self.run.complete(variant)) for variant in variants]
        # Where its memory happens to lie makes a process faster or slower than the next.
        processes = [
            self.run.places.patiently(lambda device: device.time(*built))
            for _ in range(FINAL_PROCESSES)
        ]
        for variant in built:
            self.run.rounds.discard(variant)
        return [
            tuple(np.median([item.seconds for item in items], axis=0))
            for items in zip(*processes, strict=True)
        ]

    def _differences(self, batch: Mapping[int, str]) -> dict[int, float]:
        """Return by how much each result differs from the default's, in parts of the largest."""
        built = self.run.rounds.build_check(batch)
        outputs = built.library.parent / "outputs.bin"
        self.run.places.patiently(lambda device: device.compute(built, outputs))
        data = outputs.read_bytes()
        found, position = {}, 0
        for index, number in enumerate(batch):
            size = built.output_bytes[2 * index]
            pair = np.frombuffer(data, np.float32, size // 2, position).reshape(2, -1)
            position += 2 * size
            largest = float(np.abs(pair[0]).max(initial=1e-30))
            found[number] = float(np.abs(pair[0] - pair[1]).max(initial=0.0)) / largest
        self.run.rounds.discard(built)
        return found
