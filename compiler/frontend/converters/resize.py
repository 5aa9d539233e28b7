"""Resize and Upsample.

Each axis is resized by itself: NumPy computes here, when compiling, where an output position lies
in the input and what weight its neighbours have; what runs is a gather and a weighted sum.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax, te, tirx

from edgec.compiler.frontend.converters.shapes import constant_ints, normalize_axes
from edgec.compiler.frontend.node import (
    Node,
    Refusal,
    accumulator_dtype,
    dtype_of,
    scalar,
    static_shape,
)
from edgec.compiler.frontend.te_operators import constant_tensor, emit_compute, take_table

# Up to here the taps of a weighted sum are written out, beyond they are a loop.
_UNROLLED_TAPS = 4

# What `relax.image.resize2d`, for which there is a fast kernel, knows.
_FAST_COORDINATES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")


@dataclass(frozen=True)
class Mode:
    """A mode describes how to resize; see the attributes of ONNX Resize."""

    method: str
    coordinates: str
    nearest: str
    cubic_a: float
    exclude_outside: bool
    antialias: bool


@dataclass(frozen=True)
class Axis:
    """An axis describes one axis to resize.

    Attributes:
        axis: which.
        before: input extent.
        after: output extent.
        scale: the scale of the coordinates; `before * scale` need not be `after`.
        roi: start and end of the region, as a share of the input.
    """

    axis: int
    before: int
    after: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)


def convert_upsample(node: Node) -> relax.Expr:
    """Return upsample, which is Resize of operator set 10."""
    return _resize(node, _legacy_mode(node), _scaled(node, 1, list(range(_rank(node)))))


def convert_resize(node: Node) -> relax.Expr:
    """Resize in all modes."""
    rank, attributes = _rank(node), node.attributes
    if node.opset < 11:
        return convert_upsample(node)
    mode = Mode(
        attributes.get("mode", "nearest"),
        attributes.get("coordinate_transformation_mode", "half_pixel"),
        attributes.get("nearest_mode", "round_prefer_floor"),
        attributes.get("cubic_coeff_a", -0.75),
        bool(attributes.get("exclude_outside", 0)),
        bool(attributes.get("antialias", 0)),
    )
    axes = normalize_axes(attributes.get("axes", range(rank)), rank)
    scales, sizes = node.optional(2), node.optional(3)
    if scales is not None and math.prod(static_shape(scales)) > 0:
        found = _scaled(node, 2, axes)
    elif sizes is not None:
        found = _sized(node, axes)
    else:
        raise Refusal("neither scales nor sizes are given")
    if mode.coordinates == "tf_crop_and_resize":
        edges = node.constant(1, "roi").reshape(2, len(axes)).astype(np.float64)
        found = [
            Axis(item.axis, item.before, item.after, item.scale, (start, end))
            for item, start, end in zip(found, *edges.tolist(), strict=True)
        ]
    return _resize(node, mode, found)


def _rank(node: Node) -> int:
    return len(static_shape(node.input(0)))


def _legacy_mode(node: Node) -> Mode:
    return Mode(node.attributes.get("mode", "nearest"), "asymmetric", "floor", 0.0, False, False)


def _scaled(node: Node, index: int, axes: Sequence[int]) -> list[Axis]:
    shape = static_shape(node.input(0))
    if node.op_type == "Upsample" and node.opset < 9:
        scales = np.array(node.attributes["scales"], np.float32)
    else:
        scales = node.constant(index, "scales").reshape(-1)
    if len(scales) != len(axes):
        raise Refusal(f"{len(scales)} scales for {len(axes)} axes")
    return [
        Axis(axis, shape[axis], math.floor(np.float32(shape[axis]) * scale), float(scale))
        for axis, scale in zip(axes, scales, strict=True)
    ]


def _sized(node: Node, axes: Sequence[int]) -> list[Axis]:
    shape = static_shape(node.input(0))
    sizes = constant_ints(node, 3, "sizes")
    if len(sizes) != len(axes):
        raise Refusal(f"{len(sizes)} sizes for {len(axes)} axes")
    policy = node.attributes.get("keep_aspect_ratio_policy", "stretch")
    scales = [size / shape[axis] for axis, size in zip(axes, sizes, strict=True)]
    if policy != "stretch":
        scale = min(scales) if policy == "not_larger" else max(scales)
        scales = [scale] * len(axes)
        sizes = [math.floor(scale * shape[axis] + 0.5) for axis in axes]
    return [
        Axis(axis, shape[axis], size, scale)
        for axis, size, scale in zip(axes, sizes, scales, strict=True)
    ]


def _resize(node: Node, mode: Mode, axes: Sequence[Axis]) -> relax.Expr:
    data = node.input(0)
    if mode.method not in ("nearest", "linear", "cubic"):
        raise Refusal(f"mode {mode.method!r} is not supported")
    changed = [item for item in axes if not _keeps(item, mode)]
    if not changed:
        return data
    fast = _fast_resize(data, mode, changed)
    if fast is not None:
        return fast
    if node.opset < 11 and mode.method == "nearest" and any(a.scale < 1 for a in changed):
        raise Refusal(f"nearest downsampling has no defined rounding in operator set {node.opset}")
    dtype = dtype_of(data)
    if mode.method != "nearest":
        if dtype in ("uint8", "int8") and (mode.antialias or mode.method == "linear"):
            return _resize_bytes(node, data, mode, changed)
        if not dtype.startswith(("float", "bfloat")):
            raise Refusal(f"mode {mode.method!r} of dtype {dtype} is not supported")
        data = node.cast(data, accumulator_dtype(dtype))
    outside = np.zeros((1,) * len(static_shape(data)), bool)
    for item in changed:
        positions, weights, beyond = axis_table(item, mode)
        data = _apply(node, data, item.axis, positions, weights)
        along = [1] * outside.ndim
        along[item.axis] = item.after
        outside = outside | beyond.reshape(along)
    data = node.cast(data, dtype)
    if not outside.any():
        return data
    fill = scalar(node.attributes.get("extrapolation_value", 0.0), dtype)
    return relax.op.where(constant_tensor(outside), fill, data)


def _resize_bytes(node: Node, data: relax.Expr, mode: Mode, axes: Sequence[Axis]) -> relax.Expr:
    """Return images of bytes, bit for bit as ONNX Runtime resizes them.

    With antialias: axis by axis from the last one, in fixed point, each rounded to bytes, as
    Pillow does it. Without: the four neighbours in float32, cut off to a whole number.
    """
    if mode.coordinates == "tf_crop_and_resize":
        raise Refusal(f"{mode.coordinates} of dtype {dtype_of(data)} is not supported")
    if not mode.antialias:
        return _bilinear_bytes(node, data, mode, axes)
    for item in sorted(axes, key=lambda item: -item.axis):
        positions, weights, _ = axis_table(item, mode)
        data = _apply_fixed(node, data, item.axis, positions, weights)
    return data


# Bits behind the point, as in Pillow: 32 less those of a byte and two for sums beyond a byte.
_FIXED_BITS = 22


def _apply_fixed(
    node: Node,
    data: relax.Expr,
    axis: int,
    positions: NDArray[np.int64],
    weights: NDArray[np.float32],
) -> relax.Expr:
    """Return weighted sum of the bytes of one axis, rounded and saturated."""
    shape, dtype = list(static_shape(data)), dtype_of(data)
    shape[axis] = len(positions)
    # Weights that meet at the edge are added before they are rounded.
    whole = np.zeros(weights.shape)
    for row, line in enumerate(positions):
        first = {place: tap for tap, place in reversed(list(enumerate(line.tolist())))}
        np.add.at(whole[row], [first[place] for place in line.tolist()], weights[row])
    fixed = np.floor(whole * (1 << _FIXED_BITS) + 0.5).astype(np.int32)
    tables = [constant_tensor(positions.astype(np.int32)), constant_tensor(fixed)]
    taps, limits = positions.shape[1], np.iinfo(dtype)

    def total(x: Any, where: Any, weight: Any, at: list[Any]) -> Any:
        tap = te.reduce_axis((0, taps), "tap")
        place = (*at[:axis], where[at[axis], tap], *at[axis + 1 :])
        return te.sum(tirx.Cast("int32", x[place]) * weight[at[axis], tap], axis=tap)

    def rounded(sums: Any, at: list[Any]) -> Any:
        half = tirx.const(1 << _FIXED_BITS - 1, "int32")
        value = (sums[tuple(at)] + half) >> _FIXED_BITS
        low, high = (tirx.const(int(limit), "int32") for limit in (limits.min, limits.max))
        return tirx.Cast(dtype, tirx.max(tirx.min(value, high), low))

    sums = emit_compute(node, [data, *tables], shape, total)
    return emit_compute(node, [sums], shape, rounded)


def _bilinear_bytes(node: Node, data: relax.Expr, mode: Mode, axes: Sequence[Axis]) -> relax.Expr:
    """Return the sum of four neighbours by their distances in float32.

    In the order of ONNX Runtime.
    """
    shape, dtype = list(static_shape(data)), dtype_of(data)
    rank = len(shape)
    if rank < 2 or any(item.axis < rank - 2 for item in axes):
        raise Refusal(f"of dtype {dtype} only the last two axes can be resized")
    by_axis = {item.axis: item for item in axes}
    tables = []
    for axis in (rank - 2, rank - 1):
        item = by_axis.get(axis, Axis(axis, shape[axis], shape[axis], 1.0))
        at = np.clip(_coordinates(item, mode.coordinates).astype(np.float32), 0, item.before - 1)
        low = np.floor(at).astype(np.int32)
        high = np.minimum(low + 1, item.before - 1).astype(np.int32)
        # Both one where the neighbours are the same pixel: half of each.
        near, far = np.abs(at - low), np.abs(at - high)
        same = low == high
        near[same], far[same] = 0.5, 0.5
        tables += [constant_tensor(np.stack([low, high])), constant_tensor(np.stack([far, near]))]
        shape[axis] = item.after

    def element(x: Any, rows: Any, down: Any, columns: Any, right: Any, at: list[Any]) -> Any:
        *front, i, j = at

        def pixel(row: int, column: int) -> Any:
            value = x[(*front, rows[row, i], columns[column, j])]
            return right[column, j] * down[row, i] * tirx.Cast("float32", value)

        total = pixel(0, 0) + pixel(0, 1) + pixel(1, 0) + pixel(1, 1)
        return tirx.Cast(dtype, tirx.Cast("int32", total))

    return emit_compute(node, [data, *tables], shape, element)


def _keeps(item: Axis, mode: Mode) -> bool:
    """Return whether an axis stays as it is."""
    crops = mode.coordinates == "tf_crop_and_resize" and item.roi != (0.0, 1.0)
    return item.scale == 1 and item.after == item.before and not crops


def _fast_resize(data: relax.Expr, mode: Mode, axes: Sequence[Axis]) -> relax.Expr | None:
    """Return the resize as an operator of images, if that computes the very same."""
    shape = static_shape(data)
    if (
        dtype_of(data) != "float32"
        or len(shape) != 4
        or any(item.axis < 2 for item in axes)
        or any(item.before * item.scale != item.after for item in axes)
        or mode.method not in ("nearest", "linear")
        or mode.coordinates not in _FAST_COORDINATES
        or mode.antialias
        or mode.exclude_outside
    ):
        return None
    # It computes coordinates in float32, where positions between two pixels may round elsewhere.
    if mode.method == "nearest" and not all(
        math.log2(item.after / item.before).is_integer() for item in axes
    ):
        return None
    sizes = list(shape[2:])
    for item in axes:
        sizes[item.axis - 2] = item.after
    if mode.coordinates == "align_corners" and 1 in sizes:
        # It divides by the number of pixels less one.
        return None
    return relax.op.image.resize2d(
        data,
        relax.ShapeExpr(sizes),
        layout="NCHW",
        method="nearest_neighbor" if mode.method == "nearest" else "linear",
        coordinate_transformation_mode=mode.coordinates,
        rounding_method=mode.nearest if mode.method == "nearest" else "",
    )


def axis_table(
    item: Axis, mode: Mode
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
    """Return source positions and weights of each output position.

    Returns:
        Positions int64 and weights float32, both [after, taps], and bool [after]: where the
        region of interest reaches beyond the input.
    """
    at = _coordinates(item, mode.coordinates)
    beyond = np.zeros(item.after, bool)
    if mode.coordinates == "tf_crop_and_resize":
        beyond = (at < 0) | (at > item.before - 1)
    base = np.floor(at)
    share = at - base
    if mode.method == "nearest":
        offset, weights = _nearest(share, mode.nearest)
        positions = base[:, None] + offset
    else:
        support = 1 if mode.method == "linear" else 2
        shrink = min(item.scale, 1.0) if mode.antialias else 1.0
        reach = math.ceil(support / shrink)
        offsets = np.arange(1 - reach, reach + 1)
        distance = np.abs(offsets[None, :] - share[:, None]) * shrink
        weights = _kernel(distance, mode)
        positions = base[:, None] + offsets
        if mode.exclude_outside:
            weights = np.where((positions < 0) | (positions >= item.before), 0.0, weights)
        if mode.exclude_outside or mode.antialias:
            weights = weights / weights.sum(axis=1, keepdims=True)
    clipped = np.clip(positions, 0, item.before - 1)
    used = np.any(weights != 0, axis=0)
    return clipped[:, used].astype(np.int64), weights[:, used].astype(np.float32), beyond


def _coordinates(item: Axis, mode: str) -> NDArray[np.float64]:
    """Return where output positions lie in the input; formulas of the ONNX specification.

    Corners are those of the whole number of output positions, as in ONNX Runtime and PyTorch; the
    reference evaluator takes the extent before it is rounded, which moves the last corner inward
    or outward.

    Dividing by the scale is written so that a position between two pixels comes out exactly.
    """
    x = np.arange(item.after, dtype=np.float64)
    width = item.before * item.scale
    match mode:
        case "align_corners":
            return x * 0 if item.after == 1 else x * (item.before - 1) / (item.after - 1)
        case "asymmetric":
            return x * item.before / width
        case "tf_crop_and_resize":
            start, end = item.roi
            last = item.before - 1
            if item.after == 1:
                return x * 0 + (start + end) * last / 2
            return start * last + x * (end - start) * last / (item.after - 1)
        case "pytorch_half_pixel":
            return x * 0 if item.after == 1 else (x + 0.5) * item.before / width - 0.5
        case "half_pixel":
            return (x + 0.5) * item.before / width - 0.5
        case "half_pixel_symmetric":
            center = item.before / 2 * (1 - item.after / width)
            return center + (x + 0.5) * item.before / width - 0.5
        case "tf_half_pixel_for_nn":
            return (x + 0.5) * item.before / width
    raise Refusal(f"coordinate transformation {mode!r} is not supported")


def _nearest(
    share: NDArray[np.float64], rounding: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return 0 for the pixel before, 1 for the one after, by the distance from the one before."""
    match rounding:
        case "round_prefer_floor":
            up = share > 0.5
        case "round_prefer_ceil":
            up = share >= 0.5
        case "floor":
            up = np.zeros_like(share, bool)
        case "ceil":
            up = share > 0
        case _:
            raise Refusal(f"nearest_mode {rounding!r} is not supported")
    return up.astype(np.float64)[:, None], np.ones((len(share), 1))


