"""Quantize and dequantize: the last step of a kernel, and a note on what a value stands for."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from edgec.compiler.ir.blocked_layout import Shape
from edgec.compiler.ir.relax_helpers import constant, dtype_of, shape_of, value_of
from edgec.compiler.kernels.emit.epilogue import EpilogueStep
from edgec.compiler.kernels.table_lookup import TableLookupWorkload, table_of
from edgec.compiler.lowering.pack.context import Context
from edgec.compiler.lowering.pack.epilogue import apply, open_kernel
from edgec.compiler.lowering.pack.requantize import (
    combined,
    function_of_quantized,
    quantizer,
    requantized,
    with_bias,
)
from edgec.compiler.lowering.pack.values import (
    PackedValue,
    QParams,
    qparams_of,
    quantized_constant,
)
from edgec.compiler.numerics.support import Declined


def match_quantize(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Make a quantize the last step of the epilogue of the kernel before it."""
    qparams, shape = qparams_of(call, str(call.attrs.out_dtype)), shape_of(call)
    if shape is None or dtype_of(call.args[0]) != "float32":
        return Declined("only float32 tensors of known shapes have a kernel that quantizes them")
    if qparams is None:
        return _quantize_dynamically(context, call, shape)
    qparams = _for_target(context, qparams)
    data = context.value(call.args[0])
    if data.qparams == qparams:
        context.largest[data.expression] = data.qparams.largest
        return replace(data, qparams=None)
    looked_up = _looked_up(context, data, qparams)
    if looked_up is not None:
        return looked_up
    data, bounds = _without_clip(context, data)
    numbers = quantizer(qparams, bounds)
    below, above = numbers[2:] == quantizer(qparams, None)[2:]
    ends = bool(below), bool(above)
    fixed = _in_fixed_point(context, data, qparams, numbers, ends)
    fixed = fixed or _combined(context, data, qparams, numbers, ends)
    if fixed is not None:
        return fixed
    open_ends = float(below), float(above and _is_scaled_accumulator(context, data, numbers[0]))
    step = EpilogueStep(f"quantize_{qparams.dtype}", "quantizer", open_ends)
    result = apply(context, data, step, [constant(numbers)], shape)
    context.largest[result.expression] = int(np.rint(numbers[3])) + qparams.zero_point
    return result


def _in_fixed_point(
    context: Context,
    data: PackedValue,
    qparams: QParams,
    numbers: NDArray[np.float32],
    ends: tuple[bool, bool],
) -> PackedValue | None:
    """Requantize accumulators by one step of the kernel that computes them; None if it cannot.

    Args:
        context: the state of the packing.
        data: the floats.
        qparams: the qparams of the result.
        numbers: as `quantizer` gives them.
        ends: whether the smallest and the largest value are those of the type.
    """
    kernel = open_kernel(context, data)
    if kernel is None:
        return None
    known = context.decided.get(context.variable)
    if known is None and context.variable in context.decided:
        return None
    found = requantized(kernel, qparams, numbers, ends, known)
    if found is None:
        return None
    step, arguments, context.requantizations[context.variable] = found
    variable = kernel.emit(context, arguments, kernel.with_steps((step,)), qparams.dtype)
    context.largest[variable] = int(np.rint(numbers[3])) + qparams.zero_point
    return replace(data, expression=variable)


def _combined(
    context: Context,
    data: PackedValue,
    qparams: QParams,
    numbers: NDArray[np.float32],
    ends: tuple[bool, bool],
) -> PackedValue | None:
    """Emit a sum, or a product with a gate, in 16 bits; None if it is none.

    Args as of `_in_fixed_point`.
    """
    kernel = open_kernel(context, data)
    if kernel is None or kernel.operator != "edgec.elementwise":
        return None
    arguments, gate = kernel.arguments, None
    if len(arguments) > 2 and arguments[2] in context.made:
        gate = context.made[arguments[2]]
    found = combined(kernel.workload, arguments, gate, qparams, numbers, ends)
    if found is None or not data.blocked:
        return None
    place = context.place(data)
    variable = context.emit(
        "edgec.integer_elementwise", found.operands, found.workload, place, qparams.dtype
    )
    context.largest[variable] = int(np.rint(numbers[3])) + qparams.zero_point
    return replace(data, expression=variable)


def _is_scaled_accumulator(context: Context, data: PackedValue, inverse: np.float32) -> bool:
    """Tell whether a value is an int32 whose multiple by `inverse` stays below 2**31."""
    kernel = open_kernel(context, data)
    if kernel is None or kernel.template.accumulator != "int32":
        return False
    scale = value_of(kernel.arguments[-1])
    alone = kernel.steps == (EpilogueStep("multiply", "channel"),)
    return alone and scale is not None and float(np.abs(scale * inverse).max()) < 0.5


