"""Describe a kernel call by numbers that its time follows from."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.ir.program import KernelCall
from edgec.compiler.kernels.template import from_text
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.schedule import Decide
from edgec.compiler.lowering.time_estimate import estimate_step_cycles
from edgec.compiler.predict.operation_counts import KINDS, NotCountable, count_operations
from edgec.targets import Target

Row = NDArray[np.float64]

# What a time is a sum of, beside the counted operations.
FEATURES = (*KINDS, "call", "weight_bytes", "data_bytes", "cycles")

# Counts by kernel: its name is a digest of its code.
_COUNTED: dict[tuple[str, int, int], Row | None] = {}


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
    step: KernelCall, function: tirx.PrimFunc, target: Target, decide: Decide
) -> StepFeatures:
    """Return the features of one step on one core.

    Args:
        step: the call.
        function: the code of its kernel.
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
    row = np.concatenate([known, [1.0, weights, data, cycles]])
    return StepFeatures(step.template, row, counts is not None, cycles)


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
