"""Provide operators that sample images at computed positions, and that choose among boxes."""

import itertools
import math
from typing import Any

import numpy as np
from tvm import relax, tirx
from tvm.script.ir_builder import tirx as script

from edgec.compiler.frontend.converters.indexing import argsort_rows, first_rows
from edgec.compiler.frontend.converters.shapes import constant_ints
from edgec.compiler.frontend.node import Node, Refusal, constant_value, dtype_of, static_shape
from edgec.compiler.frontend.te_operators import (
    constant_tensor,
    emit_compute,
    emit_procedure,
    flat,
    strides_of,
    unravel,
)
from edgec.compiler.ir.signature import TensorSpec

# Neighbours along each axis.
_SAMPLE_TAPS = {"nearest": 1, "linear": 2, "cubic": 4}

# Parameter of the cubic convolution.
_CUBIC_A = -0.75

# Positions further out are clipped; they still have exact neighbours in float32.
_FARTHEST_PIXEL = 2.0**22


def convert_non_max_suppression(node: Node) -> relax.Expr:
    """Convert NonMaxSuppression: [batch, class, box] of the boxes kept, best first in each class.

    A box is dropped if its intersection over union with a better one that is kept exceeds the
    threshold. How many rows there are, only a run tells.
    """
    boxes, scores = node.input(0), node.input(1)
    batch, classes, count = static_shape(scores)
    if dtype_of(boxes) != "float32" or dtype_of(scores) != "float32":
        raise Refusal("boxes and scores of another dtype than float32 are not supported")
    limit = 0
    if node.optional(2) is not None:
        limit = int(node.constant(2, "max_output_boxes_per_class").reshape(-1)[0])
    limit = max(0, min(limit, count))
    if limit == 0:
        return constant_tensor(np.zeros((0, 3), np.int64))
    overlap, least = (
        constant_tensor(np.array([default], np.float32))
        if node.optional(index) is None
        else flat(node, node.input(index))
        for index, default in ((3, 0.0), (4, -math.inf))
    )
    centered = bool(node.attributes.get("center_point_box", 0))
    rows = node.emit(relax.op.reshape(scores, (batch * classes, count)))
    order = argsort_rows(node, rows, descending=True)

    def edges(box: Any, b: Any, i: Any) -> tuple[list[Any], list[Any]]:
        """Lower and upper edge along both axes."""
        c = [box[b, i, k] for k in range(4)]
        if centered:
            half = [c[2] / 2, c[3] / 2]
            return [c[0] - half[0], c[1] - half[1]], [c[0] + half[0], c[1] + half[1]]
        pairs = ((c[0], c[2]), (c[1], c[3]))
        return [tirx.min(*pair) for pair in pairs], [tirx.max(*pair) for pair in pairs]

    def body(
        box: Any, score: Any, ranked: Any, iou: Any, least: Any, kept: Any, total: Any, state: Any
    ) -> None:
        zero = tirx.const(0, "int64")
        script.buffer_store(total, zero, [0])
        with script.serial(0, batch) as b, script.serial(0, classes) as c:
            script.buffer_store(state, total[0], [0])
            with script.serial(0, count) as rank:
                line = b * classes + c
                index = tirx.Cast("int64", ranked[line, rank])
                room = total[0] - state[0] < tirx.const(limit, "int64")
                wanted = tirx.all(score[line, index] > least[0], room)
                with script.If(wanted), script.Then():
                    script.buffer_store(state, zero, [1])
                    with script.serial(0, total[0] - state[0]) as other:
                        low, high = edges(box, b, index)
                        low2, high2 = edges(box, b, kept[state[0] + other, 2])
                        sides = [
                            tirx.min(high[k], high2[k]) - tirx.max(low[k], low2[k])
                            for k in range(2)
                        ]
                        none = tirx.const(0, "float32")
                        shared = sides[0] * sides[1]
                        areas = [
                            (high[0] - low[0]) * (high[1] - low[1]),
                            (high2[0] - low2[0]) * (high2[1] - low2[1]),
                        ]
                        union = areas[0] + areas[1] - shared
                        positive = [*sides, shared, *areas, union]
                        too_close = tirx.all(*(p > none for p in positive), shared / union > iou[0])
                        with script.If(too_close), script.Then():
                            script.buffer_store(state, tirx.const(1, "int64"), [1])
                    with script.If(state[1].equal(zero)), script.Then():
                        for k, value in enumerate((b, c, index)):
                            script.buffer_store(kept, tirx.Cast("int64", value), [total[0], k])
                        script.buffer_store(total, total[0] + 1, [0])

    outputs = [
        TensorSpec("", (batch * classes * limit, 3), "int64"),
        TensorSpec("", (1,), "int64"),
        TensorSpec("", (2,), "int64"),
    ]
    kept, total, _ = emit_procedure(node, [boxes, rows, order, overlap, least], outputs, body)
    return first_rows(node, kept, total)


