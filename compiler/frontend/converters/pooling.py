"""Provide pooling over windows."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.script.ir_builder import tirx as script

from edgec.compiler.frontend.converters.shapes import constant_ints, pad_constant
from edgec.compiler.frontend.node import FLOATS, Node, Refusal, dtype_of, scalar, static_shape
from edgec.compiler.frontend.te_operators import (
    emit_compute,
    emit_procedure,
    flat,
    strides_of,
)
from edgec.compiler.ir.signature import TensorSpec


@dataclass(frozen=True)
class PoolingWindows:
    """Pooling windows describe windows over the spatial axes of a tensor [N, C, D1, ...].

    Each field has one entry an axis.

    Attributes:
        extent: the extent of the input.
        kernel: taps.
        stride: between windows.
        dilation: between taps.
        before: padding in front.
        after: padding behind, as the node states it.
        count: number of windows.
    """

    extent: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    count: tuple[int, ...]

    @property
    def covering(self) -> list[int]:
        """Return padding behind with which the windows are those of floor mode."""
        return [
            max(0, (n - 1) * s + (k - 1) * d + 1 - b - e)
            for n, s, k, d, b, e in zip(
                self.count,
                self.stride,
                self.kernel,
                self.dilation,
                self.before,
                self.extent,
                strict=True,
            )
        ]


def find_windows(node: Node) -> PoolingWindows:
    """Return windows of a pooling node.

    In ceil mode a last window that would start behind the input and its padding in front is left
    out, as the specification has it.
    """
    extent = static_shape(node.input(0))[2:]
    rank, attributes = len(extent), node.attributes
    kernel = tuple(attributes["kernel_shape"])
    stride = tuple(attributes.get("strides", (1,) * rank))
    dilation = tuple(attributes.get("dilations", (1,) * rank))
    pads = tuple(attributes.get("pads", (0,) * 2 * rank))
    auto = attributes.get("auto_pad", "NOTSET")
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    before, after, count = list(pads[:rank]), list(pads[rank:]), []
    if auto == "VALID":
        before, after = [0] * rank, [0] * rank
    for axis, (e, r, s) in enumerate(zip(extent, reach, stride, strict=True)):
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            number = math.ceil(e / s)
            total = max(0, (number - 1) * s + r - e)
            small, large = total // 2, total - total // 2
            upper = auto == "SAME_UPPER"
            before[axis], after[axis] = (small, large) if upper else (large, small)
        else:
            span = e + before[axis] + after[axis] - r
            ceil = bool(attributes.get("ceil_mode", 0))
            number = (-(-span // s) if ceil else span // s) + 1
            if ceil and (number - 1) * s >= e + before[axis]:
                number -= 1
        count.append(number)
    if min(count) < 1:
        raise Refusal("the window is larger than the padded input")
    return PoolingWindows(
        extent, kernel, stride, dilation, tuple(before), tuple(after), tuple(count)
    )


def convert_max_pool(node: Node) -> list[relax.Expr]:
    """Return MaxPool, with the flat positions of the maxima if they are asked for."""
    data, windows = node.input(0), find_windows(node)
    if len([name for name in node.proto.output if name]) > 1:
        return _max_pool_with_indices(node, windows)
    rank = len(windows.extent)
    if rank > 3:
        return [_reduce_windows(node, data, windows, "max")]
    operator = getattr(relax.op.nn, f"max_pool{rank}d")
    padding = [*windows.before, *windows.covering]
    return [operator(data, windows.kernel, windows.stride, padding, windows.dilation)]


def convert_nhwc_max_pool(node: Node) -> relax.Expr:
    """Return NhwcMaxPool of com.microsoft: MaxPool of 8-bit integers [N, *space, C]."""
    rank = len(static_shape(node.input(0))) - 2
    moved = node.call(relax.op.permute_dims, node.input(0), [0, rank + 1, *range(1, rank + 1)])
    windows = find_windows(replace(node, inputs=(moved,)))
    if rank > 3:
        raise Refusal(f"windows over {rank} dimensions are not supported")
    operator = getattr(relax.op.nn, f"max_pool{rank}d")
    padding = [*windows.before, *windows.covering]
    result = operator(moved, windows.kernel, windows.stride, padding, windows.dilation)
    return relax.op.permute_dims(node.emit(result), [0, *range(2, rank + 2), 1])


def convert_average_pool(node: Node) -> relax.Expr:
    """Convert AveragePool: over the elements of the input, or over those of the padding too."""
    data, windows = node.input(0), find_windows(node)
    rank = len(windows.extent)
    include = bool(node.attributes.get("count_include_pad", 0))
    within = all(c <= a for c, a in zip(windows.covering, windows.after, strict=True))
    padded = any(windows.before) or any(windows.covering)
    if rank <= 3 and set(windows.dilation) == {1} and (within or not include):
        operator = getattr(relax.op.nn, f"avg_pool{rank}d")
        padding = [*windows.before, *windows.covering]
        return operator(
            data,
            windows.kernel,
            windows.stride,
            padding,
            windows.dilation,
            count_include_pad=include and padded,
        )
    dtype = dtype_of(data)
    total = _reduce_windows(node, data, windows, "sum")
    counts = np.ones((1,) * (rank + 2))
    for axis in range(rank):
        along = [1] * (rank + 2)
        along[axis + 2] = windows.count[axis]
        counts = counts * _taps_inside(windows, axis, include).reshape(along)
    if np.any(counts == 0):
        raise Refusal("a window holds nothing but padding")
    return relax.op.divide(total, relax.const(counts.astype(dtype), dtype))


def _taps_inside(windows: PoolingWindows, axis: int, include_padding: bool) -> Any:
    """Return how many taps of each window of an axis count."""
    starts = np.arange(windows.count[axis]) * windows.stride[axis] - windows.before[axis]
    taps = np.arange(windows.kernel[axis]) * windows.dilation[axis]
    at = starts[:, None] + taps[None, :]
    low = -windows.before[axis] if include_padding else 0
    high = windows.extent[axis] + (windows.after[axis] if include_padding else 0)
    return np.sum((at >= low) & (at < high), axis=1)


def convert_lp_pool(node: Node) -> relax.Expr:
    """Convert LpPool: (sum |x|^p)^(1/p) of each window."""
    data, p = node.input(0), node.attributes.get("p", 2)
    total = _reduce_windows(node, _powers(node, data, p), find_windows(node), "sum")
    return _root(node, total, p)


def convert_global_lp_pool(node: Node) -> relax.Expr:
    """Convert GlobalLpPool: (sum |x|^p)^(1/p) of each channel."""
    data, p = node.input(0), node.attributes.get("p", 2)
    axes = list(range(2, len(static_shape(data))))
    return _root(node, node.emit(relax.op.sum(_powers(node, data, p), axes, True)), p)


def convert_lp_normalization(node: Node) -> relax.Expr:
    """Convert LpNormalization: x / (sum |x|^p)^(1/p) along an axis, zero where that is zero."""
    data, p = node.input(0), node.attributes.get("p", 2)
    axis, dtype = node.attributes.get("axis", -1), dtype_of(data)
    total = node.emit(relax.op.sum(_powers(node, data, p), [axis], True))
    norm = node.emit(_root(node, total, p))
    empty = node.emit(relax.op.equal(norm, scalar(0, dtype)))
    divisor = node.emit(relax.op.where(empty, scalar(1, dtype), norm))
    return relax.op.divide(data, divisor)


def _powers(node: Node, data: relax.Expr, p: float) -> relax.Expr:
    if p == 2:
        return node.emit(relax.op.multiply(data, data))
    size = node.emit(relax.op.abs(data))
    return size if p == 1 else node.emit(relax.op.power(size, scalar(p, dtype_of(data))))


def _root(node: Node, total: relax.Expr, p: float) -> relax.Expr:
    if p == 1:
        return total
    return relax.op.sqrt(total) if p == 2 else relax.op.power(total, scalar(1 / p, dtype_of(total)))


def _reduce_windows(node: Node, data: relax.Expr, windows: PoolingWindows, kind: str) -> relax.Expr:
    """Return sum or maximum of the input's elements in each window, over any number of axes."""
    shape, dtype = static_shape(data), dtype_of(data)
    neutral = tirx.const(0, dtype) if kind == "sum" else te.min_value(dtype)
    reducer = te.sum if kind == "sum" else te.max

    def element(x: Any, at: list[Any]) -> Any:
        taps = [te.reduce_axis((0, k), f"tap{axis}") for axis, k in enumerate(windows.kernel)]
        places = [
            i * s + tap * d - b
            for i, s, tap, d, b in zip(
                at[2:], windows.stride, taps, windows.dilation, windows.before, strict=True
            )
        ]
        inside = [tirx.all(p >= 0, p < e) for p, e in zip(places, windows.extent, strict=True)]
        value = tirx.if_then_else(tirx.all(*inside), x(*at[:2], *places), neutral)
        return reducer(value, axis=taps)

    return emit_compute(node, [data], (*shape[:2], *windows.count), element)


