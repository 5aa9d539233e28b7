"""Provide a round: the model with one decision for every kernel, as a library that can be timed.

Kernels are compiled one by one in worker processes, each into an object file of its own that
later rounds use again. Float weights that a kernel reads in an order of its own are not packed:
memory of their size, filled with numbers of their scale, takes their place as an input. Weights of
other types are packed for each decision: they are small, and not every bit pattern is one of them.
"""

import dataclasses
import math
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.codegen.build import write_sources
from edgec.compiler.codegen.kernel_objects import write_object
from edgec.compiler.codegen.link import link_shared
from edgec.compiler.errors import ToolchainError
from edgec.compiler.ir.program import KernelCall, Program, Value
from edgec.compiler.jobs.local import LocalExecutor
from edgec.compiler.jobs.pool import Failure, outcome
from edgec.compiler.kernels.template import from_text
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.schedule import kernel_name, without_subnormals
from edgec.compiler.lowering.tuning_records import Key
from edgec.compiler.tune.compile_kernel import BuiltKernel, compile_kernel
from edgec.compiler.tune.tasks import Task, TuningPlan
from edgec.targets.target import Target

# A kernel is compiled in a tenth of a second; the first waits for TVM to load.
KERNEL_SECONDS = 120.0
# Operand of a template that it reads in an order of its own.
_WEIGHT = 1


@dataclass(frozen=True)
class Round:
    """A round describes a library to time.

    Attributes:
        number: in the order built.
        decisions: text by task number.
        library: has the executor's interface.
        inputs: what to put into each of its inputs.
        output_bytes: sizes of its outputs.
        steps: number of kernel calls.
    """

    number: int
    decisions: Mapping[int, str]
    library: Path
    inputs: tuple[dict[str, Any], ...]
    output_bytes: tuple[int, ...]
    steps: int


class KernelBuilder:
    """Compiles kernels in processes here, one pinned to each core, or where it is told to."""

    def __init__(
        self, target: Target, folder: Path, workers: int, elsewhere: Executor | None = None
    ) -> None:
        self._target = target
        self._folder = folder
        self._elsewhere = elsewhere
        cores = sorted(os.sched_getaffinity(0))
        self._cores = [cores[number % len(cores)] for number in range(workers)]
        self._built: dict[tuple[Key, str], BuiltKernel] = {}
        self.failed: dict[tuple[Key, str], str] = {}
        self._here: LocalExecutor | None = None

    def start(self) -> None:
        """Start the workers; they load TVM, which takes a second or two."""
        if self._here is None and self._elsewhere is None:
            self._here = LocalExecutor(self._cores, KERNEL_SECONDS)

    def build(self, wanted: Sequence[tuple[Key, str]]) -> dict[tuple[Key, str], BuiltKernel]:
        """Return kernels by workload and decision; those that cannot be built are missing.

        Why they cannot is in `failed`.
        """
        missing = [w for w in dict.fromkeys(wanted) if w not in self._built | self.failed]
        if missing:
            self.start()
            executor = self._elsewhere or self._here
            assert executor is not None
            calls = {w: executor.submit(compile_kernel, *w, self._target) for w in missing}
            for item, call in calls.items():
                result = outcome(call)
                if isinstance(result, Failure):
                    self.failed[item] = result.why
                else:
                    self._built[item] = result.written(self._folder)
        return {item: self._built[item] for item in wanted if item in self._built}

    def forget(self, keep: set[tuple[Key, str]]) -> None:
        """Delete object files that will not be needed again."""
        for item in [item for item in self._built if item not in keep]:
            self._built.pop(item).path.unlink(missing_ok=True)

    @contextmanager
    def quiet(self, cores: set[int]) -> Iterator[None]:
        """Stop the workers on some cores for the time of a measurement."""
        workers = self._here.workers if self._here is not None else []
        stopped = [worker for worker in workers if worker.core in cores]
        for worker in stopped:
            worker.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for worker in stopped:
                worker.signal(signal.SIGCONT)

    def close(self) -> None:
        """End the workers."""
        if self._here is not None:
            self._here.shutdown(cancel_futures=True)
            self._here = None


