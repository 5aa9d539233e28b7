"""Predict what a model costs on a target: the entry for models, programs and single operators."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from tvm import IRModule

from edgec.compiler.backend import pack, schedule
from edgec.compiler.codegen.memory import plan_memory
from edgec.compiler.codegen.states import keep_states
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.ir.program import KernelCall, Program
from edgec.compiler.ir.signature import Signature, State
from edgec.compiler.lowering.legalize import lower
from edgec.compiler.lowering.recorded_decisions import RecordedDecisions
from edgec.compiler.lowering.tuning_records import READY, Database, Key, Record, best_records
from edgec.compiler.predict.correction import correct, fit_for, scaled, scales_of
from edgec.compiler.predict.energy import estimate_energy
from edgec.compiler.predict.features import step_features, traffic_of, weight_bytes_of
from edgec.compiler.predict.prediction import (
    Energy,
    Estimate,
    OperatorTime,
    Prediction,
    TimeSource,
)
from edgec.targets import Target

# Of a measured kernel in a model, where its operands are colder than where it was measured.
RECORD_BAR = (0.85, 1.3)
# Tables, the executor and the file's own sections, and a kernel's code, of a typical library.
LIBRARY_BYTES = 18_000
KERNEL_BYTES = 2_400
# A pool of threads hands out the tasks of a kernel in about this time.
HAND_OUT_MS = 0.004


def known_records(target: Target, database: Database | None = None) -> dict[Key, Record]:
    """Return the record to use by kernel: of a database, and of those that come with edgec."""
    records = list(database.fitting(target)) if database is not None else []
    shipped = READY / f"{target.name}.jsonl"
    if shipped.is_file():
        ready = best_records(Database.read(shipped).fitting(target))
        return ready | best_records(records)
    return best_records(records)


def predict_program(
    program: Program,
    target: Target,
    database: "Database | Mapping[Key, Record] | None" = None,
    *,
    threads: int = 1,
    library_bytes: int | None = None,
) -> Prediction:
    """Predict what a scheduled program costs.

    Args:
        program: what `schedule` gave, its states kept.
        target: what it was scheduled for.
        database: tuning records beside those that come with edgec, or the records that decided
            about the program, by kernel.
        threads: the threads that share the tasks.
        library_bytes: the size of its library, if it was compiled.
    """
    if database is None or isinstance(database, Database):
        best = known_records(target, database)
    else:
        best = dict(database)
    scales = scales_of(best, target)
    cores = min(threads, target.cores)
    weights = weight_bytes_of(program)
    operators = []
    instructions = 0.0
    for step, away in zip(program.steps, traffic_of(program, target, weights), strict=True):
        code = program.functions[step.kernel]
        features = step_features(step, code, away, target)
        corrected = correct(features, target, scales)
        instructions += corrected.instructions
        time, source = corrected.time, _source("model")
        record = best.get(Key(f"edgec.{step.template}", step.workload))
        ms = record.measured_ms if record is not None and record.threads == cores else None
        if ms is not None:
            low, high = RECORD_BAR
            time, source = Estimate(ms, ms * low, ms * high), _source("record")
        elif cores > 1:
            time = _shared(time, step, cores)
        moved = sum(v.size_bytes for v in {id(v): v for v in step.arguments}.values())
        operators.append(
            OperatorTime(
                step.label, step.template, time, source, step.flops, moved, corrected.instructions
            )
        )
    latency = total_of([item.time for item in operators])
    estimated = LIBRARY_BYTES + weights + KERNEL_BYTES * len(program.functions)
    fit = fit_for(target, "ns")
    return Prediction(
        target=target.name,
        threads=cores,
        latency=latency,
        operators=tuple(operators),
        arena_bytes=plan_memory(program).arena_bytes,
        weight_bytes=weights,
        library_bytes=estimated if library_bytes is None else library_bytes,
        library_source="estimated" if library_bytes is None else "compiled",
        energy=_energy(operators, instructions, weights, latency, target),
        instructions=instructions,
        fit=fit.describe() if fit is not None else "",
        warnings=_warnings(target),
    )


def _source(name: TimeSource) -> TimeSource:
    return name


def _shared(time: Estimate, step: KernelCall, cores: int) -> Estimate:
    """Return the time of a call whose tasks several cores share."""
    turns = math.ceil(step.tasks / cores) / max(1, step.tasks)
    found = scaled(time, turns)
    return Estimate(found.value + HAND_OUT_MS, found.low, found.high + 3 * HAND_OUT_MS)


def total_of(times: Sequence[Estimate]) -> Estimate:
    """Return the time of calls after one another.

    Half of what each is off is taken to be its own, which evens out over many, and half to be
    common to all: so the bar of a model is narrower than those of its operators.

    >>> total_of([Estimate(1.0, 0.5, 2.0)])
    Estimate(value=1.0, low=0.5, high=2.0)
    """
    value = sum(time.value for time in times)
    ends = []
    for sign in (-1, 1):
        parts = [(t.value - t.low) if sign < 0 else (t.high - t.value) for t in times]
        common, own = sum(parts), math.sqrt(sum(part * part for part in parts))
        ends.append((common + own) / 2)
    return Estimate(value, max(0.0, value - ends[0]), value + ends[1])


def _energy(
    operators: Sequence[OperatorTime],
    instructions: float,
    weights: int,
    latency: Estimate,
    target: Target,
) -> Energy:
    """Return the model's energy; where no instructions are known, two in each cycle."""
    executed = instructions or latency.value * target.clock_ghz * 1e6
    far = weights + sum(item.bytes for item in operators if item.bytes > target.l2_kib * 1024)
    return estimate_energy(executed, far, latency.value, target.clock_ghz)


