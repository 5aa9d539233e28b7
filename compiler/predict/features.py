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
from edgec.compiler.kernels.emit.machine_model import KIB
from edgec.compiler.kernels.template import from_text
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.time_estimate import estimate_step_cycles
from edgec.compiler.predict.operation_counts import KINDS, NotCountable, count_operations
from edgec.compiler.predict.workload_numbers import NUMBERS, kind_of, workload_numbers
from edgec.targets import Target

Row = NDArray[np.float64]

# What a time is a sum of, beside the counted operations.
FEATURES = (*KINDS, "call", "near_bytes", "middle_bytes", "far_bytes", "cycles")

# What else tells calls of one kind apart, for the trees that correct the sum.
STEP = ("tasks", "flops", "result_bytes", "constant_bytes", "operand_bytes", "operands")
CONTEXT = (*STEP, *NUMBERS)

# Shares of a cache that a program keeps beside what else a core touches.
KEPT_OF_L2 = 0.75
KEPT_OF_L3 = 0.5

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


def traffic_of(program: Program, target: Target, weights: int) -> list[Row]:
    """Return for each step the bytes that come from the core's caches, the last one, and memory.

    Where bytes come from follows from what was touched since they were touched last (the reuse
    distance of Mattson et al. 1970): for activations the calls between, for weights a whole
    inference. A result goes where operands of its size come from.

    Args:
        program: the program.
        target: whose caches.
        weights: the bytes of its constants.
    """
    steps = [list({id(v): v for v in step.arguments}.values()) for step in program.steps]
    sizes = {id(value): value.size_bytes for values in steps for value in values}
    touched = [sum(sizes[id(value)] for value in values) for values in steps]
    constants = (v for values in steps for v in values if v.root.role == "constant")
    whole = weights + sum(touched) - sum(sizes[id(value)] for value in constants)
    before = 0
    last: dict[int, int] = {}
    found = []
    for values, own in zip(steps, touched, strict=True):
        moved = np.zeros(3)
        for value in values:
            key = id(value.root)
            if value.root.role == "constant":
                distance = whole
            elif key in last:
                distance = before - last[key] + own
            else:
                distance = own
            moved[_level(distance, target)] += sizes[id(value)]
        before += own
        for value in values:
            last[id(value.root)] = before
        found.append(moved)
    return found


@dataclass(frozen=True)
class StepFeatures:
    """The features of a step describe one kernel call.

    Attributes:
        kind: see `kind_of`.
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
    moved: Row,
    target: Target,
) -> StepFeatures:
    """Return the features of one step on one core.

    Args:
        step: the call.
        function: the code of its kernel.
        moved: what `traffic_of` says of it.
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
    kind = kind_of(step.template, step.workload, isinstance(decision, WinogradDecision))
    known = counts if counts is not None else np.zeros(len(KINDS))
    row = np.concatenate([known, [1.0], moved, [cycles]])
    return StepFeatures(kind, row, counts is not None, cycles, _context(step))


def _context(step: KernelCall) -> Row:
    values = {id(value): value for value in step.arguments}.values()
    constants = sum(value.size_bytes for value in values if value.root.role == "constant")
    result = step.arguments[-1].size_bytes if step.arguments else 0
    operands = sum(value.size_bytes for value in values) - constants - result
    counts = (step.tasks, step.flops, result, constants, operands, len(step.arguments))
    return np.concatenate([np.array(counts, np.float64), workload_numbers(step.workload)])


def _level(distance: float, target: Target) -> int:
    """Return where bytes come from: 0 the core's caches, 1 the last level, 2 memory."""
    if distance <= KEPT_OF_L2 * target.l2_kib * KIB:
        return 0
    return 1 if distance <= KEPT_OF_L3 * target.l3_kib * KIB else 2


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