class RoundBuilder:
    """Makes rounds of a plan."""

    def __init__(
        self, plan: TuningPlan, target: Target, folder: Path, kernels: KernelBuilder
    ) -> None:
        self.plan = plan
        self._target = target
        self._folder = folder
        self._kernels = kernels
        self._task_of = {step: task for task in plan.tasks for step in task.steps}
        self._fixed = folder / "fixed.o"
        self._constants = folder / "constants.bin"
        self._places: dict[int, int] = {}
        self._count = 0

    def prepare(self) -> None:
        """Compile what no decision changes, and write constants to where runs find them."""
        program = self.plan.program
        names = {s.kernel for i, s in enumerate(program.steps) if i not in self._task_of}
        fixed = {name: program.functions[name] for name in names}
        if fixed:
            write_object(fixed, self._target, self._fixed)
        with self._constants.open("wb") as stream:
            for value, array in self._real_constants():
                self._places[id(value)] = stream.tell()
                data = np.ascontiguousarray(array)
                stream.write(data.tobytes() + bytes(-data.nbytes % 64))

    def _real_constants(self) -> Iterator[tuple[Value, NDArray[Any]]]:
        """Yield inputs, and constants that are read as they are."""
        program = self.plan.program
        for value, spec in zip(program.inputs, self.plan.signature.inputs, strict=True):
            yield value, np.asarray(self.plan.inputs[spec.name])
        seen = set()
        for number, step in enumerate(program.steps):
            for position, value in enumerate(step.arguments):
                root = value.root
                if root.role != "constant" or id(root) in seen:
                    continue
                if not self._is_packed(number, position) and not self._is_repacked(
                    number, position
                ):
                    seen.add(id(root))
                    assert root.array is not None
                    yield root, root.array

    def _is_packed(self, step: int, position: int) -> bool:
        """Return whether memory of its size takes the place of a weight."""
        task = self._task_of.get(step)
        if task is None or position != _WEIGHT:
            return False
        sized = TEMPLATES[task.key.operator].weight_size is not None
        return sized and not self._is_repacked(step, position)

    def _is_repacked(self, step: int, position: int) -> bool:
        """Return whether a constant belongs to weights that each decision packs: no floats."""
        constants = self.plan.program.steps[step].constants
        if step not in self._task_of or position not in constants or _WEIGHT not in constants:
            return False
        return constants[_WEIGHT].dtype != np.float32

    def _packed(self, task: Task, step: int, position: int, decision: str) -> Value:
        """Return a constant of a step in the order that a decision reads."""
        template = TEMPLATES[task.key.operator]
        raw = self.plan.program.steps[step].constants[position]
        parsed = from_text(template.decision, decision)
        packed = template.pack(task.workload, parsed, self._target, position, raw)
        packed = without_subnormals(packed)
        return Value("constant", packed.shape, str(packed.dtype), array=packed)

    def build(self, decisions: Mapping[int, str]) -> Round:
        """Build a round.

        Kernels that cannot be built are left out of `decisions` of the result, and computed by
        their default.

        Raises:
            ToolchainError: a default cannot be built, or linking fails.
        """
        tasks = self.plan.tasks
        wanted = [(tasks[number].key, decision) for number, decision in decisions.items()]
        built = self._kernels.build(wanted)
        kept = {n: d for n, d in decisions.items() if (tasks[n].key, d) in built}
        lost = [tasks[n] for n in decisions if n not in kept]
        defaults = self._kernels.build([(task.key, task.default) for task in lost])
        if len(defaults) != len(lost):
            first = next(t for t in lost if (t.key, t.default) not in defaults)
            reason = self._kernels.failed[first.key, first.default]
            raise ToolchainError(f"cannot compile {first.label}: {reason}")
        by_task = {n: built[tasks[n].key, d] for n, d in kept.items()}
        by_task |= {task.number: defaults[task.key, task.default] for task in lost}
        used = {n: kept.get(n, tasks[n].default) for n in by_task}
        program, inputs = self._program(by_task, used)
        objects = sorted({kernel.path for kernel in by_task.values()})
        if self._fixed.exists():
            objects.append(self._fixed)
        return self._link(program, inputs, objects, kept)

    def build_check(self, changes: Mapping[int, str]) -> Round:
        """Build a round that computes the model by its defaults, and some tasks twice beside it.

        Its last outputs are, for each of these tasks in order, the default's result and that of
        another decision, from the model's own weights and from what the model computed before the
        task's first step.
        """
        source, tasks = self.plan.program, self.plan.tasks
        defaults = [(task.key, task.default) for task in tasks]
        built = self._kernels.build(
            [*defaults, *((tasks[number].key, changes[number]) for number in changes)]
        )
        results: dict[int, list[Value]] = {}
        for number in changes:
            size = source.steps[tasks[number].steps[0]].arguments[-1].size_bytes
            first = len(source.outputs) + 2 * len(results)
            results[number] = [
                Value("output", (size,), "uint8", number=first + each) for each in (0, 1)
            ]
        outputs = [*source.outputs, *(value for pair in results.values() for value in pair)]
        program = Program(list(source.inputs), outputs, copies=source.copies)
        for index, step in enumerate(source.steps):
            task = self._task_of.get(index)
            if task is None:
                program.steps.append(step)
                continue
            if task.number in changes and index == task.steps[0]:
                pair = (task.default, changes[task.number])
                for decision, result in zip(pair, results[task.number], strict=True):
                    kernel = built[task.key, decision]
                    program.steps.append(self._call(task, index, decision, kernel, result))
            kernel = built[task.key, task.default]
            result = step.arguments[-1]
            program.steps.append(self._call(task, index, task.default, kernel, result))
        inputs = [{"bytes": value.size_bytes, **self._file(value)} for value in source.inputs]
        objects = sorted({kernel.path for kernel in built.values()})
        if self._fixed.exists():
            objects.append(self._fixed)
        return self._link(program, inputs, objects, changes)

    def _call(
        self, task: Task, index: int, decision: str, kernel: BuiltKernel, result: Value
    ) -> KernelCall:
        """Return a step of the model by a decision, its constants packed for that."""
        step = self.plan.program.steps[index]
        arguments = step.arguments[:-1]
        if kernel_name(step.template, f"{step.workload} {decision}") != step.kernel:
            # They are not packed for this one yet.
            arguments = tuple(
                self._packed(task, index, position, decision)
                if position in step.constants
                else value
                for position, value in enumerate(arguments)
            )
        return dataclasses.replace(
            step, kernel=kernel.name, arguments=(*arguments, result), tasks=kernel.tasks
        )

    def _link(
        self,
        program: Program,
        inputs: list[dict[str, Any]],
        objects: Sequence[Path],
        decisions: Mapping[int, str],
    ) -> Round:
        self._count += 1
        folder = self._folder / f"round-{self._count}"
        folder.mkdir()
        _, sources = write_sources([program], self._target, folder)
        library = folder / "model.so"
        link_shared([*objects, *sources], library, self._target, checked=False)
        sizes = tuple(value.size_bytes for value in program.outputs)
        return Round(self._count, decisions, library, tuple(inputs), sizes, len(program.steps))

    def _program(
        self, kernels: Mapping[int, BuiltKernel], decisions: Mapping[int, str]
    ) -> tuple[Program, list[dict[str, Any]]]:
        """Return the program with other kernels, constants turned into inputs.

        Except for those that belong to a decision.
        """
        source = self.plan.program
        program = Program([], source.outputs, [], {}, source.copies)
        inputs: list[dict[str, Any]] = []

        def add(size: int, content: dict[str, Any]) -> Value:
            value = Value("input", (size,), "uint8", number=len(inputs), label=f"in{len(inputs)}")
            program.inputs.append(value)
            inputs.append({"bytes": size, **content})
            return value

        known: dict[int, Value] = {}
        for value in source.inputs:
            known[id(value)] = add(value.size_bytes, self._file(value))
        for number, step in enumerate(source.steps):
            task = self._task_of.get(number)
            kernel = kernels[task.number] if task else None
            arguments = []
            for position, value in enumerate(step.arguments):
                root = value.root
                if task and self._is_repacked(number, position):
                    value = self._packed(task, number, position, decisions[task.number])
                elif kernel and self._is_packed(number, position) and root.role == "constant":
                    scale = 1 / math.sqrt(_reduction(step))
                    value = add(kernel.weight_values * 4, {"scale": scale})
                elif root.role in ("constant", "input"):
                    if id(root) not in known:
                        known[id(root)] = add(root.size_bytes, self._file(root))
                    value = known[id(root)]
                arguments.append(value)
            changed = dataclasses.replace(step, arguments=tuple(arguments))
            if kernel:
                changed = dataclasses.replace(changed, kernel=kernel.name, tasks=kernel.tasks)
            program.steps.append(changed)
        program.copies = [
            (output, known.get(id(value.root)) or self._copied(value, add))
            for output, value in source.copies
        ]
        return program, inputs

    def _copied(self, value: Value, add: Any) -> Value:
        if value.root.role == "constant":
            return add(value.size_bytes, {"scale": 1.0})  # type: ignore[no-any-return]
        return value

    def _file(self, value: Value) -> dict[str, Any]:
        return {"file": str(self._constants), "offset": self._places[id(value)]}

    def discard(self, done: Round) -> None:
        """Delete a round's files."""
        for path in done.library.parent.iterdir():
            path.unlink()
        done.library.parent.rmdir()


def _reduction(step: KernelCall) -> float:
    """Return products that are summed for one value of the output."""
    values = max(1, math.prod(step.arguments[-1].shape))
    return max(1.0, step.flops / 2 / values)