def _warnings(target: Target) -> tuple[str, ...]:
    if fit_for(target, "ns") is not None:
        return ()
    return (
        f"no times of {target.architecture} with {target.vector_bits or 'no'}-bit vectors were "
        "measured: times are the analytic model's, and their bars a judgement; --board measures",
    )


def predict(
    module: IRModule,
    signature: Signature,
    target: Target,
    database: Database | None = None,
    *,
    threads: int = 1,
    names: Mapping[str, str] = MappingProxyType({}),
    states: Sequence[State] = (),
) -> Prediction:
    """Predict what a canonical module costs (`canonical_model(...).module`, or a transformed one).

    Args:
        module: the module.
        signature: inputs and outputs.
        target: where it is to run.
        database: tuning records beside those that come with edgec.
        threads: the threads that share the tasks.
        names: ONNX names by those of variables (`CanonicalModel.value_names`).
        states: inputs and outputs that it keeps from run to run.

    Raises:
        UnsupportedModelError: shapes depend on data.
    """
    program = scheduled_program(module, signature, target, database, names, states)
    return predict_program(program, target, database, threads=threads)


def scheduled_program(
    module: IRModule,
    signature: Signature,
    target: Target,
    database: Database | None = None,
    names: Mapping[str, str] = MappingProxyType({}),
    states: Sequence[State] = (),
) -> Program:
    """Return the program that a compile of a canonical module builds.

    Raises:
        UnsupportedModelError: shapes depend on data.
    """
    packed = pack(module, target, names)
    decide = RecordedDecisions(known_records(target, database))
    program = schedule(lower(packed, target), module, target, signature, decide)
    if not isinstance(program, Program):
        raise UnsupportedModelError(
            "shapes of this model depend on its data: what it costs cannot be predicted; "
            "edgec bench measures it"
        )
    keep_states(program, states, target)
    return program


def operator_times(
    module: IRModule,
    signature: Signature,
    target: Target,
    database: Database | None = None,
    *,
    threads: int = 1,
    names: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Estimate]:
    """Predict the time of each kernel of a canonical module, by the ONNX name of its result.

    A kernel computes what leads from the results of others to that value; arguments and errors
    are those of `predict`. Kernels of one name are added up.
    """
    program = scheduled_program(module, signature, target, database, names)
    return program_times(program, target, database, threads=threads)


def program_times(
    program: Program,
    target: Target,
    database: "Database | Mapping[Key, Record] | None" = None,
    *,
    threads: int = 1,
) -> dict[str, Estimate]:
    """Predict the time of each kernel of a scheduled program, as `operator_times`.

    Nearly all of what `operator_times` takes is to schedule the program: who has it calls this.
    """
    found: dict[str, Estimate] = {}
    for item in predict_program(program, target, database, threads=threads).operators:
        have = found.get(item.name, Estimate(0.0, 0.0, 0.0))
        found[item.name] = Estimate(
            have.value + item.time.value, have.low + item.time.low, have.high + item.time.high
        )
    return found
