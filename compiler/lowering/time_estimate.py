"""Provide estimated time of each step, and what the steps without a kernel template add up to."""

import math
from collections import defaultdict
from collections.abc import Collection

from tvm import IRModule

from edgec.compiler.ir.program import KernelCall, Program, Value
from edgec.compiler.kernels.emit.machine_model import FAR_BYTES_PER_CYCLE
from edgec.compiler.lowering.tuning_records import Key
from edgec.targets.target import Target

# Template code reaches about this share of the target's peak.
TEMPLATE_EFFICIENCY = 0.7
# Operations a cycle of generic code that sums, value by value.
GENERIC_OPS_PER_CYCLE = 1.0
# Generic code with no more operations than this for a value of its result computes vectors.
ELEMENTWISE_OPS = 16
# An operator in generic code is worth a word from this share on, and from so many cycles on.
TELLING_SHARE = 0.1
TELLING_CYCLES = 1e5


def estimate_step_cycles(step: KernelCall, target: Target) -> float:
    """Return cycles of a step on one core: the slower of computing and of moving its buffers."""
    peak = 2 * target.float_lanes * target.fma_units * TEMPLATE_EFFICIENCY
    speed = _generic_speed(step, target) if step.template == "generic" else peak
    moved = sum(_bytes_moved(step, value) for value in {id(v): v for v in step.arguments}.values())
    return max(step.flops / speed, moved / FAR_BYTES_PER_CYCLE)


def _generic_speed(step: KernelCall, target: Target) -> float:
    """Return operations a cycle of generic code."""
    values = math.prod(step.arguments[-1].shape)
    if step.flops <= ELEMENTWISE_OPS * values:
        return GENERIC_OPS_PER_CYCLE * target.float_lanes
    return GENERIC_OPS_PER_CYCLE


def _bytes_moved(step: KernelCall, value: Value) -> int:
    """Return a table that generic code looks values up in is not read as a whole."""
    if step.template == "generic" and value.root.role == "constant":
        return min(value.size_bytes, step.arguments[-1].size_bytes)
    return value.size_bytes


def estimated_ms(program: Program, target: Target) -> float:
    """Return milliseconds of a program on one core, by its steps."""
    cycles = sum(estimate_step_cycles(step, target) for step in program.steps)
    return cycles / (target.clock_ghz * 1e6)


def tuned_share(program: Program | IRModule, tuned: Collection[Key], target: Target) -> float:
    """Return part of the estimated time that is spent in kernels with a tuning record."""
    if not isinstance(program, Program):
        return 0.0
    total = covered = 0.0
    for step in program.steps:
        cycles = estimate_step_cycles(step, target)
        total += cycles
        if Key(f"edgec.{step.template}", step.workload) in tuned:
            covered += cycles
    return covered / total if total else 0.0


def describe_generic(program: Program | IRModule, target: Target) -> str:
    """Return one line about the operators that no kernel template computes, by estimated share."""
    if not isinstance(program, Program):
        return "shapes depend on data: every operator runs generic code on the virtual machine"
    total, generic = _generic_cycles(program, target)
    if not generic:
        return "every operator has a kernel template"
    shares = sorted(generic.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{label} {cycles / total:.1%}" for label, cycles in shares)
    share = sum(generic.values()) / total
    return f"generic code for {share:.1%} of the estimated time: {listed}"


def warn_of_generic(program: Program | IRModule, target: Target) -> str:
    """Return a line about operators without a kernel that take much of the estimated time.

    Empty if there are none, or if they are over at once.
    """
    if not isinstance(program, Program):
        return ""
    total, generic = _generic_cycles(program, target)
    slow = {
        label: cycles / total
        for label, cycles in sorted(generic.items(), key=lambda item: -item[1])
        if cycles > max(TELLING_SHARE * total, TELLING_CYCLES)
    }
    if not slow:
        return ""
    listed = ", ".join(
        f"{label} ({share:.0%} of the estimated time)" for label, share in slow.items()
    )
    return f"no kernel computes {listed}: it runs generic code, which may be slow; -v says why"


def _generic_cycles(program: Program, target: Target) -> tuple[float, dict[str, float]]:
    """Return the estimated cycles of a program, and those in generic code by operator."""
    total = 0.0
    generic: dict[str, float] = defaultdict(float)
    for step in program.steps:
        cycles = estimate_step_cycles(step, target)
        total += cycles
        if step.template == "generic":
            generic[step.label.rstrip("0123456789_")] += cycles
    return total, generic