def _max_pool_with_indices(node: Node, windows: PoolingWindows) -> list[relax.Expr]:
    """Return values, and int64 offsets of the first maximum into the whole input.

    With `storage_order=1` offsets count down the columns of an image.
    """
    data = node.input(0)
    shape, dtype = static_shape(data), dtype_of(data)
    planes, size = shape[0] * shape[1], math.prod(windows.extent)
    steps = strides_of(windows.extent)
    if node.attributes.get("storage_order", 0):
        if len(windows.extent) > 2:
            raise Refusal("storage_order=1 is only supported of images and signals")
        counted = [1] if len(windows.extent) == 1 else [1, windows.extent[0]]
    else:
        counted = steps
    number = math.prod(windows.count)
    offsets = strides_of(windows.count)
    low = tirx.const(-math.inf, dtype) if dtype in FLOATS else te.min_value(dtype)

    def body(x: Any, best: Any, index: Any) -> None:
        with script.serial(0, planes) as plane, script.serial(0, number) as window:
            places = [
                tirx.floormod(tirx.floordiv(window, o), n) * s - b
                for o, n, s, b in zip(
                    offsets, windows.count, windows.stride, windows.before, strict=True
                )
            ]
            script.buffer_store(best, low, [plane, window])
            script.buffer_store(index, tirx.const(-1, "int64"), [plane, window])
            for taps in itertools.product(*map(range, windows.kernel)):
                at = [p + t * d for p, t, d in zip(places, taps, windows.dilation, strict=True)]
                inside = [tirx.all(i >= 0, i < e) for i, e in zip(at, windows.extent, strict=True)]
                offset = _dot(at, steps)
                with script.If(tirx.all(*inside)), script.Then():
                    found = x[plane, offset]
                    first = index[plane, window] < tirx.const(0, "int64")
                    with script.If(tirx.any(found > best[plane, window], first)), script.Then():
                        script.buffer_store(best, found, [plane, window])
                        where = tirx.Cast("int64", plane * size + _dot(at, counted))
                        script.buffer_store(index, where, [plane, window])

    cut = node.emit(relax.op.reshape(data, (planes, size)))
    outputs = [TensorSpec("", (planes, number), kind) for kind in (dtype, "int64")]
    results = emit_procedure(node, [cut], outputs, body)
    whole = (*shape[:2], *windows.count)
    return [relax.op.reshape(result, whole) for result in results]


