"""Provide products of 8-bit values as products of whole numbers in float32, where that is exact.

Quantized values are dequantized with scale 1: kernels of integers recognize that, and kernels of
floats compute the same, as float32 holds every whole number below 2**24. Weights whose sums could
be larger are computed in shares of the depth, which are added as integers. Weights less their zero
point that int8 does not hold are the sum of some that it does.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from edgec.compiler.frontend.converters.convolution import convolve
from edgec.compiler.frontend.node import Node, constant_value, dtype_of, static_shape
from edgec.compiler.frontend.te_operators import constant_tensor

# Whole numbers below this are exact in float32.
_EXACT = 2**24
# The largest difference of an 8-bit value and a zero point.
_LARGEST = 255
# In more shares than this, kernels of floats would gain nothing.
_SHARES = 16

op = relax.op


def exact_matmul(
    node: Node,
    left: relax.Expr,
    left_zero: relax.Expr | None,
    right: relax.Expr,
    right_zero: relax.Expr | None,
) -> relax.Expr | None:
    """Return the product with a constant matrix in int32, None if it is not of this form.

    Args:
        node: where it belongs.
        left: 8-bit values.
        left_zero: its zero point; one value.
        right: 8-bit values.
        right_zero: one value, or one for each column.
    """
    weights = _centered(right, right_zero)
    if weights is None or weights.ndim != 2 or not _is_quantized(left, left_zero):
        return None

    def product(begin: int, end: int, part: NDArray[np.int8]) -> relax.Expr:
        data = left
        if (begin, end) != (0, len(weights)):
            axis = len(static_shape(left)) - 1
            data = node.call(op.strided_slice, left, [axis], [begin], [end])
        return op.matmul(_floats(node, data, left_zero), _constant_floats(node, part))

    return _summed(node, weights, product)


def exact_convolution(
    node: Node, data_zero: relax.Expr | None, weight: relax.Expr, weight_zero: relax.Expr | None
) -> relax.Expr | None:
    """Return the convolution of input 0 by constant weights in int32, None if it is not that."""
    weights, data = _centered(weight, weight_zero), node.input(0)
    groups = node.attributes.get("group", 1)
    if weights is None or not _is_quantized(data, data_zero):
        return None
    by_depth = weights.swapaxes(0, 1)
    if groups > 1 and len(list(_shares(by_depth))) > 1:
        return None

    def product(begin: int, end: int, part: NDArray[np.int8]) -> relax.Expr:
        some = data
        if (begin, end) != (0, len(by_depth)):
            some = node.call(op.strided_slice, data, [1], [begin], [end])
        kernel = np.ascontiguousarray(part.swapaxes(0, 1))
        return convolve(node, _floats(node, some, data_zero), _constant_floats(node, kernel))

    return _summed(node, by_depth, product)


def _summed(
    node: Node,
    weights: NDArray[np.int16],
    product: Callable[[int, int, NDArray[np.int8]], relax.Expr],
) -> relax.Expr | None:
    """Return the sum of products over shares of the first axis, None if there are too many."""
    shares = list(_shares(weights))
    if len(shares) > _SHARES:
        return None
    total: relax.Expr | None = None
    for begin, end in shares:
        for part in _parts(weights[begin:end]):
            whole = node.cast(node.emit(product(begin, end, part)), "int32")
            total = whole if total is None else node.call(op.add, total, whole)
    return total


def _parts(weights: NDArray[np.int16]) -> Iterator[NDArray[np.int8]]:
    """Yield weights that int8 holds, whose sum is the given ones; those of -255 to 255 take three.

    >>> [part.tolist() for part in _parts(np.array([[255, -3]], np.int16))]
    [[[127, -3]], [[127, 0]], [[1, 0]]]
    """
    rest, first = weights, True
    while first or rest.any():
        part = np.clip(rest, -128, 127)
        yield part.astype(np.int8)
        rest, first = rest - part, False


def _shares(weights: NDArray[np.int16]) -> Iterator[tuple[int, int]]:
    """Yield ranges of the first axis over which no sum of products can be inexact."""
    sizes = np.abs(weights.astype(np.int64)).reshape(*weights.shape[:2], -1).sum(axis=2)
    begin = 0
    while begin < len(sizes):
        reached = np.cumsum(sizes[begin:], axis=0).max(axis=1) * _LARGEST < _EXACT
        count = len(reached) if reached.all() else max(1, int(np.argmin(reached)))
        # An even number, for kernels that multiply several values at once.
        if begin + count < len(sizes) and count > 4:
            count -= count % 4
        yield begin, begin + count
        begin += count


def _centered(expression: relax.Expr, zero_point: relax.Expr | None) -> NDArray[np.int16] | None:
    """Return constant 8-bit values without their zero points, None for anything else."""
    values = constant_value(expression)
    if values is None or str(values.dtype) not in ("int8", "uint8"):
        return None
    zero: Any = 0 if zero_point is None else constant_value(zero_point)
    if zero is None or values.ndim < 2 or not math.prod(values.shape):
        return None
    return values.astype(np.int16) - np.asarray(zero).astype(np.int16)


def _is_quantized(data: relax.Expr, zero_point: relax.Expr | None) -> bool:
    """Return whether data is of 8 bits with one zero point, known or not."""
    whole = dtype_of(data) in ("int8", "uint8")
    return whole and (zero_point is None or static_shape(zero_point) == ())


def _floats(node: Node, data: relax.Expr, zero_point: relax.Expr | None) -> relax.Expr:
    """Return 8-bit data less its zero point, in float32."""
    dtype = dtype_of(data)
    zero = relax.const(0, dtype) if zero_point is None else node.cast(zero_point, dtype)
    known = constant_value(zero_point)
    if known is not None:
        zero = constant_tensor(known.astype(dtype))
    one = relax.const(1.0, "float32")
    return node.emit(op.dequantize(data, one, zero, axis=0, out_dtype="float32"))


def _constant_floats(node: Node, values: NDArray[np.int8]) -> relax.Expr:
    """Return constant int8 weights, dequantized with scale 1."""
    one, zero = relax.const(1.0, "float32"), relax.const(0, "int8")
    weights = constant_tensor(values)
    return node.emit(op.dequantize(weights, one, zero, axis=0, out_dtype="float32"))
