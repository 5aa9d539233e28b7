"""Describe a kernel call by numbers that its time follows from."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.codegen.memory import plan_memory
from edgec.compiler.ir.program import KernelCall, Program
from edgec.compiler.kernels.emit.machine_model import KIB
from edgec.compiler.kernels.template import from_text
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.schedule import Decide
from edgec.compiler.lowering.time_estimate import estimate_step_cycles
from edgec.compiler.predict.operation_counts import KINDS, NotCountable, count_operations
from edgec.targets import Target

Row = NDArray[np.float64]

# What a time is a sum of, beside the counted operations.
FEATURES = (*KINDS, "call", "near_bytes", "middle_bytes", "far_bytes", "cycles")

# Shares of a cache that a program keeps beside what else a core touches.
KEPT_OF_L2 = 0.75
KEPT_OF_L3 = 0.5

# Counts by kernel: its name is a digest of its code.
_COUNTED: dict[tuple[str, int, int], Row | None] = {}


@dataclass(frozen=True)
class Surroundings:
    """Surroundings describe what a kernel call shares the caches with.

    Attributes:
        weight_bytes: constants of the whole program, each content once.
        arena_bytes: its activations at their peak.
    """

    weight_bytes: int
    arena_bytes: int


def surroundings_of(program: Program) -> Surroundings:
    """Return what the calls of a program share."""
    sizes: dict[bytes, int] = {}
    for value in program.constants():
        if value.array is not None:
            sizes[hashlib.sha256(value.array.tobytes()).digest()] = value.array.nbytes
    return Surroundings(sum(sizes.values()), plan_memory(program).arena_bytes)


@dataclass(frozen=True)
class StepFeatures:
    """The features of a step describe one kernel call.

    Attributes:
        template: its kernel template, or `generic`.
        row: numbers by `FEATURES`.
        counted: whether the operations could be counted; else their place is empty.
        cycles: what the analytic model of the template says.
    """

    template: str
    row: Row
    counted: bool
    cycles: float


def step_features(
    step: KernelCall,
    function: tirx.PrimFunc,
    around: Surroundings,
    target: Target,
    decide: Decide,
) -> StepFeatures:
    """Return the features of one step on one core.

    Args:
        step: the call.
        function: the code of its kernel.
        around: what it shares the caches with.
        target: what it was scheduled for.
        decide: what chose the decisions.
    """
    key = (step.kernel, step.tasks, target.vector_bits)
    if key not in _COUNTED:
        try:
            _COUNTED[key] = count_operations(function, step.tasks, target.vector_bits)
        except NotCountable:
            _COUNTED[key] = None
    counts = _COUNTED[key]
    values = {id(v): v for v in step.arguments}.values()
    weights = sum(v.size_bytes for v in values if v.root.role == "constant")
    data = sum(v.size_bytes for v in values if v.root.role != "constant")
    cycles = _model_cycles(step, target, decide)
    known = counts if counts is not None else np.zeros(len(KINDS))
    moved = np.zeros(3)
    # Weights are met again after a whole inference, activations after their neighbours.
    moved[_distance(around.weight_bytes + around.arena_bytes, target)] += weights
    moved[_distance(data + weights, target)] += data
    row = np.concatenate([known, [1.0], moved, [cycles]])
    return StepFeatures(step.template, row, counts is not None, cycles)


def _distance(kept_bytes: float, target: Target) -> int:
    """Return where bytes come from: 0 the core's caches, 1 the last level, 2 memory."""
    if kept_bytes <= KEPT_OF_L2 * target.l2_kib * KIB:
        return 0
    return 1 if kept_bytes <= KEPT_OF_L3 * target.l3_kib * KIB else 2


def _model_cycles(step: KernelCall, target: Target, decide: Decide) -> float:
    """Return cycles by the template's own model, or by operations and bytes where it has none."""
    operator = f"edgec.{step.template}"
    if operator in TEMPLATES and step.workload:
        template = TEMPLATES[operator]
        workload: Any = from_text(template.workload, step.workload)
        decision = decide(operator, workload, target)
        if 1 in step.constants:
            decision = template.for_weights(workload, decision, target, step.constants[1])
        one_core = target.model_copy(update={"cores": 1})
        cycles = template.estimate(workload, decision, one_core)
        if cycles > 0:
            return float(cycles)
    return float(estimate_step_cycles(step, target))