def _kernel(distance: NDArray[np.float64], mode: Mode) -> NDArray[np.float64]:
    """Return weight by distance: a triangle, or the cubic convolution of Keys with parameter a."""
    if mode.method == "linear":
        return np.clip(1 - distance, 0, 1)
    a, d = mode.cubic_a, distance
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _apply(
    node: Node,
    data: relax.Expr,
    axis: int,
    positions: NDArray[np.int64],
    weights: NDArray[np.float32],
) -> relax.Expr:
    """Return weighted sum of the elements of one axis."""
    taps = positions.shape[1]
    if taps == 1 and np.all(weights == 1):
        return take_table(node, data, axis, positions[:, 0])
    shape = list(static_shape(data))
    shape[axis] = len(positions)
    dtype = dtype_of(data)
    tables = [constant_tensor(positions.astype(np.int32)), constant_tensor(weights.astype(dtype))]

    def element(x: Any, where: Any, weight: Any, at: list[Any]) -> Any:
        def term(tap: Any) -> Any:
            place = (*at[:axis], where[at[axis], tap], *at[axis + 1 :])
            return x[place] * weight[at[axis], tap]

        if taps > _UNROLLED_TAPS:
            tap = te.reduce_axis((0, taps), "tap")
            return te.sum(term(tap), axis=tap)
        total = term(tirx.const(0, "int64"))
        for number in range(1, taps):
            total = total + term(tirx.const(number, "int64"))
        return total

    return emit_compute(node, [data, *tables], shape, element)