def convert_roi_align(node: Node) -> relax.Expr:
    """Convert RoiAlign: average or maximum of bilinear samples in each cell of each region.

    In mode max a sample counts as the greatest of its four weighted neighbours, as the
    specification's implementation has it.
    """
    data, rois, batches = (node.input(index) for index in range(3))
    attributes = node.attributes
    _, channels, height, width = static_shape(data)
    images, number = static_shape(data)[0], static_shape(rois)[0]
    if dtype_of(data) != "float32":
        raise Refusal(f"dtype {dtype_of(data)} is not supported")
    rows, columns = attributes.get("output_height", 1), attributes.get("output_width", 1)
    ratio, scale = attributes.get("sampling_ratio", 0), attributes.get("spatial_scale", 1.0)
    mode = attributes.get("mode", "avg")
    if node.opset < 16:
        half_pixel = False
    else:
        half_pixel = attributes.get("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    offset = 0.5 if half_pixel else 0.0

    def real(value: float) -> Any:
        return tirx.const(value, "float32")

    def sample(x: Any, image: Any, channel: Any, y: Any, x_at: Any) -> list[Any]:
        """Return the four neighbours, weighted."""
        low, share, high = [], [], []
        for at, extent in ((y, height), (x_at, width)):
            limited = tirx.min(tirx.max(at, real(0)), real(extent - 1))
            whole = tirx.Cast("int32", tirx.floor(limited))
            low.append(whole)
            high.append(tirx.min(whole + 1, extent - 1))
            share.append(limited - tirx.Cast("float32", whole))
        outside = tirx.any(y < real(-1), y > real(height), x_at < real(-1), x_at > real(width))
        terms = []
        for down, right in itertools.product((0, 1), (0, 1)):
            weight = (share[0] if down else 1 - share[0]) * (share[1] if right else 1 - share[1])
            value = x[image, channel, (high if down else low)[0], (high if right else low)[1]]
            terms.append(tirx.Select(outside, real(0), weight * value))
        return terms

    def body(x: Any, roi: Any, batch: Any, out: Any) -> None:
        with script.serial(0, number) as n, script.serial(0, channels) as c:
            start = [roi[n, k] * real(scale) - real(offset) for k in (1, 0)]
            size = [
                roi[n, k + 2] * real(scale) - real(offset) - begin
                for k, begin in zip((1, 0), start, strict=True)
            ]
            if not half_pixel:
                size = [tirx.max(extent, real(1)) for extent in size]
            bins = [size[0] / real(rows), size[1] / real(columns)]
            grid = [
                tirx.const(ratio, "int32") if ratio > 0 else tirx.Cast("int32", tirx.ceil(extent))
                for extent in bins
            ]
            image = tirx.max(tirx.min(batch[n], images - 1), 0)
            with script.serial(0, rows) as row, script.serial(0, columns) as column:
                place = [n, c, row, column]
                script.buffer_store(out, real(0), place)
                with script.serial(0, grid[0]) as i, script.serial(0, grid[1]) as j:
                    at = [
                        begin
                        + tirx.Cast("float32", cell) * extent
                        + (tirx.Cast("float32", step) + real(0.5))
                        * extent
                        / tirx.Cast("float32", steps)
                        for begin, cell, extent, step, steps in zip(
                            start, (row, column), bins, (i, j), grid, strict=True
                        )
                    ]
                    terms = sample(x, image, c, *at)
                    if mode == "avg":
                        value = out[n, c, row, column] + sum(terms[1:], terms[0])
                    else:
                        best = tirx.max(tirx.max(*terms[:2]), tirx.max(*terms[2:]))
                        first = tirx.all(i.equal(0), j.equal(0))
                        value = tirx.Select(first, best, tirx.max(out[n, c, row, column], best))
                    script.buffer_store(out, value, place)
                if mode == "avg":
                    count = tirx.Cast("float32", tirx.max(grid[0] * grid[1], 1))
                    script.buffer_store(out, out[n, c, row, column] / count, place)

    output = TensorSpec("", (number, channels, rows, columns), "float32")
    (result,) = emit_procedure(node, [data, rois, batches], [output], body)
    return result


def convert_deform_conv(node: Node) -> relax.Expr:
    """Return DeformConv of images: bilinear samples at shifted positions, then a matrix product."""
    data, weight, offset = (node.input(index) for index in range(3))
    bias, mask, attributes = node.optional(3), node.optional(4), node.attributes
    if len(static_shape(data)) != 4:
        raise Refusal("only images are supported")
    batch, channels, height, width = static_shape(data)
    filters, depth, *kernel = static_shape(weight)
    groups, dtype = attributes.get("group", 1), dtype_of(data)
    offset_groups = attributes.get("offset_group", 1)
    strides, dilations = attributes.get("strides", (1, 1)), attributes.get("dilations", (1, 1))
    pads = attributes.get("pads", (0, 0, 0, 0))
    rows, columns = static_shape(offset)[2:]
    taps = math.prod(kernel)

    def element(x: Any, shift: Any, at: list[Any], *factor: Any) -> Any:
        n, channel, tap, row, column = at
        group = tirx.floordiv(channel, channels // offset_groups)
        number = group * taps + tap
        steps = (tirx.floordiv(tap, kernel[1]), tirx.floormod(tap, kernel[1]))
        places = []
        for axis, extent in enumerate((height, width)):
            fixed = (row, column)[axis] * strides[axis] + steps[axis] * dilations[axis] - pads[axis]
            moved = tirx.Cast(dtype, fixed) + shift(n, number * 2 + axis, row, column)
            # Further out all is zero, and the conversion to an integer has limits.
            near = tirx.min(tirx.max(moved, tirx.const(-2, dtype)), tirx.const(extent + 1, dtype))
            places.append((near, extent))
        total = tirx.const(0, dtype)
        for corner in itertools.product((0, 1), (0, 1)):
            weight_here, index, inside = tirx.const(1, dtype), [], []
            for (place, extent), step in zip(places, corner, strict=True):
                low = tirx.floor(place)
                share = place - low
                weight_here = weight_here * (share if step else 1 - share)
                index.append(tirx.Cast("int32", low) + step)
                inside.append(tirx.all(index[-1] >= 0, index[-1] < extent))
            value = tirx.if_then_else(
                tirx.all(*inside), x(n, channel, *index), tirx.const(0, dtype)
            )
            total = total + weight_here * value
        return total * factor[0](n, number, row, column) if factor else total

    inputs = [data, offset] if mask is None else [data, offset, mask]
    samples = emit_compute(
        node,
        inputs,
        (batch, channels, taps, rows, columns),
        lambda *given: element(given[0], given[1], given[-1], *given[2:-1]),
    )
    lines = (batch, groups, channels // groups * taps, rows * columns)
    stacked = node.emit(relax.op.reshape(samples, lines))
    matrix = node.emit(relax.op.reshape(weight, (1, groups, filters // groups, depth * taps)))
    product = node.emit(relax.op.matmul(matrix, stacked))
    result = relax.op.reshape(product, (batch, filters, rows, columns))
    if bias is None:
        return result
    column = node.emit(relax.op.reshape(bias, (1, filters, 1, 1)))
    return relax.op.add(node.emit(result), column)


def convert_col2im(node: Node) -> relax.Expr:
    """Convert Col2Im: each column is a block; overlapping blocks add up."""
    data = node.input(0)
    image = constant_ints(node, 1, "image_shape")
    block = constant_ints(node, 2, "block_shape")
    rank, taps = len(image), math.prod(block)
    attributes, dtype = node.attributes, dtype_of(data)
    batch, stacked, number = static_shape(data)
    dilations = attributes.get("dilations", (1,) * rank)
    strides = attributes.get("strides", (1,) * rank)
    pads = attributes.get("pads", (0,) * 2 * rank)
    windows = [
        (e + pads[a] + pads[a + rank] - (block[a] - 1) * dilations[a] - 1) // strides[a] + 1
        for a, e in enumerate(image)
    ]
    if math.prod(windows) != number:
        raise Refusal(f"{number} columns where the image has {windows} blocks")
    planes, size = batch * stacked // taps, math.prod(image)
    steps = strides_of(image)

    def body(x: Any, y: Any) -> None:
        with script.serial(0, planes) as plane:
            with script.serial(0, size) as i:
                script.buffer_store(y, tirx.const(0, dtype), [plane, i])
            for number_of_tap, tap in enumerate(itertools.product(*map(range, block))):
                with script.serial(0, number) as window:
                    places = [
                        w * s + t * d - p
                        for w, s, t, d, p in zip(
                            unravel(window, windows), strides, tap, dilations, pads, strict=False
                        )
                    ]
                    at = sum((p * s for p, s in zip(places, steps, strict=True)), tirx.const(0))
                    inside = [tirx.all(p >= 0, p < e) for p, e in zip(places, image, strict=True)]
                    with script.If(tirx.all(*inside)), script.Then():
                        value = y[plane, at] + x[plane, number_of_tap, window]
                        script.buffer_store(y, value, [plane, at])

    cut = node.emit(relax.op.reshape(data, (planes, taps, number)))
    output = TensorSpec("", (planes, size), dtype)
    (result,) = emit_procedure(node, [cut], [output], body)
    return relax.op.reshape(result, (batch, stacked // taps, *image))


def convert_det(node: Node) -> relax.Expr:
    """Convert Det: by elimination with the greatest pivot of each column."""
    data = node.input(0)
    *outer, n, _ = static_shape(data)
    dtype, count = dtype_of(data), math.prod(outer)
    known = constant_value(data)
    if known is not None:
        return constant_tensor(np.asarray(np.linalg.det(known)).astype(known.dtype))

    def body(x: Any, out: Any, a: Any, pivot: Any) -> None:
        with script.serial(0, count) as m:
            with script.serial(0, n) as i, script.serial(0, n) as j:
                script.buffer_store(a, x[m, i, j], [i, j])
            script.buffer_store(out, tirx.const(1, dtype), [m])
            with script.serial(0, n) as k:
                script.buffer_store(pivot, tirx.Cast("int32", k), [0])
                with script.serial(0, n - 1 - k) as step:
                    i = k + 1 + step
                    larger = tirx.abs(a[i, k]) > tirx.abs(a[pivot[0], k])
                    with script.If(larger), script.Then():
                        script.buffer_store(pivot, tirx.Cast("int32", i), [0])
                with script.If(tirx.NE(pivot[0], tirx.Cast("int32", k))), script.Then():
                    script.buffer_store(out, -out[m], [m])
                    with script.serial(0, n) as j:
                        # Exchanged by sums would round: by a line behind the matrix.
                        script.buffer_store(a, a[k, j], [n, j])
                        script.buffer_store(a, a[pivot[0], j], [k, j])
                        script.buffer_store(a, a[n, j], [pivot[0], j])
                script.buffer_store(out, out[m] * a[k, k], [m])
                nonzero = tirx.NE(a[k, k], tirx.const(0, dtype))
                with script.If(nonzero), script.Then(), script.serial(0, n - 1 - k) as step:
                    i = k + 1 + step
                    script.buffer_store(a, a[i, k] / a[k, k], [n, 0])
                    with script.serial(0, n) as j:
                        script.buffer_store(a, a[i, j] - a[n, 0] * a[k, j], [i, j])

    cut = node.emit(relax.op.reshape(data, (count, n, n)))
    outputs = [
        TensorSpec("", (count,), dtype),
        TensorSpec("", (n + 1, n), dtype),
        TensorSpec("", (1,), "int32"),
    ]
    return relax.op.reshape(emit_procedure(node, [cut], outputs, body)[0], tuple(outer))


def convert_grid_sample(node: Node) -> relax.Expr:
    """Return GridSample of images and volumes: nearest, linear, or cubic with a = -0.75.

    First the source pixels and their weights along each axis, then the weighted sum. Padding is
    by pixel: outside is zero, the edge, or the image mirrored at its border (at the centres of its
    last pixels with `align_corners`).
    """
    data, grid, attributes = node.input(0), node.input(1), node.attributes
    batch, channels, *extents = static_shape(data)
    outer, rank = static_shape(grid)[1:-1], len(extents)
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(
        attributes.get("mode", "linear"), attributes.get("mode", "linear")
    )
    padding, align = attributes.get("padding_mode", "zeros"), attributes.get("align_corners", 0)
    if mode not in _SAMPLE_TAPS or (mode == "cubic" and rank != 2):
        raise Refusal(f"mode {mode!r} over {rank} axes is not supported")
    taps, count = _SAMPLE_TAPS[mode], math.prod(outer)
    dtype = "float64" if dtype_of(data) == "float64" else "float32"
    places = node.emit(relax.op.reshape(grid, (batch, count, rank)))
    if dtype_of(grid) != dtype:
        places = node.emit(relax.op.astype(places, dtype))
    # The grid has x first, the data has it last; extents stand in the grid's order here.
    sizes = constant_tensor(np.array(extents[::-1], np.int32))

    def base(grid_at: Any, size: Any, n: Any, p: Any, axis: Any) -> tuple[Any, Any, Any]:
        """Return first tap's pixel, distance of the position from the pixel below it, extent."""
        extent = size(axis)
        wide = tirx.Cast(dtype, extent)
        at = grid_at(n, p, axis) + 1
        at = at / 2 * (wide - 1) if align else (at * wide - 1) / 2
        limit = tirx.const(_FARTHEST_PIXEL, dtype)
        at = tirx.max(tirx.min(at, limit), -limit)
        if mode == "nearest":
            return tirx.Cast("int32", tirx.nearbyint(at)), tirx.const(0, dtype), extent
        low = tirx.floor(at)
        first = tirx.Cast("int32", low) - (1 if mode == "cubic" else 0)
        return first, at - low, extent

    def pixel(grid_at: Any, size: Any, at: list[Any]) -> Any:
        first, _, extent = base(grid_at, size, *at[:3])
        index = first + tirx.Cast("int32", at[3])
        if padding == "reflection":
            period = tirx.max(2 * extent - 2, 1) if align else 2 * extent
            turned = tirx.floormod(index, period)
            index = tirx.Select(turned < extent, turned, period - turned - (0 if align else 1))
        return tirx.max(tirx.min(index, extent - 1), 0)

    def weight(grid_at: Any, size: Any, at: list[Any]) -> Any:
        first, share, extent = base(grid_at, size, *at[:3])
        index = first + tirx.Cast("int32", at[3])
        if mode == "nearest":
            value = tirx.const(1, dtype)
        elif mode == "linear":
            value = tirx.Select(at[3].equal(0), 1 - share, share)
        else:
            d = tirx.abs(share + 1 - tirx.Cast(dtype, at[3]))
            near = ((_CUBIC_A + 2) * d - (_CUBIC_A + 3)) * d * d + 1
            far = ((_CUBIC_A * d - 5 * _CUBIC_A) * d + 8 * _CUBIC_A) * d - 4 * _CUBIC_A
            value = tirx.Select(d <= 1, near, far)
        if padding == "zeros":
            value = tirx.Select(tirx.all(index >= 0, index < extent), value, tirx.const(0, dtype))
        return value

    tables = [
        emit_compute(node, [places, sizes], (batch, count, rank, taps), element)
        for element in (pixel, weight)
    ]

    def element(x: Any, index: Any, share: Any, at: list[Any]) -> Any:
        n, c, p = at
        total = tirx.const(0, dtype)
        for tap in itertools.product(range(taps), repeat=rank):
            source = [index(n, p, rank - 1 - axis, t) for axis, t in enumerate(tap)]
            term = tirx.Cast(dtype, x(n, c, *source))
            for axis, t in enumerate(tap):
                term = term * share(n, p, rank - 1 - axis, t)
            total = total + term
        return tirx.Cast(dtype_of(data), total)

    result = emit_compute(node, [data, *tables], (batch, channels, count), element)
    return relax.op.reshape(result, (batch, channels, *outer))
