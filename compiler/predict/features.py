"""Describe a kernel call by numbers that its time follows from."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.ir.program import KernelCall, Program, Value
from edgec.compiler.kernels.conv.winograd_decision import WinogradDecision
from edgec.compiler.kernels.template import from_text
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.time_estimate import estimate_step_cycles
from edgec.compiler.predict.operation_counts import KINDS, NotCountable, count_operations
from edgec.compiler.predict.traffic import Traffic
from edgec.targets import Target

Row = NDArray[np.float64]

# What a time is a sum of, beside the counted operations.
FEATURES = (*KINDS, "call", "near_bytes", "middle_bytes", "far_bytes", "cycles")

# What else tells calls of one kind apart, for the trees that correct the sum.
CONTEXT = (
    *("tasks", "flops", "result_bytes", "constant_bytes", "operand_bytes", "operands"),
    *("result_item", "operand_item", "operand_distance", "result_distance"),
)

# Counts by kernel: its name is a digest of its code.
_COUNTED: dict[tuple[str, int, int], Row | None] = {}


def weight_bytes_of(program: Program) -> int:
    """Return the bytes of all constants of a program, each content once."""
    by_size: dict[int, list[Value]] = defaultdict(list)
    for value in program.constants():
        if value.array is not None:
            by_size[value.array.nbytes].append(value)
    total = 0
    for size, values in by_size.items():
        # Only what is of one size can be equal.
        digests = {_digest(value) for value in values} if len(values) > 1 else values
        total += size * len(digests)
    return total


def _digest(value: Value) -> bytes:
    assert value.array is not None
    return hashlib.sha256(np.ascontiguousarray(value.array).data).digest()


@dataclass(frozen=True)
class StepFeatures:
    """The features of a step describe one kernel call.

    Attributes:
        kind: its kernel template, or `generic`, and the algorithm where a template has several.
        row: numbers by `FEATURES`.
        counted: whether the operations could be counted; else their place is empty.
        cycles: what the analytic model of the template says.
        context: numbers by `CONTEXT`.
    """

    kind: str
    row: Row
    counted: bool
    cycles: float
    context: Row = field(default_factory=lambda: np.zeros(len(CONTEXT)))


def step_features(
    step: KernelCall,
    function: tirx.PrimFunc,
    traffic: Traffic,
    target: Target,
) -> StepFeatures:
    """Return the features of one step on one core.

    Args:
        step: the call.
        function: the code of its kernel.
        traffic: what it moves.
        target: what it was scheduled for.
    """
    key = (step.kernel, step.tasks, target.vector_bits)
    if key not in _COUNTED:
        try:
            _COUNTED[key] = count_operations(function, step.tasks, target.vector_bits)
        except NotCountable:
            _COUNTED[key] = None
    counts = _COUNTED[key]
    decision, cycles = _decided(step, target)
    kind = f"{step.template} winograd" if isinstance(decision, WinogradDecision) else step.template
    known = counts if counts is not None else np.zeros(len(KINDS))
    row = np.concatenate([known, [1.0], traffic.moved, [cycles]])
    return StepFeatures(kind, row, counts is not None, cycles, _context(step, traffic))


def _context(step: KernelCall, traffic: Traffic) -> Row:
    values = {id(value): value for value in step.arguments}.values()
    constants = sum(value.size_bytes for value in values if value.root.role == "constant")
    first, last = step.arguments[0], step.arguments[-1]
    result = last.size_bytes
    operands = sum(value.size_bytes for value in values) - constants - result
    items = (np.dtype(last.dtype).itemsize, np.dtype(first.dtype).itemsize)
    counts = (step.tasks, step.flops, result, constants, operands, len(step.arguments))
    distances = (traffic.operand_distance, traffic.result_distance)
    return np.array([*counts, *items, *distances], np.float64)


def _decided(step: KernelCall, target: Target) -> tuple[Any, float]:
    """Return the decision of a call, and its cycles by the analytic model of its template.

    By operations and bytes where the template has no model.
    """
    decision: Any = None
    if step.decision:
        template = TEMPLATES[f"edgec.{step.template}"]
        workload = from_text(template.workload, step.workload)
        decision = from_text(template.decision, step.decision)
        cycles = template.estimate(workload, decision, _one_core(target))
        if cycles > 0:
            return decision, float(cycles)
    return decision, float(estimate_step_cycles(step, target))


@lru_cache(maxsize=8)
def _one_core(target: Target) -> Target:
    return target.model_copy(update={"cores": 1})
