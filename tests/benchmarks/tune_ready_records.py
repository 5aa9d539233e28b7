"""Make the tuning records of int8 that come with edgec, for a target that QEMU plays.

    python tests/benchmarks/tune_ready_records.py rpi4 pp-ocr-cls efficientnet-lite0 --trials 800

Quantizes each model by recipe int8 from the photographs of `benchmark_quantize.py`, tunes its 1x1
and depthwise convolutions (`--all`: every kernel) by counting, as `edgec tune --board qemu-rpi4`
does, and counts the model with what was found beside the defaults. A decision stays in
`targets/records/` if it saves enough of every model that was counted and shares its work no worse
among the target's cores.

Without `--trials` nothing is tuned: the records that are there are counted anew. Those that their
kernels do not offer any more, or that save too little since the kernels changed, are taken out.
Records that no model given here uses stay, unless `--prune` is given. Prints a line for each model.
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmark_quantize import PREPARATION, write_crops

from edgec.compiler import CompileOptions
from edgec.compiler.backend import build
from edgec.compiler.boards.artifacts import counter_parts
from edgec.compiler.boards.config import Board
from edgec.compiler.boards.instructions import StepCount, count_instructions
from edgec.compiler.boards.qemu import find_board, start_board, stop_board
from edgec.compiler.calibration.samples import SampleOptions
from edgec.compiler.ir.program import KernelCall, Program
from edgec.compiler.kernels.emit.machine_model import imbalance_of
from edgec.compiler.kernels.template import from_text, to_text
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.recorded_decisions import RecordedDecisions, read_record
from edgec.compiler.lowering.schedule import default_decide
from edgec.compiler.lowering.tuning_records import (
    READY,
    Database,
    Key,
    Record,
    alike,
    best_records,
    replace,
    summarize,
)
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.quantize.quantization_recipe import load_recipe
from edgec.compiler.support.processes import run_program
from edgec.compiler.support.progress import Silent
from edgec.compiler.tune.devices import CountingDevice
from edgec.compiler.tune.events import Several
from edgec.compiler.tune.options import TuneOptions
from edgec.compiler.tune.session import Tuner
from edgec.compiler.tune.tasks import PreparedModel, Task, prepare_model
from edgec.models import load_model_recipe
from edgec.targets import load_target
from edgec.targets.target import Target

# What a decision must save of a kernel, in instructions and in the estimate with its memory.
LEAST_SAVED = 0.02
# Decisions of each kernel that are looked at, the best first.
CANDIDATES = 8
RUN_SECONDS = 600


@dataclass(frozen=True)
class Call:
    """What one call of a kernel costs: on one core, and on all by the division of its work."""

    instructions: int
    seconds: float
    shared: float

    @classmethod
    def of(cls, step: KernelCall, count: StepCount, target: Target) -> "Call":
        seconds = count.seconds(target)
        return cls(count.instructions, seconds, seconds * imbalance_of(step.tasks, target))

    def saves_from(self, before: "Call") -> bool:
        return (
            self.instructions <= (1 - LEAST_SAVED) * before.instructions
            and self.seconds <= (1 - LEAST_SAVED) * before.seconds
            and self.shared <= before.shared
        )


@dataclass(frozen=True)
class Counted:
    """A program counted: each step's key and cost, and the bytes beyond the level-2 cache."""

    keys: list[Key]
    calls: list[Call]
    total: int
    far_bytes: int


def prepared(name: str, target: Target, folder: Path) -> PreparedModel:
    """Return a model of the catalogue, quantized."""
    recipe = load_model_recipe(name)
    model, images = recipe.write(folder / f"{name}.onnx"), folder / "images"
    write_crops(images, name)
    options = CompileOptions(
        shapes=dict(recipe.shapes),
        quantize=QuantizeOptions(recipe=load_recipe("int8")),
        samples=SampleOptions(source=str(images), preprocess=PREPARATION[name]),
    )
    return prepare_model(model, target, options)


def counted(program: Program, model: PreparedModel, folder: Path) -> Counted:
    """Count a program; its steps are the same by whatever decisions."""
    library, target = folder / "model.so", model.target
    build([program], target, library)
    inputs = [model.inputs[spec.name] for spec in model.signature.inputs]
    count = count_instructions(library, target, inputs, traffic=True)
    pairs = list(zip(program.steps, count.steps, strict=True))
    return Counted(
        [Key(f"edgec.{step.template}", step.workload) for step, _ in pairs],
        [Call.of(step, found, target) for step, found in pairs],
        count.total,
        sum(found.far_bytes or 0 for _, found in pairs),
    )


def is_simple(task: Task) -> bool:
    """Return whether it is a 1x1 or a depthwise convolution of integers."""
    if task.key.operator == "edgec.integer_depthwise":
        return True
    return task.key.operator == "edgec.integer_conv" and task.workload.conv.kernel == (1, 1)


def is_integer(task: Task) -> bool:
    return task.key.operator.startswith("edgec.integer_")


@contextmanager
def running(name: str) -> Iterator[Board]:
    """Provide a QEMU board, which is stopped at the end unless it ran before."""
    found = find_board(name)
    if found.link is not None:
        yield found
        return
    try:
        yield start_board(name, Silent())
    finally:
        stop_board(name)


def tune(model: PreparedModel, database: Path, arguments: argparse.Namespace) -> None:
    """Search for better decisions, and write every trial to the database."""
    target, plan = model.target, model.plan()
    wanted = is_integer if arguments.all else is_simple
    tasks = [task for task in plan.tasks if wanted(task)]
    options = TuneOptions(trials=arguments.trials)
    with running(f"qemu-{target.name}") as board, tempfile.TemporaryDirectory() as folder:
        tuner = Tuner(plan, tasks, target, database, options, Path(folder), Several())
        report = tuner.run(lambda _: [CountingDevice(board, target)])
    print(f"    {report.trials} trials in {report.seconds:.0f} s: {report.reason}", flush=True)


