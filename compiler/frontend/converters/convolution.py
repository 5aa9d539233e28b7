"""Provide conv and ConvTranspose in one, two and three dimensions."""

from collections.abc import Sequence

import numpy as np
from tvm import relax

from edgec.compiler.frontend.converters.shapes import pad_constant
from edgec.compiler.frontend.node import Node, Refusal, constant_value, static_shape

_CONV = {1: relax.op.nn.conv1d, 2: relax.op.nn.conv2d, 3: relax.op.nn.conv3d}
_TRANSPOSED = {
    1: (relax.op.nn.conv1d_transpose, "NCW", "IOW"),
    2: (relax.op.nn.conv2d_transpose, "NCHW", "IOHW"),
    3: (relax.op.nn.conv3d_transpose, "NCDHW", "IODHW"),
}


def convert_conv(node: Node) -> relax.Expr:
    """Convert Conv: data [N, C, *space], weight [O, C/group, *kernel], bias [O]."""
    weight, bias = node.input(1), node.optional(2)
    result = convolve(node, node.input(0), weight)
    if bias is None:
        return result
    rank = len(static_shape(weight)) - 2
    return relax.op.add(node.emit(result), channel_constant(node, bias, rank))


def convolve(
    node: Node, data: relax.Expr, weight: relax.Expr, out_dtype: str | None = None
) -> relax.Expr:
    """Return convolution with the attributes of a node, summed in `out_dtype`."""
    attributes = node.attributes
    kernel = static_shape(weight)[2:]
    rank = len(kernel)
    if rank not in _CONV:
        raise Refusal(f"a convolution over {rank} dimensions is not supported")
    strides = attributes.get("strides", (1,) * rank)
    dilations = attributes.get("dilations", (1,) * rank)
    padding = explicit_padding(
        attributes.get("auto_pad", "NOTSET"),
        attributes.get("pads", (0,) * 2 * rank),
        static_shape(data)[2:],
        kernel,
        strides,
        dilations,
    )
    if len(attributes.get("kernel_shape", kernel)) != rank:
        raise Refusal("attribute kernel_shape does not fit the weight")
    return _CONV[rank](
        data,
        weight,
        strides=list(strides),
        padding=list(padding),
        dilation=list(dilations),
        groups=attributes.get("group", 1),
        out_dtype=out_dtype,
    )


def convert_conv_transpose(node: Node) -> relax.Expr:
    """Convert ConvTranspose: data [N, C, *space], weight [C, O/group, *kernel], bias [O].

    Pads cut off what the kernel spreads, (extent - 1) * stride + reach along each axis; pads below
    zero and `output_padding` add zeros there, before the bias.
    """
    data, weight, bias = node.input(0), node.input(1), node.optional(2)
    rank = len(static_shape(weight)) - 2
    if rank not in _TRANSPOSED:
        raise Refusal(f"a transposed convolution over {rank} dimensions is not supported")
    operator, layout, kernel_layout = _TRANSPOSED[rank]
    attributes = node.attributes
    strides = attributes.get("strides", (1,) * rank)
    dilations = attributes.get("dilations", (1,) * rank)
    before, after = _transposed_padding(node, strides, dilations)
    extra = [max(0, -pad) for pad in after]
    # What TVM's operator adds itself.
    inside = [e if e < s else 0 for e, s in zip(extra, strides, strict=True)]
    result = operator(
        data,
        weight,
        strides=list(strides),
        padding=[max(0, pad) for pad in (*before, *after)],
        output_padding=inside,
        dilation=list(dilations),
        groups=attributes.get("group", 1),
        data_layout=layout,
        kernel_layout=kernel_layout,
    )
    front = [0, 0, *(max(0, -pad) for pad in before)]
    behind = [0, 0, *(e - i for e, i in zip(extra, inside, strict=True))]
    if any(front) or any(behind):
        result = pad_constant(node, node.emit(result), front, behind)
    if bias is None:
        return result
    return relax.op.add(node.emit(result), channel_constant(node, bias, rank))


def _transposed_padding(
    node: Node, strides: Sequence[int], dilations: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return what is cut off before and behind each axis, less `output_padding`; below zero: added.

    `output_shape` and SAME ask for a size. What is then to be cut off in all is split between both
    sides; an odd one goes behind for SAME_UPPER and before otherwise, as ONNX Runtime has it, too.
    """
    attributes = node.attributes
    extents, kernel = static_shape(node.input(0))[2:], static_shape(node.input(1))[2:]
    rank = len(kernel)
    extra = attributes.get("output_padding", (0,) * rank)
    auto_pad, wanted = attributes.get("auto_pad", "NOTSET"), attributes.get("output_shape")
    if wanted is None and auto_pad.startswith("SAME"):
        wanted = [extent * stride for extent, stride in zip(extents, strides, strict=True)]
    if not wanted:
        pads = attributes.get("pads", (0,) * 2 * rank) if auto_pad == "NOTSET" else (0,) * 2 * rank
        behind = [pad - more for pad, more in zip(pads[rank:], extra, strict=True)]
        return list(pads[:rank]), behind
    before, after = [], []
    for axis, size in enumerate(list(wanted)[-rank:]):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        spread = (extents[axis] - 1) * strides[axis] + reach
        total = spread + extra[axis] - size
        half = total // 2
        first = half if auto_pad == "SAME_UPPER" else total - half
        before.append(first)
        after.append(total - first - extra[axis])
    return before, after


def explicit_padding(
    auto_pad: str,
    pads: Sequence[int],
    extents: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[int, ...]:
    """Return padding before each dimension, then after each, for any `auto_pad`.

    SAME gives ceil(extent / stride) outputs: what is missing is split between both sides, and
    an odd one goes after (UPPER) or before (LOWER).

    >>> explicit_padding("SAME_UPPER", (), (5,), (3,), (2,), (1,))
    (1, 1)
    >>> explicit_padding("SAME_LOWER", (), (4,), (3,), (2,), (1,))
    (1, 0)
    """
    if auto_pad == "NOTSET":
        return tuple(pads)
    if auto_pad == "VALID":
        return (0,) * 2 * len(kernel)
    before, after = [], []
    for extent, size, stride, dilation in zip(extents, kernel, strides, dilations, strict=True):
        reach = (size - 1) * dilation + 1
        total = max(0, (-(-extent // stride) - 1) * stride + reach - extent)
        small, large = total // 2, total - total // 2
        before.append(large if auto_pad == "SAME_LOWER" else small)
        after.append(small if auto_pad == "SAME_LOWER" else large)
    return (*before, *after)


def channel_constant(node: Node, values: relax.Expr, rank: int) -> relax.Expr:
    """Return per-channel values [C] in a shape that broadcasts over [N, C, *space]."""
    array = constant_value(values)
    if array is None:
        (channels,) = static_shape(values)
        return node.emit(relax.op.reshape(values, (1, channels, *(1,) * rank)))
    return relax.const(np.ascontiguousarray(array).reshape(1, -1, *(1,) * rank), str(array.dtype))
