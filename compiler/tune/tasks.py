"""Describe what there is to tune in a model: its kernels, by what they compute."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
from tvm import IRModule

from edgec.compiler.backend import pack, schedule
from edgec.compiler.errors import UnsupportedModelError, UsageError, did_you_mean
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.frontend.model_argument import write_model
from edgec.compiler.frontend.model_source import read_model
from edgec.compiler.frontend.onnx_facts import index_bounds
from edgec.compiler.ir.program import Program
from edgec.compiler.ir.signature import Signature, Tensors
from edgec.compiler.kernels.template import from_text, to_text
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.legalize import lower
from edgec.compiler.lowering.schedule import Decide, default_decide
from edgec.compiler.lowering.time_estimate import estimate_step_cycles
from edgec.compiler.lowering.tuning_records import Key
from edgec.compiler.options import CompileOptions
from edgec.compiler.outputs import check_before_transform
from edgec.compiler.runtime.inputs import generate_inputs, rounded_to_half
from edgec.compiler.support.files import scratch_folder
from edgec.compiler.support.phases import Phases
from edgec.compiler.support.progress import Progress, Silent
from edgec.compiler.transform import open_samples, transform_model
from edgec.targets.target import Target


@dataclass(frozen=True)
class Task:
    """A task describes a kernel with decisions to make.

    Attributes:
        number: for people to name it by.
        label: the operators that it computes.
        key: what the decision is for.
        steps: positions of its calls in the program.
        default: the analytic model's decision, as text.
        share: part of the model's estimated time.
        flops: the flops of one call.
    """

    number: int
    label: str
    key: Key
    steps: tuple[int, ...]
    default: str
    share: float
    flops: int
    target: Target

    @cached_property
    def workload(self) -> Any:
        """Return what is computed."""
        return from_text(TEMPLATES[self.key.operator].workload, self.key.workload)

    @cached_property
    def estimates(self) -> dict[str, float]:
        """Return every decision that makes sense with its estimated cycles, best first."""
        template = TEMPLATES[self.key.operator]
        found = {
            to_text(decision): template.estimate(self.workload, decision, self.target)
            for decision in template.space(self.workload, self.target)
        }
        found.setdefault(self.default, 0.0)
        return dict(sorted(found.items(), key=lambda pair: pair[1]))


@dataclass(frozen=True)
class TuningPlan:
    """A tuning plan describes a model ready to be tuned.

    Attributes:
        program: with the analytic model's decisions.
        signature: inputs and outputs.
        inputs: to run it on.
        tasks: largest share first.
    """

    program: Program
    signature: Signature
    inputs: Tensors
    tasks: tuple[Task, ...]


@dataclass(frozen=True)
class PreparedModel:
    """A prepared model is one before decisions are taken.

    Attributes:
        module: the canonical module, compressed and quantized.
        lowered: the same of kernels.
        target: what it was lowered for.
        signature: inputs and outputs.
        inputs: to run it on.
    """

    module: IRModule
    lowered: IRModule
    target: Target
    signature: Signature
    inputs: Tensors

    def program(self, decide: Decide = default_decide) -> Program:
        """Return it with decisions.

        Raises:
            UnsupportedModelError: shapes depend on data, so there are no kernels of known size.
        """
        program = schedule(self.lowered, self.module, self.target, self.signature, decide)
        if not isinstance(program, Program):
            raise UnsupportedModelError(
                "shapes in this model depend on data, so its kernels have no sizes to tune for; "
                "freeze the input that they depend on (--freeze)"
            )
        return program

    def plan(self) -> TuningPlan:
        """Return the list of its kernels.

        Raises:
            UnsupportedModelError: see `program`.
        """
        program = self.program()
        return TuningPlan(program, self.signature, self.inputs, _tasks(program, self.target))


def plan_tuning(
    model: str | Path | onnx.ModelProto,
    target: Target,
    options: CompileOptions,
    progress: Progress | None = None,
) -> TuningPlan:
    """Return everything that a compile does before it chooses decisions, and the list of kernels.

    See `prepare_model`.
    """
    return prepare_model(model, target, options, progress).plan()


def prepare_model(
    model: str | Path | onnx.ModelProto,
    target: Target,
    options: CompileOptions,
    progress: Progress | None = None,
) -> PreparedModel:
    """Return everything that a compile does before it chooses decisions.

    Args:
        model: the ONNX file, or what was read from one.
        target: the target that it is tuned for.
        options: what shapes the model: shapes, frozen inputs, compression and quantization.
        progress: reports what takes long; by default nothing does.

    Raises:
        EdgecError: see `compile_model`.
    """
    check_before_transform(options)
    if isinstance(model, onnx.ModelProto):
        with scratch_folder() as scratch:
            source = read_model(write_model(model, scratch), options.limits)
    else:
        source = read_model(
            Path(model), options.limits, options.context, cache=options.cache, lora=options.adapters
        )
    canonical = canonical_model(
        source,
        options.one_program("tune").shapes,
        options.freeze,
        options.limits,
        images=options.images,
    )
    signature = canonical.signature
    samples = open_samples(options, canonical.graph, signature)
    if samples is not None:
        inputs = rounded_to_half(next(iter(samples)))
    else:
        bounds = index_bounds(canonical.graph.graph)
        inputs = generate_inputs(signature.inputs, options.seed, bounds)
    progress = progress or Silent()
    asked = {"compress": options.compression, "quantize": options.quantization}
    phases = Phases(progress, [name for name, given in asked.items() if given is not None])
    transformed = transform_model(
        canonical, target, options, samples, inputs, source.sha256, progress, phases
    )
    module = transformed.module
    lowered = lower(pack(module, target, canonical.value_names), target)
    return PreparedModel(module, lowered, target, signature, inputs)


def _tasks(program: Program, target: Target) -> tuple[Task, ...]:
    cycles = [estimate_step_cycles(step, target) for step in program.steps]
    steps: dict[Key, list[int]] = {}
    for position, step in enumerate(program.steps):
        operator = f"edgec.{step.template}"
        if step.workload and _has_choice(operator, step.workload, target):
            steps.setdefault(Key(operator, step.workload), []).append(position)
    shares = {key: sum(cycles[i] for i in found) / sum(cycles) for key, found in steps.items()}
    ordered = sorted(steps, key=lambda key: -shares[key])
    tasks = []
    for number, key in enumerate(ordered):
        template = TEMPLATES[key.operator]
        first = program.steps[steps[key][0]]
        default = default_decide(key.operator, from_text(template.workload, key.workload), target)
        tasks.append(
            Task(
                number,
                first.label,
                key,
                tuple(steps[key]),
                to_text(default),
                shares[key],
                first.flops,
                target,
            )
        )
    return tuple(tasks)


def _has_choice(operator: str, workload: str, target: Target) -> bool:
    template = TEMPLATES[operator]
    return len(template.space(from_text(template.workload, workload), target)) > 1


def select_tasks(tasks: Sequence[Task], wanted: str) -> tuple[Task, ...]:
    """Return tasks by numbers, ranges or parts of their labels: `0,2-5,conv`.

    Raises:
        UsageError: a part fits no task.
    """
    if not wanted:
        return tuple(tasks)
    chosen: set[int] = set()
    for part in wanted.split(","):
        found = set(_matching(tasks, part.strip()))
        if not found:
            near = did_you_mean(part, {task.label for task in tasks})
            raise UsageError(
                f"--tasks {part!r} fits none of the {len(tasks)} tasks{near}; --dry-run lists them"
            )
        chosen |= found
    return tuple(task for task in tasks if task.number in chosen)


def _matching(tasks: Sequence[Task], part: str) -> Iterable[int]:
    first, dash, last = part.partition("-")
    if first.isdigit() and (last.isdigit() or not dash):
        numbers = range(int(first), int(last or first) + 1)
        return [task.number for task in tasks if task.number in numbers]
    return [task.number for task in tasks if part in (task.label, task.key.operator)] or [
        task.number for task in tasks if part and part in task.label
    ]