def _looked_up(context: Context, data: PackedValue, qparams: QParams) -> PackedValue | None:
    """Emit a function of a quantized value by a table; None if it is none."""
    found = (
        (data.qparams, ()) if data.qparams is not None else _function_of_quantized(context, data)
    )
    if found is None or found[0].dtype != qparams.dtype:
        return None
    before, steps = found
    table = table_of(
        qparams.dtype, before.scale, before.zero_point, steps, quantizer(qparams, None)
    )
    source = data.expression if data.qparams is not None else context.made[data.expression].args[0]
    place = context.place(data)
    workload = TableLookupWorkload(math.prod(place))
    arguments = [source, constant(table)]
    variable = context.emit("edgec.lookup", arguments, workload, place, qparams.dtype)
    context.largest[variable] = int(table.view(qparams.dtype).max())
    return replace(data, expression=variable, qparams=None)


def _function_of_quantized(
    context: Context, data: PackedValue
) -> tuple[QParams, tuple[EpilogueStep, ...]] | None:
    """Return the steps that a kernel applies to a quantized value, if it does only that."""
    kernel = open_kernel(context, data)
    if kernel is None or kernel.operator != "edgec.elementwise":
        return None
    scale = value_of(kernel.arguments[1]) if len(kernel.arguments) > 1 else None
    return function_of_quantized(kernel.workload, scale)


def _quantize_dynamically(
    context: Context, call: relax.Call, shape: Shape
) -> PackedValue | Declined:
    """Quantize by a scale and zero point that the graph computes."""
    scale, zero = call.args[1:]
    dtype = str(call.attrs.out_dtype)
    if shape_of(scale) != () or shape_of(zero) != () or dtype not in ("uint8", "int8"):
        return Declined("only 8-bit values of one scale have a kernel that quantizes to them")
    emit, op = context.builder.emit, relax.op

    def number(value: float) -> Any:
        return constant(np.array([value], np.float32))

    whole = emit(op.astype(context.plain_expression(zero), "float32"))
    limits = np.iinfo(dtype)
    numbers = [
        op.divide(number(1), context.plain_expression(scale)),
        op.add(number(0), whole),
        op.subtract(number(limits.min), whole),
        op.subtract(number(limits.max), whole),
    ]
    together = emit(op.concat([emit(value) for value in numbers], axis=0))
    data = context.float_value(call.args[0])
    return apply(context, data, EpilogueStep(f"quantize_{dtype}", "quantizer"), [together], shape)


def _without_clip(
    context: Context, data: PackedValue
) -> tuple[PackedValue, tuple[float, float] | None]:
    """Return the value without a clip or ReLU at its end, and the bounds of that."""
    kernel = open_kernel(context, data)
    if kernel is None:
        return data, None
    steps = kernel.steps
    last = steps[-1] if len(steps) > 1 else None
    if last is None or last.op not in ("relu", "clip"):
        return data, None
    low, high = last.parameters if last.op == "clip" else (0.0, math.inf)
    shorter = kernel.emit(context, kernel.arguments, kernel.with_steps(steps[:-1]))
    return replace(data, expression=shorter), (low, high)


def match_dequantize(context: Context, call: relax.Call) -> PackedValue | Declined | None:
    """Note what quantized values stand for; None for weights, which their readers look at."""
    rounded, shape = quantized_constant(call), shape_of(call)
    assert shape is not None
    if rounded is not None:
        if rounded.values.dtype != np.int32:
            return None
        axis = int(call.attrs.axis) % len(shape)
        along = [-1 if i == axis else 1 for i in range(len(shape))]
        floats = (rounded.values * rounded.scales.reshape(along)).astype(np.float32)
        return PackedValue(constant(floats), shape, False, 1, quantized=rounded)
    qparams = qparams_of(call, dtype_of(call.args[0]))
    data = context.value(call.args[0])
    if qparams is None or data.qparams is not None:
        return Declined("only 8-bit values of one constant scale stay quantized between kernels")
    if dtype_of(data.expression) != qparams.dtype:
        qparams = _for_target(context, qparams)
    largest = context.largest.get(data.expression, qparams.largest)
    return replace(data, qparams=replace(qparams, largest=max(largest, qparams.zero_point)))


def _for_target(context: Context, qparams: QParams) -> QParams:
    """Return the parameters of the same values in the type that the target multiplies."""
    assert context.dot is not None
    return qparams.as_type(context.dot.data)


def add_integers(context: Context, data: PackedValue, other: PackedValue) -> PackedValue | None:
    """Add a bias in units of the products to the accumulators; None if the kernel cannot."""
    kernel, bias = open_kernel(context, data), other.quantized
    if kernel is None or bias is None:
        return None
    size = data.shape[1 if data.blocked else -1]
    arguments = with_bias(kernel, size, bias)
    if arguments is None:
        return None
    return replace(data, expression=kernel.emit(context, arguments, kernel.workload))