def shared_seconds(record: Record, target: Target) -> float:
    """Return the time of a call by the division of its work; infinity if it is not offered."""
    read = read_record(record, target)
    if read is None or record.seconds is None:
        return float("inf")
    kernel = TEMPLATES[record.operator].emit(*read, target, "kernel")
    return record.seconds * imbalance_of(kernel.tasks, target)


def candidates(records: Sequence[Record], target: Target) -> dict[Key, Record]:
    """Return the best decision of each kernel that shares its work as well as the default."""
    by_decision = {(r.key, r.decision_text): r for r in records if r.seconds is not None}
    found = {}
    for key, times in summarize(records).items():
        ranked = [by_decision[key, text] for text in sorted(times, key=times.__getitem__)]
        workload = from_text(TEMPLATES[key.operator].workload, key.workload)
        default = by_decision.get((key, to_text(default_decide(key.operator, workload, target))))
        if default is None or default.seconds is None:
            continue
        least = (1 - LEAST_SAVED) * default.seconds
        most = shared_seconds(default, target)
        for record in ranked[:CANDIDATES]:
            if (record.seconds or 0) <= least and shared_seconds(record, target) <= most:
                found[key] = record
                break
    return found


def too_little(before: Counted, after: Counted, records: Mapping[Key, Record]) -> set[Key]:
    """Return the records that save too little of a model."""
    pairs = zip(before.keys, before.calls, after.calls, strict=True)
    lose = {alike(key) for key, default, call in pairs if not call.saves_from(default)}
    return {key for key in records if alike(key) in lose}


def seconds_by_kernel(found: Counted) -> dict[Key, float]:
    """Return the time of all calls of each kernel, whatever its padding stands for."""
    seconds: dict[Key, float] = defaultdict(float)
    for key, call in zip(found.keys, found.calls, strict=True):
        seconds[alike(key)] += call.seconds
    return seconds


def better_of(
    old: Mapping[Key, Record], new: Mapping[Key, Record], model: PreparedModel, folder: Path
) -> dict[Key, Record]:
    """Return the records of both, and of each kernel the one that makes a model faster."""
    both = dict(old) | new
    if any(key in old for key in new):
        before = seconds_by_kernel(counted(model.program(RecordedDecisions(old)), model, folder))
        after = seconds_by_kernel(counted(model.program(RecordedDecisions(both)), model, folder))
        slower = {key for key, seconds in after.items() if seconds > before[key]}
        both |= {key: record for key, record in old.items() if alike(key) in slower}
    return both


def outputs(model: PreparedModel, folder: Path) -> bytes:
    """Return what the library in the folder computes under QEMU."""
    parts = counter_parts(model.target, Silent())
    given, results = folder / "inputs", folder / "outputs"
    given.write_bytes(b"".join(model.inputs[s.name].tobytes() for s in model.signature.inputs))
    command = [*parts.command, str(parts.program), str(folder / "model.so"), str(given), "0"]
    run_program([*command, str(results)], "the model does not run under QEMU", RUN_SECONDS)
    return results.read_bytes()


def write(path: Path, ready: Mapping[Key, Record]) -> None:
    """Write the records, one of those that are alike; no file if there are none."""
    one = {alike(key): record for key, record in sorted(ready.items())}
    if one:
        replace(path, one.values())
    else:
        path.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("models", nargs="*", default=list(PREPARATION))
    parser.add_argument("--trials", type=int, default=0, help="for each model; 0: count only")
    parser.add_argument("--all", action="store_true", help="tune every kernel of integers")
    parser.add_argument("--prune", action="store_true", help="keep what these models use")
    parser.add_argument("--db", type=Path, help="keep all trials here")
    arguments = parser.parse_args()
    target = load_target(arguments.target)
    shipped = READY / f"{target.name}.jsonl"
    ready = best_records(Database.read(shipped, missing_ok=True).fitting(target))
    ready = {key: record for key, record in ready.items() if read_record(record, target)}
    used: set[Key] = set()
    print("| model | default | with records | ratio | beyond L2 | with records | kernels |")
    print(f"|{'---|' * 7}", flush=True)
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            model = prepared(name, target, folder)
            if arguments.trials:
                database = arguments.db or folder / "trials.jsonl"
                tune(model, database, arguments)
                found = candidates(Database.read(database).fitting(target), target)
                ready = better_of(ready, found, model, folder)
            before = counted(model.program(), model, folder)
            expected = outputs(model, folder)
            while True:
                decide = RecordedDecisions(ready)
                after = counted(model.program(decide), model, folder)
                bad = too_little(before, after, ready)
                if not bad:
                    break
                ready = {key: record for key, record in ready.items() if key not in bad}
            if outputs(model, folder) != expected:
                raise SystemExit(f"{name}: by the records it computes other values")
        used |= {alike(key) for key in decide.used}
        cells = [name, f"{before.total:,}", f"{after.total:,}"]
        cells += [f"{after.total / before.total:.3f}", f"{before.far_bytes:,}"]
        cells += [f"{after.far_bytes:,}", str(len(decide.used))]
        print(f"| {' | '.join(cells)} |", flush=True)
        write(shipped, ready)
    if arguments.prune:
        ready = {key: record for key, record in ready.items() if alike(key) in used}
        write(shipped, ready)
    count = len({alike(key) for key in ready})
    print(f"{shipped}: {count} records")


if __name__ == "__main__":
    main()
