"""Provide operators that only change shape, or that move, repeat and cut whole tensors."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax, tirx

from edgec.compiler.frontend.node import (
    Node,
    Refusal,
    constant_value,
    dtype_of,
    extents_of,
    known_extent,
    static_shape,
)
from edgec.compiler.frontend.te_operators import constant_tensor, emit_compute, take_table
from edgec.compiler.ir.signature import dtype_name

# NumPy's names of ONNX's padding modes.
_PAD_TABLES: dict[str, Any] = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def constant_ints(node: Node, index: int, what: str) -> list[int]:
    """Return the numbers of an input that must be constant."""
    return [int(number) for number in node.constant(index, what).reshape(-1)]


def static_axes(node: Node, index: int, rank: int, since: int) -> list[int] | None:
    """Return axes from the attribute, or since an opset from the input; None if left out.

    Raises:
        Refusal: an axis is out of range or given twice.
    """
    if node.opset < since:
        given = node.attributes.get("axes")
    else:
        given = None if node.optional(index) is None else node.constant(index, "axes").reshape(-1)
    return None if given is None else normalize_axes(given, rank)


def normalize_axes(axes: Sequence[int], rank: int) -> list[int]:
    """Return axes counted from the front."""
    found = [int(axis) + rank * (int(axis) < 0) for axis in axes]
    if any(not 0 <= axis < rank for axis in found):
        raise Refusal(f"axes {[int(axis) for axis in axes]} do not fit rank {rank}")
    if len(set(found)) != len(found):
        raise Refusal("an axis is given twice")
    return found


def convert_reshape(node: Node) -> relax.Expr:
    """Convert Reshape: 0 keeps an extent (unless `allowzero`), -1 takes what is left."""
    data, before = node.input(0), static_shape(node.input(0))
    if node.opset < 5:
        wanted = [int(extent) for extent in node.attributes["shape"]]
    else:
        wanted = constant_ints(node, 1, "shape")
    if not node.attributes.get("allowzero", 0):
        wanted = [before[i] if extent == 0 else extent for i, extent in enumerate(wanted)]
    if -1 in wanted:
        known = math.prod(extent for extent in wanted if extent != -1)
        wanted[wanted.index(-1)] = math.prod(before) // known if known else 0
    return _reshape(data, wanted)


def convert_flatten(node: Node) -> relax.Expr:
    """Flatten to a matrix: the axes before `axis`, and the rest."""
    shape = static_shape(node.input(0))
    axis = node.attributes.get("axis", 1)
    axis += len(shape) * (axis < 0)
    return _reshape(node.input(0), [math.prod(shape[:axis]), math.prod(shape[axis:])])


def convert_squeeze(node: Node) -> relax.Expr:
    """Convert Squeeze: drop the given axes, or all of extent 1."""
    shape = extents_of(node.input(0))
    axes = static_axes(node, 1, len(shape), since=13)
    if axes is None:
        axes = [axis for axis, extent in enumerate(static_shape(node.input(0))) if extent == 1]
    if any(known_extent(shape[axis]) != 1 for axis in axes):
        raise Refusal("an axis to drop has more than one element")
    return _reshape(node.input(0), [e for axis, e in enumerate(shape) if axis not in axes])


def convert_unsqueeze(node: Node) -> relax.Expr:
    """Convert Unsqueeze: insert axes of extent 1 at places of the result."""
    shape = list(extents_of(node.input(0)))
    given = node.attributes["axes"] if node.opset < 13 else constant_ints(node, 1, "axes")
    for axis in sorted(normalize_axes(given, len(shape) + len(given))):
        shape.insert(axis, 1)
    return _reshape(node.input(0), shape)


def _reshape(data: relax.Expr, shape: Sequence[Any]) -> relax.Expr:
    known = constant_value(data)
    if known is not None:
        return constant_tensor(known.reshape(tuple(shape)))
    if any(known_extent(extent) is None for extent in shape):
        return relax.op.reshape(data, tuple(shape))
    if math.prod(shape) != math.prod(static_shape(data)):
        raise Refusal(f"{list(static_shape(data))} does not fit into shape {list(shape)}")
    return relax.op.reshape(data, tuple(shape))


def convert_shape(node: Node) -> relax.Expr:
    """Return shape, from `start` to `end`: a constant."""
    shape = static_shape(node.input(0))
    part = shape[node.attributes.get("start", 0) : node.attributes.get("end", len(shape))]
    return constant_tensor(np.array(part, np.int64))


def convert_size(node: Node) -> relax.Expr:
    """Convert Size: a constant."""
    return constant_tensor(np.array(math.prod(static_shape(node.input(0))), np.int64))


def convert_slice(node: Node) -> relax.Expr:
    """Return slice with any steps; bounds beyond the ends are clamped, as in Python.

    Bounds that are only known at run time make extents that are, unless ONNX infers them.
    """
    data = node.input(0)
    if node.opset >= 10 and any(constant_value(node.input(index)) is None for index in (1, 2)):
        return _slice_at_run_time(node)
    shape = extents_of(data)
    if node.opset < 10:
        starts, ends = node.attributes["starts"], node.attributes["ends"]
        given = node.attributes.get("axes")
        steps: Sequence[int] = [1] * len(starts)
    else:
        starts, ends = (
            constant_ints(node, index, name) for index, name in ((1, "starts"), (2, "ends"))
        )
        given = None if node.optional(3) is None else constant_ints(node, 3, "axes")
        steps = [1] * len(starts)
        if node.optional(4) is not None:
            steps = constant_ints(node, 4, "steps")
    axes = normalize_axes(range(len(starts)) if given is None else given, len(shape))
    plain: dict[int, range] = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step == 0:
            raise Refusal("a step is 0")
        if not isinstance(shape[axis], int):
            raise Refusal(f"the length of axis {axis} is only known at run time")
        picked = range(*slice(int(start), int(end), int(step)).indices(shape[axis]))
        if step < 0:
            data = take_table(node, data, axis, np.array(picked, np.int64))
        elif picked != range(shape[axis]):
            plain[axis] = picked
    if not plain:
        return data
    return relax.op.strided_slice(
        data,
        list(plain),
        [r.start for r in plain.values()],
        [r.stop for r in plain.values()],
        [r.step for r in plain.values()],
    )


def _slice_at_run_time(node: Node) -> relax.Expr:
    """Return slice by bounds [k] that the model gets or computes."""
    data = node.input(0)
    shape = static_shape(data)
    (count,) = static_shape(node.input(1))
    given = range(count) if node.optional(3) is None else constant_ints(node, 3, "axes")
    axes = normalize_axes(given, len(shape))
    steps = [1] * count if node.optional(4) is None else constant_ints(node, 4, "steps")
    if any(step < 1 for step in steps):
        # Backwards only between known bounds.
        for index, name in ((1, "starts"), (2, "ends")):
            node.constant(index, name)
    extents = np.array([shape[axis] for axis in axes], np.int64)

    def bound(index: int) -> relax.Expr:
        """Return bounds counted from the front, within each axis."""
        value = node.cast(node.input(index), "int64")
        below = node.call(relax.op.less, value, relax.const(0, "int64"))
        wrapped = node.call(relax.op.add, value, constant_tensor(extents))
        value = node.call(relax.op.where, below, wrapped, value)
        value = node.call(relax.op.maximum, value, relax.const(0, "int64"))
        return node.call(relax.op.minimum, value, constant_tensor(extents))

    begin = bound(1)
    # An empty range has no negative length.
    end = node.call(relax.op.maximum, begin, bound(2))
    inferred = node.outputs[0].shape if node.outputs and node.outputs[0] else (None,) * len(shape)
    if all(inferred[axis] is not None for axis in axes):
        return _window(node, begin, axes, steps, [e or 0 for e in inferred])
    full = [constant_tensor(np.array([extent], np.int64)) for extent in shape]
    begins = [constant_tensor(np.zeros(1, np.int64)) for _ in shape]
    for place, axis in enumerate(axes):
        begins[axis], full[axis] = (
            node.call(relax.op.strided_slice, value, [0], [place], [place + 1])
            for value in (begin, end)
        )
    strides = np.ones(len(shape), np.int64)
    strides[axes] = steps
    operands = [node.call(relax.op.concat, parts, 0) for parts in (begins, full)]
    part = relax.op.dynamic_strided_slice(data, *operands, constant_tensor(strides))
    return node.with_extents(part, [None if a in axes else e for a, e in enumerate(shape)])


def _window(
    node: Node, begin: relax.Expr, axes: Sequence[int], steps: Sequence[int], shape: Sequence[int]
) -> relax.Expr:
    """Return a part of known shape at a place that only a run tells."""
    extents = static_shape(node.input(0))

    def element(x: Any, first: Any, at: list[Any]) -> Any:
        places = list(at)
        for number, axis in enumerate(axes):
            place = first[number] + tirx.Cast("int64", at[axis]) * steps[number]
            # Must not read foreign memory, should the parts not have the inferred length.
            places[axis] = tirx.min(place, tirx.const(extents[axis] - 1, "int64"))
        return x[tuple(places)]

    return emit_compute(node, [node.input(0), begin], shape, element)


def convert_split(node: Node) -> list[relax.Expr]:
    """Split into parts of given sizes, or into equal ones of which the last may be smaller."""
    data, count = node.input(0), len(node.proto.output)
    shape = static_shape(data)
    (axis,) = normalize_axes([node.attributes.get("axis", 0)], len(shape))
    if node.opset < 13:
        sizes = node.attributes.get("split")
    else:
        sizes = constant_ints(node, 1, "split") if node.optional(1) is not None else None
    if sizes is None:
        whole = math.ceil(shape[axis] / count)
        sizes = [max(0, min(whole, shape[axis] - whole * i)) for i in range(count)]
    sizes = [int(size) for size in sizes]
    if len(sizes) != count or sum(sizes) != shape[axis]:
        raise Refusal(f"parts of {sizes} do not make up the {shape[axis]} elements")
    if count == 1:
        return [data]
    ends = np.cumsum(sizes).tolist()
    if 0 not in sizes:
        parts = node.emit(relax.op.split(data, ends[:-1], axis))
        return [relax.TupleGetItem(parts, index) for index in range(count)]
    results = []
    for size, end in zip(sizes, ends, strict=True):
        if size == 0:
            empty = (*shape[:axis], 0, *shape[axis + 1 :])
            results.append(constant_tensor(np.zeros(empty, dtype_of(data))))
        else:
            results.append(relax.op.strided_slice(data, [axis], [end - size], [end]))
    return results


def convert_tile(node: Node) -> relax.Expr:
    """Convert Tile: each axis repeated as a whole."""
    data = node.input(0)
    repeats = constant_ints(node, 1, "repeats")
    if all(count == 1 for count in repeats):
        return data
    return relax.op.tile(data, repeats)


def convert_expand(node: Node) -> relax.Expr:
    """Convert Expand: broadcast both ways to a shape."""
    data = node.input(0)
    wanted = tuple(constant_ints(node, 1, "shape"))
    shape = np.broadcast_shapes(static_shape(data), wanted)
    return data if shape == static_shape(data) else relax.op.broadcast_to(data, shape)


def convert_constant(node: Node) -> relax.Expr:
    """Convert Constant: what constant folding leaves where an output of the model is constant."""
    ((kind, value),) = node.attributes.items()
    if kind.startswith(("value_int", "value_float")):
        value = np.asarray(value, np.int64 if "int" in kind else np.float32)
    if not isinstance(value, np.ndarray):
        raise Refusal(f"a constant given as {kind!r} is not supported")
    return constant_tensor(value)


def convert_constant_of_shape(node: Node) -> relax.Expr:
    """Convert ConstantOfShape: one value everywhere, float32 zero if none is given."""
    value = node.attributes.get("value", np.zeros(1, np.float32))
    shape = tuple(constant_ints(node, 0, "input"))
    return constant_tensor(np.full(shape, value.reshape(())))


def convert_range(node: Node) -> relax.Expr:
    """Convert Range: start + i * delta for i below ceil((limit - start) / delta)."""
    start, limit, delta = (
        node.constant(index, name).reshape(())
        for index, name in enumerate(("start", "limit", "delta"))
    )
    dtype = start.dtype
    if dtype.kind in "iu":
        count = max(0, -((int(start) - int(limit)) // int(delta)))
    else:
        count = max(0, math.ceil((float(limit) - float(start)) / float(delta)))
    at = np.arange(count)
    wide = at if dtype.kind in "iu" else at.astype(np.float64)
    kind = wide.dtype
    return constant_tensor((start.astype(kind) + wide * delta.astype(kind)).astype(dtype))


def convert_eye_like(node: Node) -> relax.Expr:
    """Convert EyeLike: ones on the k-th diagonal of a matrix."""
    rows, columns = static_shape(node.input(0))
    code = node.attributes.get("dtype")
    dtype = dtype_of(node.input(0)) if code is None else dtype_name(code)
    ones = np.eye(rows, columns, node.attributes.get("k", 0))
    return constant_tensor(ones.astype(dtype))


def convert_pad(node: Node) -> relax.Expr:
    """Pad by a constant, by reflection, by the edge or around; negative pads cut off."""
    data = node.input(0)
    rank = len(static_shape(data))
    mode = node.attributes.get("mode", "constant")
    value: relax.Expr | None = None
    axes = list(range(rank))
    if node.opset < 11:
        pads = [int(pad) for pad in node.attributes["pads"]]
        fill = node.attributes.get("value", 0.0)
        value = constant_tensor(np.array(fill).astype(dtype_of(data)))
    else:
        value = node.optional(2)
        if node.optional(3) is not None:
            axes = normalize_axes(constant_ints(node, 3, "axes"), rank)
        if constant_value(node.input(1)) is None:
            return _pad_at_run_time(node, axes, mode, value)
        pads = constant_ints(node, 1, "pads")
    before, after = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        before[axis], after[axis] = pads[place], pads[place + len(axes)]
    data = _crop(node, data, before, after)
    before, after = ([max(0, pad) for pad in side] for side in (before, after))
    if not any(before) and not any(after):
        return data
    if mode in _PAD_TABLES:
        for axis, extent in enumerate(static_shape(data)):
            if before[axis] or after[axis]:
                table = np.pad(np.arange(extent), (before[axis], after[axis]), _PAD_TABLES[mode])
                data = take_table(node, data, axis, table)
        return data
    if mode != "constant":
        raise Refusal(f"mode {mode!r} is not supported")
    return pad_constant(node, data, before, after, value)


# Where a place outside of an axis takes its value from, by the extent of the axis.
_PAD_PLACES: dict[str, Any] = {
    "constant": lambda place, extent: place,
    "edge": lambda place, extent: place,
    "reflect": lambda place, extent: extent - 1 - tirx.abs(extent - 1 - tirx.abs(place)),
    "wrap": lambda place, extent: tirx.floormod(place, tirx.const(extent, "int64")),
}


def _pad_at_run_time(
    node: Node, axes: Sequence[int], mode: str, value: relax.Expr | None
) -> relax.Expr:
    """Pad by numbers [2 k] that the model gets or computes, before all axes and then behind them.

    Reflection reaches as far as an axis is long.
    """
    data, pads = node.input(0), node.cast(node.input(1), "int64")
    shape, count, dtype = static_shape(data), len(axes), dtype_of(data)
    if mode not in _PAD_PLACES:
        raise Refusal(f"mode {mode!r} is not supported")
    before, after = (
        node.call(relax.op.strided_slice, pads, [0], [start], [start + count])
        for start in (0, count)
    )
    extents = constant_tensor(np.array([shape[axis] for axis in axes], np.int64))
    total = node.call(relax.op.add, node.call(relax.op.add, extents, before), after)
    symbols = [tirx.Var("n", "int64") for _ in axes]
    wanted: list[Any] = list(shape)
    for axis, symbol in zip(axes, symbols, strict=True):
        wanted[axis] = symbol
    lengths = node.call(relax.op.tensor_to_shape, total)
    node.builder.match_cast(lengths, relax.ShapeType(symbols))
    filler = constant_tensor(np.zeros((), dtype)) if value is None else value
    if math.prod(static_shape(filler)) != 1:
        raise Refusal("input 'constant_value' must be one value")
    filler = node.call(relax.op.reshape, filler, (1,))

    def element(x: Any, first: Any, outside: Any, at: list[Any]) -> Any:
        places, inside = list(at), []
        for number, axis in enumerate(axes):
            moved = tirx.Cast("int64", at[axis]) - first[number]
            inside += [moved >= 0, moved < shape[axis]]
            place = _PAD_PLACES[mode](moved, shape[axis])
            last = tirx.const(shape[axis] - 1, "int64")
            places[axis] = tirx.max(tirx.min(place, last), tirx.const(0, "int64"))
        picked = x[tuple(places)]
        return (
            tirx.if_then_else(tirx.all(*inside), picked, outside[0])
            if mode == "constant"
            else picked
        )

    return emit_compute(node, [data, before, filler], wanted, element)


def pad_constant(
    node: Node,
    data: relax.Expr,
    before: Sequence[int],
    after: Sequence[int],
    value: relax.Expr | None = None,
) -> relax.Expr:
    """Surround a tensor by one value, zero by default, of the same dtype."""
    dtype = dtype_of(data)
    known = np.zeros((), dtype) if value is None else constant_value(value)
    if known is not None and known.size == 1 and dtype == "float32":
        pairs = [pad for pair in zip(before, after, strict=True) for pad in pair]
        return relax.op.nn.pad(data, pairs, pad_value=float(known.reshape(-1)[0]))
    shape = static_shape(data)
    filler = constant_tensor(known) if value is None and known is not None else value
    assert filler is not None
    if math.prod(static_shape(filler)) != 1:
        raise Refusal("input 'constant_value' must be one value")
    filler = node.emit(relax.op.reshape(filler, (1,)))
    wanted = [b + e + a for b, e, a in zip(before, shape, after, strict=True)]

    def element(x: Any, outside: Any, at: list[Any]) -> Any:
        moved = [index - pad for index, pad in zip(at, before, strict=True)]
        inside = [tirx.all(i >= 0, i < e) for i, e in zip(moved, shape, strict=True)]
        return tirx.if_then_else(tirx.all(*inside), x[tuple(moved)], outside[0])

    return emit_compute(node, [data, filler], wanted, element)


def _crop(node: Node, data: relax.Expr, before: Sequence[int], after: Sequence[int]) -> relax.Expr:
    for axis, extent in enumerate(static_shape(data)):
        start, stop = max(0, -before[axis]), extent - max(0, -after[axis])
        if stop <= start and extent > 0:
            raise Refusal(f"pads leave nothing of axis {axis}")
        data = take_table(node, data, axis, np.arange(start, stop))
    return data


def convert_center_crop_pad(node: Node) -> relax.Expr:
    """Convert CenterCropPad: cut or zero-pad axes to given sizes.

    An odd element goes to the end.
    """
    data = node.input(0)
    shape = static_shape(data)
    axes = normalize_axes(node.attributes.get("axes", range(len(shape))), len(shape))
    wanted = constant_ints(node, 1, "shape")
    before, after = [0] * len(shape), [0] * len(shape)
    for axis, size in zip(axes, wanted, strict=True):
        missing = int(size) - shape[axis]
        first = abs(missing) // 2
        before[axis] = first if missing > 0 else -first
        after[axis] = missing - before[axis]
    data = _crop(node, data, before, after)
    before, after = ([max(0, pad) for pad in side] for side in (before, after))
    return pad_constant(node, data, before, after) if any(before) or any(after) else data


def convert_depth_to_space(node: Node) -> relax.Expr:
    """Convert DepthToSpace: channels [block, block, C] (DCR) or [C, block, block] (CRD)."""
    data, block = node.input(0), int(node.attributes["blocksize"])
    n, c, h, w = static_shape(data)
    less = c // block**2
    if node.attributes.get("mode", "DCR") == "DCR":
        split, order = (n, block, block, less, h, w), [0, 3, 4, 1, 5, 2]
    else:
        split, order = (n, less, block, block, h, w), [0, 1, 4, 2, 5, 3]
    moved = relax.op.permute_dims(node.emit(relax.op.reshape(data, split)), order)
    return relax.op.reshape(node.emit(moved), (n, less, h * block, w * block))


def convert_space_to_depth(node: Node) -> relax.Expr:
    """Convert SpaceToDepth: the inverse of DepthToSpace in either order."""
    data, block = node.input(0), int(node.attributes["blocksize"])
    n, c, h, w = static_shape(data)
    split = (n, c, h // block, block, w // block, block)
    order = (
        [0, 3, 5, 1, 2, 4] if node.attributes.get("mode", "DCR") == "DCR" else [0, 1, 3, 5, 2, 4]
    )
    moved = relax.op.permute_dims(node.emit(relax.op.reshape(data, split)), order)
    return relax.op.reshape(node.emit(moved), (n, c * block**2, h // block, w // block))


def convert_optional_has_element(node: Node) -> relax.Expr:
    """Convert OptionalHasElement: a tensor is there, an input that is left out is not."""
    return constant_tensor(np.array(node.optional(0) is not None))