def _dot(places: Sequence[Any], strides: Sequence[int]) -> Any:
    return sum((p * s for p, s in zip(places, strides, strict=True)), tirx.const(0, "int32"))


def convert_max_unpool(node: Node) -> relax.Expr:
    """Convert MaxUnpool: values at the positions that MaxPool found them, zero elsewhere.

    Positions count through the tensor that the kernel implies; a larger `output_shape` adds zeros
    behind it.
    """
    data, indices = node.input(0), node.input(1)
    shape, attributes = static_shape(data), node.attributes
    rank = len(shape) - 2
    strides = attributes.get("strides", (1,) * rank)
    pads = attributes.get("pads", (0,) * 2 * rank)
    spatial = [
        (e - 1) * s + k - b - a
        for e, s, k, b, a in zip(
            shape[2:], strides, attributes["kernel_shape"], pads[:rank], pads[rank:], strict=True
        )
    ]
    implied = (*shape[:2], *spatial)
    total = math.prod(implied)

    def body(x: Any, index: Any, y: Any) -> None:
        with script.serial(0, total) as i:
            script.buffer_store(y, tirx.const(0, dtype_of(data)), [i])
        with script.serial(0, math.prod(shape)) as i:
            inside = tirx.all(index[i] >= 0, index[i] < total)
            with script.If(inside), script.Then():
                script.buffer_store(y, x[i], [index[i]])

    output = TensorSpec("", (total,), dtype_of(data))
    inputs = [flat(node, data), flat(node, indices)]
    result = relax.op.reshape(emit_procedure(node, inputs, [output], body)[0], implied)
    if node.optional(2) is None:
        return result
    wanted = constant_ints(node, 2, "output_shape")
    after = [w - i for w, i in zip(wanted, implied, strict=True)]
    if min(after) < 0:
        raise Refusal(f"output_shape {wanted} is less than the kernel implies, {list(implied)}")
    return pad_constant(node, node.emit(result), [0] * len(after), after) if any(after) else result
