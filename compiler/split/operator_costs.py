"""Provide what each operator of a cut graph costs on a device: time, weights, memory of values."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.backend import pack, schedule
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.ir.program import KernelCall, Program
from edgec.compiler.lowering.legalize import lower
from edgec.compiler.lowering.recorded_decisions import RecordedDecisions
from edgec.compiler.lowering.time_estimate import estimate_step_cycles
from edgec.compiler.lowering.tuning_records import READY, Database, Key, Record, best_records
from edgec.compiler.split.cut_graph import Before, CutGraph
from edgec.targets import Target


@dataclass(frozen=True)
class OperatorCosts:
    """Operator costs describe a graph on a target, by the places of its operators.

    Attributes:
        ms: time on one core [ms].
        weight_bytes: of the constants that kernels read, as they are packed for the target, and of
            the states that they write.
        recorded: share of the time that tuning records measured; the rest is estimated.
    """

    ms: dict[int, float]
    weight_bytes: dict[int, int]
    recorded: float

    def ms_before(self, cuts: Sequence[Before]) -> NDArray[np.float64]:
        """Return the time of all before each cut [ms]."""
        return np.array([sum(self.ms.get(place, 0.0) for place in cut) for cut in cuts])

    def weights_before(self, cuts: Sequence[Before]) -> NDArray[np.float64]:
        """Return the bytes of all weights before each cut."""
        return np.array([sum(self.weight_bytes.get(p, 0) for p in cut) for cut in cuts], float)


def operator_costs(
    graph: CutGraph, target: Target, database: Database | None = None
) -> OperatorCosts:
    """Estimate every operator on one core of a target, by tuning records where there are any.

    Args:
        graph: the graph.
        target: where it is to run.
        database: tuning records beside those that come with edgec.
    """
    values = graph.values
    module, signature = values.graph.module, values.signature
    records = _records(target, database)
    packed = pack(module, target, values.graph.value_names)
    decide = RecordedDecisions(records)
    program = schedule(lower(packed, target), module, target, signature, decide)
    if not isinstance(program, Program):
        raise UnsupportedModelError("shapes in this model depend on data: it cannot be cut")
    places = {graph.name(place): place for place in graph.operators}
    ms: dict[int, float] = {}
    weights: dict[int, int] = {}
    measured = 0.0
    seen: set[int] = set()
    place = graph.operators[0]
    for step in program.steps:
        # What has no name of its own brings the value before it into another layout.
        place = places.get(step.label, place)
        time, known = _step_ms(step, target, records)
        ms[place] = ms.get(place, 0.0) + time
        measured += time if known else 0.0
        for value in step.arguments:
            root = value.root
            if root.role == "constant" and id(root) not in seen:
                seen.add(id(root))
                weights[place] = weights.get(place, 0) + root.size_bytes
    for state in values.states:
        # Its memory is beside the weights, in one stage.
        writer = graph.given.get(state.output)
        if writer is not None:
            weights[writer] = weights.get(writer, 0) + values.size_of(state.input)
    total = sum(ms.values())
    return OperatorCosts(ms, weights, measured / total if total else 0.0)


def _step_ms(step: KernelCall, target: Target, records: dict[Key, Record]) -> tuple[float, bool]:
    """Return the time of a step on one core [ms], and whether it was measured."""
    record = records.get(Key(f"edgec.{step.template}", step.workload))
    ms = record.measured_ms if record is not None and record.threads == 1 else None
    if ms is not None:
        return ms, True
    return estimate_step_cycles(step, target) / (target.clock_ghz * 1e6), False


def _records(target: Target, database: Database | None) -> dict[Key, Record]:
    shipped = Database.read(READY / f"{target.name}.jsonl", missing_ok=True).fitting(target)
    own = database.fitting(target) if database is not None else []
    return best_records(shipped) | best_records(own)


def activation_bytes(graph: CutGraph, cuts: Sequence[Before]) -> NDArray[np.float64]:
    """Return the memory that the values between two cuts need at once, at most [cuts, cuts].

    Values that kernels hold count from their computation to their last reader, one after the
    other; what crosses the cut before them is there from the beginning.
    """
    count = len(cuts)
    found = np.zeros((count, count))
    held = {
        place: graph.size_bytes(place) if graph.is_held(place) else 0 for place in graph.operators
    }
    for begin in range(count - 1):
        alive = set(graph.crossing(cuts[begin]))
        peak = now = float(sum(held[p] for p in alive))
        for end in range(begin + 1, count):
            part = cuts[end] - cuts[end - 1]
            done = set(cuts[end - 1])
            for place in sorted(part):
                now += held[place]
                peak = max(peak, now)
                done.add(place)
                for need in set(graph.needs[place]):
                    readers = graph.readers[need]
                    if all(reader in done for reader in readers):
                        now -= held[need] if need not in cuts[begin] or need in alive else 0
            found[begin, end] = peak
    return found
