"""Provide operators that pick elements by index."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax, tirx
from tvm.script.ir_builder import tirx as script

from edgec.compiler.frontend.node import (
    Node,
    Refusal,
    constant_value,
    dtype_of,
    extents_of,
    static_shape,
)
from edgec.compiler.frontend.te_operators import (
    constant_tensor,
    emit_compute,
    emit_procedure,
    flat,
    strides_of,
    tensor_like,
    unravel,
)
from edgec.compiler.ir.signature import TensorSpec


def convert_gather(node: Node) -> relax.Expr:
    """Convert Gather: data indexed along one axis by indices, negative ones from the end."""
    data, indices = node.input(0), node.input(1)
    shape = extents_of(data)
    axis = node.attributes.get("axis", 0) % len(shape)
    if not isinstance(shape[axis], int):
        raise Refusal("the length of the axis that is indexed is only known at run time")
    known = constant_value(indices)
    if known is None:
        extent = relax.const(shape[axis], str(indices.ty.dtype.dtype))
        wrapped = node.emit(relax.op.add(indices, extent))
        zero = relax.const(0, str(indices.ty.dtype.dtype))
        indices = node.emit(
            relax.op.where(node.emit(relax.op.less(indices, zero)), wrapped, indices)
        )
        # Clipped: an index that is out of range at run time must not read foreign memory.
        return relax.op.take(data, indices, axis=axis, mode="clip")
    if np.any(known < -shape[axis]) or np.any(known >= shape[axis]):
        raise Refusal(f"an index is outside the {shape[axis]} elements of axis {axis}")
    known = np.where(known < 0, known + shape[axis], known).astype(np.int64)
    if known.ndim == 0:
        index = int(known)
        part = relax.op.strided_slice(data, axes=[axis], begin=[index], end=[index + 1])
        return relax.op.squeeze(node.emit(part), axis=[axis])
    return relax.op.take(data, relax.const(known), axis=axis, mode="clip")


def _wrap(index: Any, extent: int) -> Any:
    """Return an index counted from the front."""
    dtype = str(index.ty.dtype)
    return tirx.Select(index < tirx.const(0, dtype), index + tirx.const(extent, dtype), index)


def _inside(index: Any, extent: int) -> Any:
    """Return an index from either end, clipped: one out of range must not read foreign memory."""
    dtype = str(index.ty.dtype)
    last = tirx.const(extent - 1, dtype)
    return tirx.max(tirx.min(_wrap(index, extent), last), tirx.const(0, dtype))


def _axis(node: Node, rank: int, default: int = 0) -> int:
    axis = int(node.attributes.get("axis", default))
    if not -rank <= axis < max(rank, 1):
        raise Refusal(f"axis {axis} does not fit rank {rank}")
    return axis % rank if rank else 0


def convert_gather_elements(node: Node) -> relax.Expr:
    """Convert GatherElements: y[i][j][k] = x[i][index[i][j][k]][k] for axis 1."""
    data, indices = node.input(0), node.input(1)
    shape = static_shape(data)
    axis = _axis(node, len(shape))

    def element(x: Any, index: Any, at: list[Any]) -> Any:
        picked = _inside(index(*at), shape[axis])
        return x[(*at[:axis], picked, *at[axis + 1 :])]

    return emit_compute(node, [data, indices], static_shape(indices), element)


def convert_gather_nd(node: Node) -> relax.Expr:
    """Convert GatherND: the last axis of the indices holds positions after `batch_dims`."""
    data, indices = node.input(0), node.input(1)
    shape, batch = static_shape(data), int(node.attributes.get("batch_dims", 0))
    *outer, depth = extents_of(indices)
    inner = shape[batch + depth :]

    def element(x: Any, index: Any, at: list[Any]) -> Any:
        row, rest = at[: len(outer)], at[len(outer) :]
        places = [
            _inside(index(*row, tirx.const(k, "int64")), shape[batch + k]) for k in range(depth)
        ]
        return x[(*row[:batch], *places, *rest)]

    return emit_compute(node, [data, indices], (*outer, *inner), element)


_COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "max": tirx.max,
    "min": tirx.min,
}


def _combine(node: Node, dtype: str) -> Callable[[Any, Any], Any]:
    reduction = node.attributes.get("reduction", "none")
    if reduction not in _COMBINE:
        raise Refusal(f"reduction {reduction!r} is not supported")
    if dtype == "bool" and reduction != "none":
        raise Refusal(f"reduction {reduction!r} of dtype bool is not supported")
    return _COMBINE[reduction]


def convert_scatter_elements(node: Node) -> relax.Expr:
    """Convert ScatterElements: y[i][index[i][j][k]][k] = update[i][j][k] for axis 1, in that order.

    An index that is out of range at run time is skipped.
    """
    data, indices, updates = (node.input(index) for index in range(3))
    shape, part = static_shape(data), static_shape(indices)
    axis, strides = _axis(node, len(shape)), strides_of(shape)
    combine = _combine(node, dtype_of(data))
    if 0 in part:
        return data

    def body(x: Any, index: Any, update: Any, y: Any) -> None:
        with script.serial(0, math.prod(shape)) as i:
            script.buffer_store(y, x[i], [i])
        with script.serial(0, math.prod(part)) as i:
            places = unravel(i, part)
            places[axis] = _wrap(index[i], shape[axis])
            offset = sum(place * stride for place, stride in zip(places, strides, strict=True))
            inside = tirx.all(places[axis] >= 0, places[axis] < shape[axis])
            with script.If(inside), script.Then():
                script.buffer_store(y, combine(y[offset], update[i]), [offset])

    inputs = [flat(node, tensor) for tensor in (data, indices, updates)]
    return relax.op.reshape(emit_procedure(node, inputs, [tensor_like(inputs[0])], body)[0], shape)


def convert_scatter_nd(node: Node) -> relax.Expr:
    """Convert ScatterND: slices of updates to positions, which the last axis of the indices holds.

    An index that is out of range at run time is skipped.
    """
    data, indices, updates = (node.input(index) for index in range(3))
    shape = static_shape(data)
    *outer, depth = static_shape(indices)
    strides, inner = strides_of(shape), math.prod(shape[depth:])
    combine = _combine(node, dtype_of(data))
    if 0 in outer:
        return data

    def body(x: Any, index: Any, update: Any, y: Any) -> None:
        with script.serial(0, math.prod(shape)) as i:
            script.buffer_store(y, x[i], [i])
        with script.serial(0, math.prod(outer)) as row:
            places = [_wrap(index[row * depth + k], shape[k]) for k in range(depth)]
            bounds = [tirx.all(p >= 0, p < e) for p, e in zip(places, shape, strict=False)]
            start = sum((p * s for p, s in zip(places, strides, strict=False)), tirx.const(0))
            inside = tirx.all(tirx.const(True, "bool"), *bounds)
            with script.If(inside), script.Then(), script.serial(0, inner) as i:
                value = combine(y[start + i], update[row * inner + i])
                script.buffer_store(y, value, [start + i])

    inputs = [flat(node, tensor) for tensor in (data, indices, updates)]
    return relax.op.reshape(emit_procedure(node, inputs, [tensor_like(inputs[0])], body)[0], shape)


def convert_one_hot(node: Node) -> relax.Expr:
    """Convert OneHot: `values[1]` where the new axis counts to the index, `values[0]` elsewhere."""
    indices, values = node.input(0), node.input(2)
    depth = int(node.constant(1, "depth").reshape(-1)[0])
    shape = list(static_shape(indices))
    axis = _axis(node, len(shape) + 1, -1)

    def element(index: Any, pair: Any, at: list[Any]) -> Any:
        picked = tirx.Cast("int64", index[tuple(at[:axis] + at[axis + 1 :])])
        hit = _wrap(picked, depth).equal(tirx.Cast("int64", at[axis]))
        return tirx.Select(hit, pair[1], pair[0])

    return emit_compute(node, [indices, values], (*shape[:axis], depth, *shape[axis:]), element)


# So many are kept in order while a row is read; to sort the row is faster for more.
_FEW_BEST = 128


def convert_top_k(node: Node) -> list[relax.Expr]:
    """Convert TopK: the k first of a stable sort, so that equal values keep their order."""
    data = node.input(0)
    shape = static_shape(data)
    axis, extent = _axis(node, len(shape), -1), shape[_axis(node, len(shape), -1)]
    count = (
        int(node.attributes["k"]) if node.opset < 10 else int(node.constant(1, "K").reshape(-1)[0])
    )
    if not 0 <= count <= extent:
        raise Refusal(f"k is {count}, the axis has {extent} elements")
    order = [a for a in range(len(shape)) if a != axis] + [axis]
    lines = (math.prod(shape) // extent, extent)
    moved = node.emit(relax.op.permute_dims(data, order))
    rows = node.emit(relax.op.reshape(moved, lines))
    largest = bool(node.attributes.get("largest", 1))
    if 0 < count <= _FEW_BEST:
        best = _select_rows(node, rows, count, largest)
    else:
        ranking = argsort_rows(node, rows, descending=largest)
        best = node.emit(relax.op.strided_slice(ranking, [1], [0], [count]))

    def element(x: Any, ranked: Any, at: list[Any]) -> Any:
        return x[at[0], ranked[at[0], at[1]]]

    results = [
        emit_compute(node, [rows, best], (lines[0], count), element),
        node.emit(relax.op.astype(best, "int64")),
    ]
    outer = [shape[a] for a in order[:-1]]
    back = np.argsort(order).tolist()
    return [
        relax.op.permute_dims(node.emit(relax.op.reshape(result, (*outer, count))), back)
        for result in results
    ]


def _select_rows(node: Node, rows: relax.Expr, count: int, largest: bool) -> relax.Expr:
    """Return positions of the first values of each sorted row; equal values keep their order.

    The best so far are kept in order. Most values are no better than the last of them.

    Args:
        node: whose builder emits it.
        rows: [lines, n].
        count: how many.
        largest: greatest first.

    Returns:
        int32 [lines, count].
    """
    lines, n = static_shape(rows)
    kept = TensorSpec("", (lines, count), dtype_of(rows))
    positions = TensorSpec("", (lines, count), "int32")

    def body(x: Any, best: Any, position: Any, free: Any) -> None:
        def insert(line: Any, at: Any, held: Any) -> None:
            """Put a value among the `held` best: those that it is before move one place on."""
            value = script.bind(x[line, at])
            script.buffer_store(free, held, [line, 0])

            def moves() -> Any:
                before = best[line, tirx.max(free[line, 0] - 1, 0)]
                better = value > before if largest else value < before
                return tirx.all(free[line, 0] > 0, better)

            with script.While(moves()):
                place = script.bind(free[line, 0])
                script.buffer_store(best, best[line, place - 1], [line, place])
                script.buffer_store(position, position[line, place - 1], [line, place])
                script.buffer_store(free, place - 1, [line, 0])
            script.buffer_store(best, value, [line, free[line, 0]])
            script.buffer_store(position, at, [line, free[line, 0]])

        with script.parallel(0, lines) as line:
            with script.serial(0, count) as at:
                insert(line, at, at)
            with script.serial(0, n - count) as rest:
                value, last = x[line, count + rest], best[line, count - 1]
                with script.If(value > last if largest else value < last), script.Then():
                    insert(line, count + rest, count - 1)

    outputs = [kept, positions, TensorSpec("", (lines, 1), "int32")]
    return emit_procedure(node, [rows], outputs, body)[1]


def argsort_rows(node: Node, rows: relax.Expr, descending: bool) -> relax.Expr:
    """Return positions that sort each row, by merging; equal values keep their order.

    Args:
        node: whose builder emits it.
        rows: [lines, n].
        descending: greatest first.

    Returns:
        int32 [lines, n].
    """
    lines, n = static_shape(rows)
    passes = max(0, (n - 1).bit_length())
    pair = TensorSpec("", (lines, n), "int32")
    cursors = TensorSpec("", (lines, 2), "int32")

    def body(x: Any, first: Any, second: Any, cursor: Any) -> None:
        def before(line: Any, left: Any, right: Any) -> Any:
            a, b = x[line, left], x[line, right]
            return a > b if descending else a < b

        with script.parallel(0, lines) as line:
            with script.serial(0, n) as i:
                script.buffer_store(first, i, [line, i])
                script.buffer_store(second, i, [line, i])
            for number in range(passes):
                width = 2**number
                source, target = (first, second) if number % 2 == 0 else (second, first)
                with script.serial(0, -(-n // (2 * width))) as block:
                    begin = block * (2 * width)
                    middle = tirx.min(begin + width, n)
                    end = tirx.min(begin + 2 * width, n)
                    script.buffer_store(cursor, begin, [line, 0])
                    script.buffer_store(cursor, middle, [line, 1])
                    with script.serial(0, end - begin) as step:
                        left, right = cursor[line, 0], cursor[line, 1]
                        one = source[line, tirx.min(left, n - 1)]
                        other = source[line, tirx.min(right, n - 1)]
                        takes_right = tirx.any(
                            left >= middle,
                            tirx.all(right < end, before(line, other, one)),
                        )
                        with script.If(takes_right):
                            with script.Then():
                                script.buffer_store(target, other, [line, begin + step])
                                script.buffer_store(cursor, right + 1, [line, 1])
                            with script.Else():
                                script.buffer_store(target, one, [line, begin + step])
                                script.buffer_store(cursor, left + 1, [line, 0])

    outputs = emit_procedure(node, [rows], [pair, pair, cursors], body)
    return outputs[passes % 2]


def convert_reverse_sequence(node: Node) -> relax.Expr:
    """Convert ReverseSequence: the first `sequence_lens` steps of each entry of the batch."""
    data, lengths = node.input(0), node.input(1)
    batch, time = node.attributes.get("batch_axis", 1), node.attributes.get("time_axis", 0)

    def element(x: Any, length: Any, at: list[Any]) -> Any:
        step, count = tirx.Cast("int64", at[time]), tirx.Cast("int64", length[at[batch]])
        limited = tirx.min(count, tirx.const(static_shape(data)[time], "int64"))
        source = list(at)
        source[time] = tirx.Select(step < limited, limited - step - 1, step)
        return x[tuple(source)]

    return emit_compute(node, [data, lengths], static_shape(data), element)


def convert_cumulative(node: Node) -> relax.Expr:
    """Return CumSum and CumProd, from either end, with the element itself or without."""
    data = node.input(0)
    shape = static_shape(data)
    axis = int(node.constant(1, "axis").reshape(-1)[0]) % max(len(shape), 1)
    exclusive = bool(node.attributes.get("exclusive", 0))
    backwards = bool(node.attributes.get("reverse", 0))
    dtype, is_sum = dtype_of(data), node.op_type == "CumSum"
    outer, n, inner = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
    neutral = tirx.const(0 if is_sum else 1, dtype)

    def body(x: Any, y: Any) -> None:
        with script.serial(0, outer) as line:
            with script.serial(0, inner) as i:
                first = n - 1 if backwards else 0
                begin = neutral if exclusive else x[line, first, i]
                script.buffer_store(y, begin, [line, first, i])
            with script.serial(0, n - 1) as step:
                here = n - 2 - step if backwards else step + 1
                before = here + 1 if backwards else here - 1
                with script.serial(0, inner) as i:
                    total, item = y[line, before, i], x[line, before if exclusive else here, i]
                    value = total + item if is_sum else total * item
                    script.buffer_store(y, value, [line, here, i])

    cut = node.emit(relax.op.reshape(data, (outer, n, inner)))
    return relax.op.reshape(emit_procedure(node, [cut], [tensor_like(cut)], body)[0], shape)


def convert_compress(node: Node) -> relax.Expr:
    """Convert Compress: the slices of an axis, or of the flat tensor, whose condition holds.

    A condition that is constant gives a static shape.
    """
    data = node.input(0)
    axis = node.attributes.get("axis")
    if axis is None:
        data, axis = flat(node, data), 0
    shape = static_shape(data)
    axis %= len(shape)
    known = constant_value(node.input(1))
    if known is not None:
        picked = np.flatnonzero(known[: shape[axis]])
        return relax.op.take(data, constant_tensor(picked), axis=axis, mode="clip")
    (length,) = static_shape(node.input(1))
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    kept = min(length, shape[axis])

    def body(x: Any, condition: Any, y: Any, count: Any) -> None:
        script.buffer_store(count, tirx.const(0, "int64"), [0])
        with script.serial(0, kept) as i, script.If(condition[i]), script.Then():
            with script.serial(0, outer) as line, script.serial(0, inner) as k:
                script.buffer_store(y, x[line, i, k], [line, count[0], k])
            script.buffer_store(count, count[0] + 1, [0])

    cut = node.emit(relax.op.reshape(data, (outer, shape[axis], inner)))
    counter = TensorSpec("", (1,), "int64")
    padded, count = emit_procedure(node, [cut, node.input(1)], [tensor_like(cut), counter], body)
    whole = node.emit(relax.op.reshape(padded, shape))
    return first_rows(node, whole, count, axis)


def first_rows(node: Node, padded: relax.Expr, count: relax.Expr, axis: int = 0) -> relax.Expr:
    """Return the first `count` entries of an axis, a number that only a run tells.

    Args:
        node: whose builder emits it.
        padded: tensor of static shape.
        count: int64 [1].
        axis: which axis to shorten.
    """
    shape = static_shape(padded)
    begin, one = np.zeros(len(shape), np.int64), np.ones(len(shape), np.int64)
    ends = [
        count if place == axis else constant_tensor(np.array([extent]))
        for place, extent in enumerate(shape)
    ]
    end = ends[0] if len(ends) == 1 else node.emit(relax.op.concat(ends, 0))
    part = relax.op.dynamic_strided_slice(padded, constant_tensor(begin), end, constant_tensor(one))
    return node.with_extents(part, [*shape[:axis], None, *shape[axis + 1 :]])


def convert_non_zero(node: Node) -> relax.Expr:
    """Convert NonZero: the positions [rank, n] of the elements that are not zero.

    N, only a run tells.
    """
    data = node.input(0)
    shape = static_shape(data)
    size, rank = math.prod(shape), len(shape)
    if not rank:
        raise Refusal("of a scalar it is not supported")
    steps = strides_of(shape)

    def body(x: Any, positions: Any, count: Any) -> None:
        script.buffer_store(count, tirx.const(0, "int64"), [0])

        def chosen(value: Any) -> Any:
            return value if dtype_of(data) == "bool" else value != tirx.const(0, dtype_of(data))

        with script.serial(0, size) as i, script.If(chosen(x[i])), script.Then():
            for axis, (step, extent) in enumerate(zip(steps, shape, strict=True)):
                place = tirx.floormod(tirx.floordiv(i, step), extent)
                script.buffer_store(positions, tirx.Cast("int64", place), [axis, count[0]])
            script.buffer_store(count, count[0] + 1, [0])

    outputs = [TensorSpec("", (rank, size), "int64"), TensorSpec("", (1,), "int64")]
    padded, count = emit_procedure(node, [flat(node, data)], outputs, body)
    return first_rows(node, padded, count, axis=1)
