"""Apply steps to a value: in the epilogue of its kernel, or in a kernel of their own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import relax

from edgec.compiler.ir.blocked_layout import Shape
from edgec.compiler.ir.relax_helpers import constant, op_name
from edgec.compiler.kernels.elementwise import ElementwiseWorkload
from edgec.compiler.kernels.emit.epilogue import EpilogueStep, output_dtype
from edgec.compiler.kernels.template import Template, from_text
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.pack.context import Context
from edgec.compiler.lowering.pack.values import PackedValue


@dataclass(frozen=True)
class OpenKernel:
    """An open kernel describes a kernel call whose epilogue can still be changed.

    Nothing else reads its result.

    Attributes:
        operator: name of its template.
        template: the template.
        workload: the workload of the call.
        arguments: the arguments of the call.
        place: shape of the result in memory.
    """

    operator: str
    template: Template
    workload: Any
    arguments: tuple[Any, ...]
    place: tuple[int, ...]

    @property
    def steps(self) -> tuple[EpilogueStep, ...]:
        """Return the epilogue."""
        kept = getattr(self.workload, self.template.epilogue)
        return kept if isinstance(kept, tuple) else kept.epilogue

    def with_steps(self, steps: tuple[EpilogueStep, ...]) -> Any:
        """Return the workload with another epilogue."""
        kept = getattr(self.workload, self.template.epilogue)
        longer = steps if isinstance(kept, tuple) else replace(kept, epilogue=steps)
        return replace(self.workload, **{self.template.epilogue: longer})

    def emit(
        self, context: Context, arguments: Sequence[Any], workload: Any, dtype: str = "float32"
    ) -> relax.Var:
        """Emit the kernel again with other arguments and another workload."""
        return context.emit(self.operator, arguments, workload, self.place, dtype)


# Steps of one epilogue: a longer chain goes through memory, as its code would not end.
MOST_STEPS = 48


def absorbs(context: Context, data: PackedValue) -> bool:
    """Tell whether the kernel that computes a value can take one more step."""
    call = context.made.get(data.expression)
    if call is None or data.uses != 1 or data.qparams is not None:
        return False
    return bool(TEMPLATES[op_name(call)].epilogue)


def open_kernel(context: Context, data: PackedValue) -> OpenKernel | None:
    """Return the kernel that computes a value, if it can take one more step."""
    if not absorbs(context, data):
        return None
    call = context.made[data.expression]
    operator = op_name(call)
    template = TEMPLATES[operator]
    workload = from_text(template.workload, str(call.attrs["workload"]))
    place = tuple(int(extent) for extent in call.attrs["shape"])
    return OpenKernel(operator, template, workload, tuple(call.args), place)


def apply(
    context: Context,
    data: PackedValue,
    step: EpilogueStep,
    operands: Sequence[Any],
    shape: Shape,
    planes: tuple[int, int, int] | None = None,
) -> PackedValue:
    """Emit one step on a value: in the epilogue of its kernel, or as a kernel of its own.

    Args:
        context: the state of the packing.
        data: the value.
        step: what to do to it.
        operands: the operands of the step.
        shape: the shape of the result.
        planes: outer, channels and inner extents of a channel operand of a plain value.
    """
    kernel = open_kernel(context, data)
    if kernel is not None and len(kernel.steps) < MOST_STEPS:
        # In the other kernels the channels of a plain value are its last dimension.
        fits = planes is None or planes[1:] == (shape[-1], 1)
        if kernel.operator == "edgec.elementwise":
            alone = context.elementwise_workload(data, step, shape, planes)
            merged = _merged(kernel.workload, alone)
            fits, kernel = merged is not None, replace(kernel, workload=merged or kernel.workload)
        if kernel.operator == "edgec.standardize":
            held = kernel.workload.with_planes(planes)
            fits, kernel = held is not None, replace(kernel, workload=held or kernel.workload)
        if fits:
            longer = kernel.with_steps((*kernel.steps, step))
            arguments = [*kernel.arguments, *operands]
            variable = kernel.emit(context, arguments, longer, output_dtype([step]))
            return PackedValue(variable, shape, data.blocked, 1)
    workload = context.elementwise_workload(data, step, shape, planes)
    if data.qparams is not None:
        workload = replace(workload, steps=(EpilogueStep("multiply", "number"), step))
        operands = [constant(np.array([data.qparams.scale], np.float32)), *operands]
    variable = context.emit(
        "edgec.elementwise",
        [data.expression, *operands],
        workload,
        context.place(replace(data, shape=shape)),
        output_dtype([step]),
    )
    return PackedValue(variable, shape, data.blocked, 1)


def _merged(chain: ElementwiseWorkload, alone: ElementwiseWorkload) -> ElementwiseWorkload | None:
    """Return the chain with planes that suit one more step too, None if there are none.

    Steps without a channel operand suit any.
    """

    def has_channels(workload: ElementwiseWorkload) -> bool:
        return any(step.operand in ("channel", "image_channel") for step in workload.steps)

    alone = replace(alone, data=chain.data, zero_point=chain.zero_point)
    if not has_channels(alone) or replace(alone, steps=()) == replace(chain, steps=()):
        return chain
    return None if has_channels(chain) else replace(alone, steps=chain.steps)
