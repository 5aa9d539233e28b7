"""Say what a region of an image needs of the one before it: the receptive field of its values.

Rows of a convolution's result need the rows under its kernel. Padding stays where the image ends:
inside, the neighbour's rows take its place.
"""

from collections.abc import Sequence
from typing import Any

from tvm import relax

from edgec.compiler.ir.relax_helpers import op_name, shape_of
from edgec.compiler.split.regions import (
    Extents,
    Reading,
    Region,
    cut_out,
    extents,
    ints,
    whole,
    with_axis,
)

op = relax.op
CONVOLUTIONS = {"relax.nn.conv1d": op.nn.conv1d, "relax.nn.conv2d": op.nn.conv2d}
POOLS = {
    "relax.nn.max_pool1d": op.nn.max_pool1d,
    "relax.nn.max_pool2d": op.nn.max_pool2d,
    "relax.nn.avg_pool1d": op.nn.avg_pool1d,
    "relax.nn.avg_pool2d": op.nn.avg_pool2d,
}
_NEAREST = (("asymmetric", "floor"), ("half_pixel", ""), ("pytorch_half_pixel", ""))


def _window(
    interval: tuple[int, int], extent: int, kernel: int, stride: int, dilation: int, before: int
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return the interval under a window, and the padding before and behind it.

    None if a window sees padding alone.

    >>> _window((4, 8), 8, 3, 1, 1, 1)
    ((3, 8), (0, 1))
    """
    begin = interval[0] * stride - before
    end = (interval[1] - 1) * stride + (kernel - 1) * dilation + 1 - before
    inside = (max(0, begin), min(extent, end))
    if inside[0] >= inside[1]:
        return None
    return inside, (max(0, -begin), max(0, end - extent))


def _windows(
    region: Region, data: Extents, kernel: Extents, attrs: Any
) -> tuple[Region, list[int]] | None:
    """Return the intervals of all spatial axes, and the padding as TVM wants it."""
    rank = len(kernel)
    strides, dilations = ints(attrs.strides), ints(attrs.dilation)
    padding = ints(attrs.padding)
    found = [
        _window(*each)
        for each in zip(region, data, kernel, strides, dilations, padding[:rank], strict=True)
    ]
    if any(each is None for each in found):
        return None
    pairs = [each for each in found if each is not None]
    widths = [pads[0] for _, pads in pairs] + [pads[1] for _, pads in pairs]
    return tuple(inside for inside, _ in pairs), widths


def convolution(call: Any, shape: Extents, region: Region) -> Reading | None:
    """Return what a convolution reads; groups are computed whole."""
    attrs, (data, weight) = call.attrs, map(shape_of, call.args)
    if data is None or weight is None or not str(attrs.data_layout).startswith("NC"):
        return None
    if not str(attrs.kernel_layout).startswith("OI"):
        return None
    groups = int(attrs.groups)
    outputs, each = shape[1] // groups, data[1] // groups
    channels, read, now = region[1], (0, data[1]), groups
    if groups > 1:
        first, last = channels[0] // outputs, -(-channels[1] // outputs)
        channels, read = (first * outputs, last * outputs), (first * each, last * each)
        now = last - first
    found = _windows(region[2:], data[2:], weight[2:], attrs)
    if found is None:
        return None
    inside, padding = found
    make = CONVOLUTIONS[op_name(call)]

    def build(given: Sequence[Any]) -> Any:
        return make(
            *given,
            strides=ints(attrs.strides),
            padding=padding,
            dilation=ints(attrs.dilation),
            groups=now,
            data_layout=attrs.data_layout,
            kernel_layout=attrs.kernel_layout,
            out_layout=attrs.out_layout,
            out_dtype=attrs.out_dtype,
        )

    return Reading(
        with_axis(region, 1, channels),
        (
            (call.args[0], (region[0], read, *inside)),
            (call.args[1], (channels, *whole(weight[1:]))),
        ),
        build,
    )


def pool(call: Any, _shape: Extents, region: Region) -> Reading | None:
    """Return what a pooling reads."""
    attrs, data = call.attrs, shape_of(call.args[0])
    if data is None or not str(attrs.layout).startswith("NC"):
        return None
    kernel = ints(attrs.pool_size)
    found = _windows(region[2:], data[2:], kernel, attrs)
    if found is None:
        return None
    inside, padding = found
    mean = "avg" in op_name(call)
    if mean and bool(attrs.count_include_pad) and bool(attrs.ceil_mode):
        # What lies behind the padding counts as nothing: not the same as padding.
        return None
    make = POOLS[op_name(call)]

    def build(given: Sequence[Any]) -> Any:
        return make(
            *given,
            pool_size=kernel,
            strides=ints(attrs.strides),
            padding=padding,
            dilation=ints(attrs.dilation),
            ceil_mode=False,
            count_include_pad=attrs.count_include_pad,
            layout=attrs.layout,
            out_layout=attrs.out_layout,
        )

    return Reading(region, ((call.args[0], (*region[:2], *inside)),), build)


def pad(call: Any, shape: Extents, region: Region) -> Reading | None:
    """Return what a padding with a number reads."""
    data, attrs = shape_of(call.args[0]), call.attrs
    if data is None or str(attrs.pad_mode) != "constant":
        return None
    before = ints(attrs.pad_width)[::2]
    found = [
        _window(interval, extent, 1, 1, 1, pad)
        for interval, extent, pad in zip(region, data, before, strict=True)
    ]
    if any(each is None for each in found):
        return None
    pairs = [each for each in found if each is not None]
    widths = [width for _, pads in pairs for width in pads]
    return Reading(
        region,
        ((call.args[0], tuple(inside for inside, _ in pairs)),),
        lambda given: op.nn.pad(given[0], widths, "constant", float(attrs.pad_value)),
    )


def resize(call: Any, shape: Extents, region: Region) -> Reading | None:
    """Enlarge by whole numbers: each value becomes several, or is weighted with its neighbours."""
    data, attrs = shape_of(call.args[0]), call.attrs
    if data is None or str(attrs.layout) != "NCHW":
        return None
    method, way = str(attrs.method), str(attrs.coordinate_transformation_mode)
    if any(after % before for before, after in zip(data[2:], shape[2:], strict=True)):
        return None
    rounding = str(attrs.rounding_method)
    if method == "nearest_neighbor":
        if not any(way == w and r in rounding for w, r in _NEAREST):
            return None
        reach = 0
    elif method == "linear" and way in ("half_pixel", "pytorch_half_pixel"):
        reach = 1
    else:
        return None
    taken, made = [], []
    for (begin, end), before, after in zip(region[2:], data[2:], shape[2:], strict=True):
        scale = after // before
        first, last = begin // scale - reach, -(-end // scale) + reach
        inside = (max(0, first), min(before, last))
        taken.append(inside)
        made.append((inside[0] * scale, inside[1] * scale))
    computed = (*region[:2], *made)
    # Near its ends a part of an image repeats its edge, where the image goes on.
    result = region if reach else computed

    def build(given: Sequence[Any]) -> Any:
        enlarged = op.image.resize2d(
            given[0],
            list(extents(computed)[2:]),
            layout="NCHW",
            method=method,
            coordinate_transformation_mode=way,
            rounding_method=rounding,
            cubic_alpha=attrs.cubic_alpha,
            cubic_exclude=attrs.cubic_exclude,
            extrapolation_value=attrs.extrapolation_value,
            out_dtype=attrs.out_dtype,
        )
        return cut_out(enlarged, computed, result)

    return Reading(result, ((call.args[0], (*region[:2], *taken)),), build)
