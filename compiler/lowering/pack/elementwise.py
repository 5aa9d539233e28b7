"""Provide elementwise operators: steps of an epilogue, of one operand or of two."""

import math

from tvm import relax

from edgec.compiler.ir.blocked_layout import Shape, by_channel
from edgec.compiler.ir.relax_helpers import constant, op_name, scalar_of, shape_of, value_of
from edgec.compiler.kernels.emit.epilogue import (
    WITH_QUANTIZED_OPERAND,
    EpilogueStep,
    activation_step,
)
from edgec.compiler.lowering.pack.context import Context
from edgec.compiler.lowering.pack.epilogue import absorbs, apply
from edgec.compiler.lowering.pack.quantized import add_integers
from edgec.compiler.lowering.pack.values import PackedValue
from edgec.compiler.numerics.support import Declined

_BROADCAST = Declined("its operand broadcasts along other axes than those of channels")

# Step when the chain's value is on the left, and when it is on the right.
BINARY: dict[str, tuple[str, str]] = {
    "relax.add": ("add", "add"),
    "relax.divide": ("divide", "divide_by"),
    "relax.maximum": ("maximum", "maximum"),
    "relax.minimum": ("minimum", "minimum"),
    "relax.multiply": ("multiply", "multiply"),
    "relax.subtract": ("subtract", "subtract_from"),
}


def match_unary(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Apply an activation or another function of one value."""
    shape = shape_of(call)
    if shape is None:
        return Declined("its shape is not known when compiling")
    return apply(context, context.value(call.args[0]), activation_step(call), [], shape)


def match_binary(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Apply arithmetic with a second operand that broadcasts."""
    shape = shape_of(call)
    if shape is None:
        return Declined("its shape is not known when compiling")
    forward, backward = BINARY[op_name(call)]
    left, right = (context.value(argument) for argument in call.args)
    # The value that goes on through the chain: the one of the result's shape, of two the one
    # whose kernel can take the step into its epilogue.
    candidates = [(left, right, forward), (right, left, backward)]
    candidates = [c for c in candidates if c[0].shape == shape and not _is_constant(c[0])]
    candidates.sort(key=lambda c: not absorbs(context, c[0]))
    for data, other, step in candidates:
        value = _binary(context, data, other, step, shape)
        if isinstance(value, PackedValue):
            return value
    return _BROADCAST


def _binary(
    context: Context, data: PackedValue, other: PackedValue, op: str, shape: Shape
) -> PackedValue | Declined:
    """Apply a step with a second operand to data of the shape of the result."""
    if op == "add" and other.quantized is not None:
        summed = add_integers(context, data, other)
        if summed is not None:
            return summed
    number = scalar_of(other.expression)
    if number is not None:
        return apply(context, data, _with_number(op, number), [], shape)
    if other.shape == shape:
        if data.blocked or other.blocked:
            data, other = context.blocked(data), context.blocked(other)
        if other.qparams is not None and op in WITH_QUANTIZED_OPERAND:
            operands = [other.expression, other.qparams.numbers]
            return apply(context, data, EpilogueStep(op, other.qparams.dtype), operands, shape)
        operand = context.as_floats(other).expression
        return apply(context, data, EpilogueStep(op, "element"), [operand], shape)
    other = context.as_floats(other)
    return _per_channel(context, data, other, op, shape)


def _per_channel(
    context: Context, data: PackedValue, other: PackedValue, op: str, shape: Shape
) -> PackedValue | Declined:
    """Apply a step whose operand broadcasts along channels, or along columns of a matrix."""
    padded = (1,) * (len(shape) - len(other.shape)) + other.shape
    varying = [axis for axis, extent in enumerate(padded) if extent != 1]
    if data.blocked:
        if any(axis > 1 for axis in varying):
            return _BROADCAST
        array = value_of(other.expression)
        if array is not None and 0 not in varying:
            operand = constant(by_channel(array, context.lanes))
            return apply(context, data, EpilogueStep(op, "channel"), [operand], shape)
        if padded[:2] != shape[:2] or len(padded) < 3:
            return _BROADCAST
        reshaped = _reshaped(context, other, padded)
        operand = context.blocked(reshaped).expression
        return apply(context, data, EpilogueStep(op, "image_channel"), [operand], shape)
    first, past = (varying[0], varying[-1] + 1) if varying else (0, 0)
    if padded[first:past] != shape[first:past]:
        return _BROADCAST
    outer, channels = math.prod(shape[:first]), math.prod(shape[first:past])
    planes = (outer, channels, math.prod(shape[past:]))
    operand = context.plain(other).expression
    return apply(context, data, EpilogueStep(op, "channel"), [operand], shape, planes)


def _reshaped(context: Context, value: PackedValue, shape: Shape) -> PackedValue:
    if value.shape == shape:
        return value
    plain = context.plain(value).expression
    return PackedValue(context.builder.emit(relax.op.reshape(plain, list(shape))), shape, False, 1)


def _with_number(op: str, number: float) -> EpilogueStep:
    """Return a binary step whose operand is a constant number."""
    return (
        EpilogueStep("add_number", None, (-number,))
        if op == "subtract"
        else EpilogueStep(f"{op}_number", None, (number,))
    )


def _is_constant(value: PackedValue) -> bool:
    return value_of(value.expression) is not None
