"""Provide quantization, and products of integers.

A quantized tensor x stands for `(x - zero_point) * scale`. Products are summed in int32, exactly.
They come back to 8 bits as ONNX Runtime does it: times a float32 multiplier, rounded to the
nearest integer, ties to even, plus the zero point, saturated.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax, te, tirx, topi

from edgec.compiler.frontend.converters.convolution import convolve
from edgec.compiler.frontend.converters.exact_integers import exact_convolution, exact_matmul
from edgec.compiler.frontend.converters.types import cast, encode
from edgec.compiler.frontend.node import Node, Refusal, constant_value, dtype_of, static_shape
from edgec.compiler.ir.signature import dtype_name
from edgec.compiler.ir.storage import FLOATS, INTEGER_BITS, held_as, integer_range

op = relax.op


def convert_quantize_linear(node: Node) -> relax.Expr:
    """Return QuantizeLinear per tensor, per axis or blocked.

    Saturate(round(x / scale) + zero_point).

    The division is in the type of attribute `precision`, by default that of the scale.
    """
    attributes = node.attributes
    data, scale, zero_point = node.input(0), node.input(1), node.optional(2)
    target = "uint8"
    if zero_point is not None:
        target = node.dtype(2)
    elif attributes.get("output_dtype"):
        target = dtype_name(attributes["output_dtype"])
    stated = attributes.get("precision")
    precision = dtype_name(stated) if stated else node.dtype(1)
    if precision not in ("bfloat16", "float16", "float32"):
        raise Refusal(f"scales of {precision} are not supported")
    data = _as(node, data, precision)
    known = _known_quantized(node, target) if precision == "float32" else None
    if known is not None:
        return op.quantize(data, *known[:2], axis=known[2], out_dtype=target)
    scale = _as(node, _spread(node, scale), precision)
    if target in INTEGER_BITS or np.dtype(target).kind in "iu":
        if not _is_zero(zero_point):
            zero_point = node.emit(cast(node, _spread(node, zero_point), target, "float32"))
        return quantize(node, data, scale, zero_point, target)
    if target not in FLOATS:
        raise Refusal(f"quantization to {target} is not supported")
    if zero_point is not None:
        quantized = node.constant(2, "y_zero_point")
        if np.any(quantized & (FLOATS[target].sign - 1)):
            raise Refusal(f"a zero point other than 0 is not supported for {target}")
    ratio = node.emit(node.builder.call_te(topi.divide, data, scale, primfunc_name_hint="divide"))
    return encode(node, ratio, target, saturate=bool(attributes.get("saturate", 1)))


def convert_dequantize_linear(node: Node) -> relax.Expr:
    """Return DequantizeLinear per tensor, per axis or blocked: (x - zero_point) * scale.

    In float32.
    """
    source, scale, zero_point = node.dtype(0), node.input(1), node.optional(2)
    stated = node.attributes.get("output_dtype")
    target = dtype_name(stated) if stated else node.dtype(1)
    known = _known_quantized(node, source) if target == "float32" else None
    if known is not None:
        return op.dequantize(node.input(0), *known[:2], axis=known[2], out_dtype="float32")
    if zero_point is not None and source not in FLOATS and not _is_zero(zero_point):
        values = node.emit(cast(node, node.input(0), source, "int32"))
        zero = node.emit(cast(node, _spread(node, zero_point), node.dtype(2), "int32"))
        values = _as(node, node.emit(op.subtract(values, zero)), "float32")
    else:
        values = node.emit(cast(node, node.input(0), source, "float32"))

    def compute(x: te.Tensor, factor: te.Tensor) -> te.Tensor:
        # Rounded by itself: in float32 it could be fused with an addition that follows.
        exact = topi.multiply(topi.cast(x, "float64"), topi.cast(factor, "float64"))
        return topi.cast(exact, "float32")

    factor = _as(node, _spread(node, scale), "float32")
    product = node.builder.call_te(compute, values, factor, primfunc_name_hint="dequantize")
    return product if target == "float32" else cast(node, node.emit(product), "float32", target)


def _known_quantized(node: Node, dtype: str) -> tuple[relax.Expr, relax.Expr, int] | None:
    """Return the scale, zero point and axis that passes know; None if they are none of those.

    That is 8-bit values, or biases, with constant float32 scales, one for the tensor or one for
    each index of an axis.
    """
    scale = constant_value(node.input(1))
    zero_point = np.zeros((), dtype) if dtype in ("int8", "uint8", "int32") else None
    if zero_point is not None and node.optional(2) is not None:
        zero_point = constant_value(node.optional(2))
    if scale is None or zero_point is None or scale.dtype != np.float32:
        return None
    if scale.ndim > 1 or node.attributes.get("block_size", 0):
        return None
    axis = 0
    if scale.size > 1:
        shape = static_shape(node.input(0))
        axis = node.attributes.get("axis", 1) % len(shape)
        if shape[axis] != scale.size:
            return None
    shape = () if scale.size == 1 else scale.shape
    zero_point = np.broadcast_to(zero_point.reshape(-1), scale.size)
    return relax.const(scale.reshape(shape)), relax.const(zero_point.reshape(shape), dtype), axis


def _spread(node: Node, parameter: relax.Expr) -> relax.Expr:
    """Return a scale or zero point of the first input in a shape that broadcasts over it.

    It has one element, one for each index of the axis, or one for each block along the axis.
    """
    extents, shape = static_shape(parameter), static_shape(node.input(0))
    if math.prod(extents) == 1 and len(extents) <= 1:
        return _scalar(node, parameter)
    axis = node.attributes.get("axis", 1) % max(1, len(shape))
    block = node.attributes.get("block_size", 0)
    if not block:
        if extents != shape[axis : axis + 1]:
            raise Refusal(f"a scale of shape {list(extents)} does not fit axis {axis}")
        return node.emit(
            op.reshape(parameter, [n if i == axis else 1 for i, n in enumerate(shape)])
        )
    blocks = -(-shape[axis] // block)
    if extents != (*shape[:axis], blocks, *shape[axis + 1 :]):
        raise Refusal(f"a scale of shape {list(extents)} does not fit blocks of {block}")
    repeated = node.emit(op.repeat(parameter, block, axis))
    if blocks * block == shape[axis]:
        return repeated
    return node.emit(op.strided_slice(repeated, [axis], [0], [shape[axis]]))


def _scalar(node: Node, parameter: relax.Expr) -> relax.Expr:
    """Return a parameter of one element as a scalar."""
    if not static_shape(parameter):
        return parameter
    array = constant_value(parameter)
    if array is not None:
        return relax.const(array.reshape(()), str(array.dtype))
    return node.emit(op.reshape(parameter, ()))


def _as(node: Node, data: relax.Expr, dtype: str) -> relax.Expr:
    return data if dtype_of(data) == dtype else node.emit(op.astype(data, dtype))


def _is_zero(parameter: relax.Expr | None) -> bool:
    """Return whether a zero point is absent or known to be zero."""
    if parameter is None:
        return True
    value = constant_value(parameter)
    return value is not None and not np.any(value)


def quantize(
    node: Node,
    values: relax.Expr,
    scale: relax.Expr,
    zero_point: relax.Expr | None,
    target: str,
) -> relax.Expr:
    """Return saturate(round(values / scale) + zero_point), ties to even.

    Args:
        node: whose builder to use.
        values: floats.
        scale: the scale of the same dtype; broadcasts.
        zero_point: float32 that broadcasts, None for 0.
        target: ONNX dtype of the result.

    Returns:
        An expression of `held_as(target)`.
    """

    def compute(x: te.Tensor, divisor: te.Tensor, *shift: te.Tensor) -> te.Tensor:
        return rounded(topi.divide(x, divisor), target, *shift)

    shift = () if _is_zero(zero_point) else (zero_point,)
    return node.builder.call_te(compute, values, scale, *shift, primfunc_name_hint="quantize")


def requantize(
    node: Node,
    total: relax.Expr,
    multiplier: relax.Expr,
    zero_point: relax.Expr | None,
    target: str,
) -> relax.Expr:
    """Return int32 sums as integers of 8 bits: saturate(round(total * multiplier) + zero_point)."""

    def compute(x: te.Tensor, factor: te.Tensor, *shift: te.Tensor) -> te.Tensor:
        return rounded(topi.multiply(topi.cast(x, "float32"), factor), target, *shift)

    shift = () if _is_zero(zero_point) else (_as(node, _one(node, zero_point), "float32"),)
    return node.builder.call_te(compute, total, multiplier, *shift, primfunc_name_hint="requantize")


def rounded(values: te.Tensor, target: str, shift: te.Tensor | None = None) -> te.Tensor:
    """Return saturate(round(values) + shift), ties to even.

    In TE, not as Relax operators: passes would turn a division into a multiplication or merge
    factors, which changes what is near a tie.
    """
    whole = topi.cast(topi.round(values), "float32")
    if shift is not None:
        whole = topi.add(whole, shift)
    low, high = integer_range(target)
    code = topi.cast(topi.clip(whole, float(low), float(high)), "int32")
    if target in INTEGER_BITS:
        code = topi.bitwise_and(code, tirx.const((1 << INTEGER_BITS[target]) - 1, "int32"))
    return topi.cast(code, held_as(target))


def centered(node: Node, quantized: relax.Expr, zero_point: relax.Expr | None) -> relax.Expr:
    """Subtract the zero point of 8-bit values, exactly, as int16."""
    if dtype_of(quantized) not in ("int8", "uint8"):
        raise Refusal(f"products of {dtype_of(quantized)} are not supported")
    wide = _as(node, quantized, "int16")
    if zero_point is None or _is_zero(zero_point):
        return wide
    return node.emit(op.subtract(wide, _as(node, zero_point, "int16")))


def convert_dynamic_quantize_linear(node: Node) -> list[relax.Expr]:
    """Convert DynamicQuantizeLinear.

    Uint8 values over the range of x and 0, their scale, zero point.
    """
    quantized, scale, zero_point = quantize_dynamically(node, node.input(0))
    return [quantized, scale, _as(node, zero_point, "uint8")]


def quantize_dynamically(node: Node, data: relax.Expr) -> tuple[relax.Expr, ...]:
    """Return uint8 values, float32 scale and zero point as a float32.

    scale = (max - min) / 255, zero_point = round(clip(-min / scale, 0, 255)), of a range that
    holds 0; a scale of 1 where it holds nothing else.
    """
    zero = relax.const(0.0, "float32")
    high = node.emit(op.maximum(node.emit(op.max(data)), zero))
    low = node.emit(op.minimum(node.emit(op.min(data)), zero))

    def scale_of(high: te.Tensor, low: te.Tensor) -> te.Tensor:
        width = topi.divide(topi.subtract(high, low), tirx.const(255.0, "float32"))
        return topi.where(topi.equal(high, low), topi.full_like(width, 1.0), width)

    def zero_point_of(low: te.Tensor, scale: te.Tensor) -> te.Tensor:
        return topi.round(topi.clip(topi.divide(topi.negative(low), scale), 0.0, 255.0))

    call_te = node.builder.call_te
    scale = node.emit(call_te(scale_of, high, low, primfunc_name_hint="scale"))
    zero_point = node.emit(call_te(zero_point_of, low, scale, primfunc_name_hint="zero_point"))
    quantized = node.emit(quantize(node, data, scale, zero_point, "uint8"))
    return quantized, scale, zero_point


def convert_conv_integer(node: Node) -> relax.Expr:
    """Convert ConvInteger: x [N, C, *space], w [O, C/group, *kernel], zero points; int32."""
    weight = node.input(1)
    zero_point = node.optional(3)
    if zero_point is not None:
        zero_point = _by_channel(node, zero_point, 0, len(static_shape(weight)))
    return integer_convolution(node, _one(node, node.optional(2)), weight, zero_point)


def integer_convolution(
    node: Node, data_zero: relax.Expr | None, weight: relax.Expr, weight_zero: relax.Expr | None
) -> relax.Expr:
    """Return the convolution of 8-bit values without their zero points, in int32.

    Args:
        node: has the data as input 0, and the attributes.
        data_zero: zero point of the data, one value.
        weight: [O, C / group, *kernel].
        weight_zero: one value, or one for each output channel.
    """
    exact = exact_convolution(node, data_zero, weight, weight_zero)
    if exact is not None:
        return exact
    data = centered(node, node.input(0), data_zero)
    return node.emit(convolve(node, data, centered(node, weight, weight_zero), "int32"))


def convert_qlinear_conv(node: Node) -> relax.Expr:
    """Convert QLinearConv: x, w and y, each followed by its scale and zero point, and B.

    Weights may have a scale and a zero point for each output channel.
    """
    if node.attributes.get("channels_last", 0):
        raise Refusal("channels last are not supported")
    weight = node.input(3)
    rank = len(static_shape(weight))
    weight_zero = _by_channel(node, node.input(5), 0, rank)
    total = integer_convolution(node, _one(node, node.input(2)), weight, weight_zero)
    bias = node.optional(8)
    if bias is not None:
        total = node.emit(op.add(total, _by_channel(node, bias, 1, rank)))
    multiplier = _multiplier(node, (1, 4), 6)
    multiplier = _by_channel(node, multiplier, 1, rank)
    return requantize(node, total, multiplier, node.input(7), node.dtype(7))


def _by_channel(node: Node, values: relax.Expr, axis: int, rank: int) -> relax.Expr:
    """Return one value, or values along one axis, in a shape that broadcasts."""
    extents = static_shape(values)
    if math.prod(extents) == 1:
        return _scalar(node, values)
    if len(extents) != 1:
        raise Refusal(f"a parameter of shape {list(extents)} is not supported")
    return node.emit(op.reshape(values, [extents[0] if i == axis else 1 for i in range(rank)]))


def _one(node: Node, parameter: relax.Expr | None) -> relax.Expr | None:
    """Return a parameter that must have one element, as a scalar."""
    if parameter is None:
        return None
    if math.prod(static_shape(parameter)) != 1:
        raise Refusal("zero points of the data for each channel are not supported")
    return _scalar(node, parameter)


def _multiplier(node: Node, factors: Sequence[int], divisor: int | None) -> relax.Expr:
    """Return the product of inputs by number over another input, from left to right in float32."""
    result = _flat(node, node.input(factors[0]))
    for index in factors[1:]:
        result = node.emit(op.multiply(result, _flat(node, node.input(index))))
    if divisor is None:
        return result
    return node.emit(op.divide(result, _flat(node, node.input(divisor))))


def _flat(node: Node, scale: relax.Expr) -> relax.Expr:
    """Return a scale as float32; one of one element as a scalar."""
    scale = _as(node, scale, "float32")
    return _scalar(node, scale) if math.prod(static_shape(scale)) == 1 else scale


def _by_row(node: Node, parameter: relax.Expr | None) -> relax.Expr | None:
    """Return a parameter of the left operand: one value.

    One for each row, or of the operand's rank.
    """
    if parameter is None:
        return None
    extents = static_shape(parameter)
    if math.prod(extents) == 1:
        return _scalar(node, parameter)
    return parameter if len(extents) > 1 else node.emit(op.reshape(parameter, (extents[0], 1)))


def by_column(node: Node, parameter: relax.Expr | None) -> relax.Expr | None:
    """Return a parameter of the right operand: one value, one for each column, or of its rank."""
    if parameter is None or math.prod(static_shape(parameter)) > 1:
        return parameter
    return _scalar(node, parameter)


def integer_product(
    node: Node,
    left: relax.Expr,
    left_zero: relax.Expr | None,
    right: relax.Expr,
    right_zero: relax.Expr | None,
) -> relax.Expr:
    """Return matrix product of two tensors of 8-bit values without their zero points, in int32."""
    exact = exact_matmul(node, left, _by_row(node, left_zero), right, right_zero)
    if exact is not None:
        return exact
    return node.emit(
        op.matmul(
            centered(node, left, _by_row(node, left_zero)),
            centered(node, right, by_column(node, right_zero)),
            out_dtype="int32",
        )
    )


def convert_matmul_integer(node: Node) -> relax.Expr:
    """Convert MatMulInteger: A, B, a_zero_point, b_zero_point; int32."""
    return integer_product(node, node.input(0), node.optional(2), node.input(1), node.optional(3))


def convert_qlinear_matmul(node: Node) -> relax.Expr:
    """Convert QLinearMatMul: a, b and y, each followed by its scale and zero point."""
    total = integer_product(node, node.input(0), node.input(2), node.input(3), node.input(5))
    left = _by_row(node, _flat(node, node.input(1)))
    multiplier = node.emit(op.multiply(left, _flat(node, node.input(4))))
    multiplier = node.emit(op.divide(multiplier, _flat(node, node.input(6))))
    return requantize(node, total, multiplier, node.input(7), node.dtype(7))


def convert_matmul_integer_to_float(node: Node) -> relax.Expr:
    """Convert MatMulIntegerToFloat: A, B, a_scale, b_scale, a_zero_point, b_zero_point, bias."""
    total = integer_product(node, node.input(0), node.optional(4), node.input(1), node.optional(5))
    return scaled_sums(node, total, _multiplier(node, (2, 3), None), node.optional(6))


def convert_dynamic_quantize_matmul(node: Node) -> relax.Expr:
    """Convert DynamicQuantizeMatMul: A (float32), B, b_scale, b_zero_point, bias."""
    quantized, scale, zero_point = quantize_dynamically(node, node.input(0))
    total = integer_product(node, quantized, zero_point, node.input(1), node.optional(3))
    multiplier = node.emit(op.multiply(scale, _flat(node, node.input(2))))
    return scaled_sums(node, total, multiplier, node.optional(4))


def scaled_sums(
    node: Node, total: relax.Expr, multiplier: relax.Expr, bias: relax.Expr | None
) -> relax.Expr:
    """Return int32 sums as float32, plus a bias."""
    result = node.emit(op.multiply(_as(node, total, "float32"), multiplier))
    return result if bias is None else node.emit(op.add(result, bias))


def convert_qgemm(node: Node) -> relax.Expr:
    """Convert QGemm: A, a_scale, a_zero_point, B, b_scale, b_zero_point, C, y_scale, y_zero_point.

    Without y_scale and y_zero_point the result is float32. C is int32 in units of
    a_scale * b_scale, and alpha scales it too.
    """
    attributes: Any = node.attributes
    left, right = node.input(0), node.input(3)
    if attributes.get("transA", 0):
        left = node.emit(op.permute_dims(left))
    if attributes.get("transB", 0):
        right = node.emit(op.permute_dims(right))
    total = integer_product(node, left, node.input(2), right, node.input(5))
    if node.optional(6) is not None:
        total = node.emit(op.add(total, node.input(6)))
    alpha = relax.const(float(attributes.get("alpha", 1.0)), "float32")
    multiplier = node.emit(op.multiply(alpha, _flat(node, node.input(1))))
    multiplier = node.emit(op.multiply(multiplier, _flat(node, node.input(4))))
    if node.optional(7) is None:
        return scaled_sums(node, total, multiplier, None)
    multiplier = node.emit(op.divide(multiplier, _flat(node, node.input(7))))
    target = node.dtype(8)
    return requantize(node, total, multiplier, node.input(8), target)
