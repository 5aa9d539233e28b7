"""Provide operators of com.microsoft on 8-bit values, as ONNX Runtime's x86 kernels compute them.

Scales and zero points are constants, one for each tensor. A function of one value is a table of
its 256 values. Where rounding decides the result, the order of operations is ONNX Runtime's.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax, te, tirx, topi

from edgec.compiler.frontend.converters.convolution import explicit_padding
from edgec.compiler.frontend.converters.quantization import requantize, rounded
from edgec.compiler.frontend.converters.types import look_up
from edgec.compiler.frontend.node import Node, Refusal, dtype_of, static_shape
from edgec.compiler.ir.storage import integer_range

Floats = NDArray[np.float32]

op = relax.op


def _scale(node: Node, index: int) -> np.float32:
    return np.float32(_single(node, index, "scale"))


def _zero_point(node: Node, index: int) -> int:
    return 0 if node.optional(index) is None else int(_single(node, index, "zero_point"))


def _single(node: Node, index: int, what: str) -> Any:
    values = node.constant(index, what)
    if values.size != 1:
        raise Refusal(f"{what} {index} has {values.size} values, one is expected")
    return values.reshape(())[()]


def _quantized_dtype(node: Node, index: int) -> str:
    dtype = dtype_of(node.input(index))
    if dtype not in ("int8", "uint8"):
        raise Refusal(f"quantized values of type {dtype} are not supported")
    return dtype


def _values(dtype: str, scale: np.float32, zero_point: int) -> Floats:
    """Return what each byte x stands for: (x - zero_point) * scale."""
    quantized = np.arange(256, dtype=np.uint8).view(dtype).astype(np.int32)
    return (quantized - np.int32(zero_point)).astype(np.float32) * scale


def _quantized(values: Floats, dtype: str, scale: np.float32, zero_point: int) -> NDArray[Any]:
    """Return saturate(round(values / scale) + zero_point), ties to even."""
    low, high = integer_range(dtype)
    return np.clip(np.rint(values / scale) + zero_point, low, high).astype(dtype)


def _table(node: Node, function: Callable[[Floats], Floats]) -> relax.Expr:
    """Return a function of X, X_scale, X_zero_point, Y_scale, Y_zero_point."""
    dtype = _quantized_dtype(node, 0)
    values = function(_values(dtype, _scale(node, 1), _zero_point(node, 2)))
    return look_up(
        node, node.input(0), _quantized(values, dtype, _scale(node, 3), _zero_point(node, 4))
    )


def convert_qlinear_sigmoid(node: Node) -> relax.Expr:
    """Convert QLinearSigmoid: 1 / (1 + exp(-x))."""
    return _table(node, lambda x: (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32))


def convert_qlinear_leaky_relu(node: Node) -> relax.Expr:
    """Convert QLinearLeakyRelu: x where it is not negative, else alpha * x."""
    alpha = np.float32(node.attributes.get("alpha", 0.01))
    return _table(node, lambda x: np.where(x >= 0, x, alpha * x))


def convert_qlinear_concat(node: Node) -> relax.Expr:
    """Convert QLinearConcat: Y_scale, Y_zero_point, each tensor with scale and zero point."""
    dtype = _quantized_dtype(node, 1)
    scale, zero_point = _scale(node, 0), _zero_point(node, 1)
    parts = []
    for index in range(2, len(node.inputs), 3):
        if _quantized_dtype(node, index) != dtype:
            raise Refusal("tensors of different types are not supported")
        values = _values(dtype, _scale(node, index + 1), _zero_point(node, index + 2))
        table = _quantized(values, dtype, scale, zero_point)
        parts.append(node.emit(look_up(node, node.input(index), table)))
    return op.concat(parts, axis=node.attributes["axis"])


def convert_qlinear_add(node: Node) -> relax.Expr:
    """Convert QLinearAdd: A and B with scale and zero point each, C_scale, C_zero_point.

    With the ratios r of the operands' scales to the result's:
    C = round(C_zero - (r_a * A_zero + r_b * B_zero) + r_b * B + r_a * A).
    """
    dtype = _quantized_dtype(node, 0)
    scale, zero_point = _scale(node, 6), _zero_point(node, 7)
    ratios = _scale(node, 1) / scale, _scale(node, 4) / scale
    zeros = np.float32(_zero_point(node, 2)), np.float32(_zero_point(node, 5))
    # The first product is not rounded: ONNX Runtime's compiler fuses it with the sum.
    exact = np.float64(ratios[0]) * np.float64(zeros[0]) + np.float64(ratios[1] * zeros[1])
    fixed = np.float32(zero_point) - np.float32(exact)

    def compute(a: te.Tensor, b: te.Tensor) -> te.Tensor:
        parts = [
            topi.multiply(topi.cast(quantized, "float32"), tirx.const(ratio, "float32"))
            for quantized, ratio in zip((a, b), ratios, strict=True)
        ]
        total = topi.add(parts[0], topi.add(parts[1], tirx.const(fixed, "float32")))
        return rounded(total, dtype)

    return node.builder.call_te(
        compute, node.input(0), node.input(3), primfunc_name_hint="qlinear_add"
    )


def convert_qlinear_mul(node: Node) -> relax.Expr:
    """Convert QLinearMul: A and B with scale and zero point each, C_scale, C_zero_point.

    C = round((A - A_zero) * (B - B_zero) * (A_scale * B_scale / C_scale) + C_zero). The zero point
    is added before rounding, and rounded to float32 by itself: in float64 for that, as a
    multiplication and an addition in float32 would become one instruction.
    """
    dtype = _quantized_dtype(node, 0)
    zeros = _zero_point(node, 2), _zero_point(node, 5)
    ratio = _scale(node, 1) * _scale(node, 4) / _scale(node, 6)
    shift = _zero_point(node, 7)

    def compute(a: te.Tensor, b: te.Tensor) -> te.Tensor:
        factors = [
            topi.subtract(topi.cast(quantized, "int32"), tirx.const(zero, "int32"))
            for quantized, zero in zip((a, b), zeros, strict=True)
        ]
        product = topi.cast(topi.multiply(*factors), "float32")
        scaled = topi.cast(topi.multiply(product, tirx.const(ratio, "float32")), "float64")
        total = topi.add(scaled, tirx.const(shift, "float64"))
        return rounded(topi.cast(total, "float32"), dtype)

    return node.builder.call_te(
        compute, node.input(0), node.input(3), primfunc_name_hint="qlinear_mul"
    )


def convert_qlinear_global_pool(node: Node) -> relax.Expr:
    """Convert QLinearGlobalAveragePool: X, x_scale, x_zero_point, y_scale, y_zero_point."""
    dtype = _quantized_dtype(node, 0)
    shape = static_shape(node.input(0))
    first = 1 if node.attributes.get("channels_last", 0) else 2
    axes = list(range(first, first + len(shape) - 2))
    count = int(np.prod([shape[axis] for axis in axes]))
    quantized = node.emit(op.astype(node.input(0), "int32"))
    total = node.emit(op.sum(quantized, axis=axes, keepdims=True))
    total = node.emit(op.subtract(total, relax.const(_zero_point(node, 2) * count, "int32")))
    ratio = relax.const(_scale(node, 1) / (_scale(node, 3) * np.float32(count)), "float32")
    zero_point = relax.const(_zero_point(node, 4), "int32")
    return requantize(node, total, ratio, zero_point, dtype)


_POOL = {1: topi.nn.pool1d, 2: topi.nn.pool2d, 3: topi.nn.pool3d}
_LAYOUT = {1: "NCW", 2: "NCHW", 3: "NCDHW"}


def convert_qlinear_average_pool(node: Node) -> relax.Expr:
    """Convert QLinearAveragePool: the average of what the quantized values stand for.

    In float32.
    """
    attributes = node.attributes
    dtype = _quantized_dtype(node, 0)
    kernel = attributes["kernel_shape"]
    rank = len(kernel)
    if attributes.get("channels_last", 0):
        raise Refusal("channels last are not supported")
    if attributes.get("ceil_mode", 0):
        raise Refusal("ceil_mode is not supported")
    if rank not in _POOL:
        raise Refusal(f"pooling over {rank} dimensions is not supported")
    strides = attributes.get("strides", (1,) * rank)
    padding = explicit_padding(
        attributes.get("auto_pad", "NOTSET"),
        attributes.get("pads", (0,) * 2 * rank),
        static_shape(node.input(0))[2:],
        kernel,
        strides,
        (1,) * rank,
    )
    # From a table: a product could be fused with the sum and then rounds differently.
    table = _values(dtype, _scale(node, 1), _zero_point(node, 2))
    values = node.emit(look_up(node, node.input(0), table))
    scale, shift = _scale(node, 3), _zero_point(node, 4)

    def compute(x: te.Tensor) -> te.Tensor:
        average = _POOL[rank](
            x,
            kernel,
            strides,
            (1,) * rank,
            padding,
            "avg",
            layout=_LAYOUT[rank],
            count_include_pad=bool(attributes.get("count_include_pad", 0)),
        )
        ratio = topi.divide(average, tirx.const(scale, "float32"))
        return rounded(topi.add(ratio, tirx.const(shift, "float32")), dtype)

    return node.builder.call_te(compute, values, primfunc_name_hint="qlinear_average_pool")


def convert_qlinear_softmax(node: Node) -> relax.Expr:
    """Convert QLinearSoftmax: X, X_scale, X_zero_point, Y_scale, Y_zero_point.

    exp(x) comes from a table of differences to the largest quantized value, scaled so that the sum
    stays
    finite: exp((d + shift) * scale) with shift = (log(FLT_MAX / n) - 5) / scale. A probability
    counts floor(1 / Y_scale) steps. What exceeds int8 wraps around, as it does there.
    """
    attributes = node.attributes
    dtype = _quantized_dtype(node, 0)
    shape = static_shape(node.input(0))
    old = attributes["opset"] < 13
    axis = attributes.get("axis", -1) % len(shape)
    axes = list(range(axis, len(shape))) if old else [axis]
    count = int(np.prod([shape[index] for index in axes]))
    table = _exponentials(_scale(node, 1), count)
    quantized = node.emit(op.astype(node.input(0), "int32"))
    largest = node.emit(op.max(quantized, axis=axes, keepdims=True))
    below = node.emit(op.subtract(quantized, largest))
    index = node.emit(op.add(below, relax.const(255, "int32")))
    powers = node.emit(op.take(relax.const(table), index, axis=0, mode="clip"))
    total = node.emit(op.sum(powers, axis=axes, keepdims=True))
    steps = relax.const(np.floor(np.float32(1) / _scale(node, 3)), "float32")
    ratio = node.emit(op.divide(node.emit(op.multiply(powers, steps)), total))
    rounded = node.emit(op.astype(node.emit(op.round(ratio)), "int32"))
    shifted = node.emit(op.add(rounded, relax.const(_zero_point(node, 4), "int32")))
    if dtype == "uint8":
        shifted = node.emit(op.minimum(shifted, relax.const(255, "int32")))
    return op.astype(shifted, dtype)


def _exponentials(scale: np.float32, count: int) -> Floats:
    """Return exp of the values 0 to 255 less 255, times a constant."""
    limit = np.log(np.finfo(np.float32).max / np.float32(count))
    shift = max(0.0, float(limit) - 5) / float(scale)
    exponents = (np.arange(256, dtype=np.float64) - 255 + shift) * float(scale)
    return np.exp(exponents).astype(np.float32)
