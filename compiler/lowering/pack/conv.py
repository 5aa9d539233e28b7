"""Provide convolutions, ordinary and transposed, on floats and on quantized values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from edgec.compiler.ir.blocked_layout import Shape, by_channel, image
from edgec.compiler.ir.relax_helpers import constant, shape_of, value_of
from edgec.compiler.kernels.conv.depthwise_writer import IntegerDepthwiseWorkload
from edgec.compiler.kernels.conv.integer import IntegerConvWorkload
from edgec.compiler.kernels.conv.integer_transpose import (
    IntegerConvTransposeWorkload,
    phase_windows,
)
from edgec.compiler.kernels.conv.transpose import ConvTransposeWorkload
from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.kernels.emit.epilogue import EpilogueStep
from edgec.compiler.kernels.isa import Dot
from edgec.compiler.kernels.pool import PoolWorkload
from edgec.compiler.kernels.template import EXACT_FLOAT
from edgec.compiler.lowering.pack.context import Context
from edgec.compiler.lowering.pack.values import PackedValue, QParams, leading, pair
from edgec.compiler.lowering.pack.weights import grouped_weight, half_weight, quantized_weight
from edgec.compiler.numerics.pair_sums import DOT_WIDTH, wrapped_sums
from edgec.compiler.numerics.support import Declined, Supported

# A network's input of so few channels is read as it is: blocking it would be mostly padding.
PLAIN_INPUT_CHANNELS = 4


@dataclass(frozen=True)
class Convolution:
    """A convolution describes an ordinary or transposed convolution.

    A signal is an image of one line.

    Attributes:
        weight: with both dimensions of the window.
        scales: the scales of its weights, one for each output channel, or [out_channels, groups]
            for each `group` of the weights of one; None: it has none.
        shape: the shape of the result, as the graph has it.
        extents: batch, channels, rows and columns of the input, then the output without batch.
        window: kernel, stride, and padding above and to the left.
        dilation: vertical and horizontal.
        groups: independent channel groups.
        format: in which the weight is stored, a key of `quantized_values.LOAD_DTYPES`.
        group: weights of one scale; 0: all of an output channel.
    """

    weight: NDArray[Any]
    scales: NDArray[np.float32] | None
    shape: Shape
    extents: tuple[int, int, int, int, int, int, int]
    window: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    groups: int
    format: str = "float32"
    group: int = 0

    @property
    def is_depthwise(self) -> bool:
        """Return whether each channel is a group of its own."""
        return self.groups == self.extents[1] == self.extents[4] and self.groups > 1


def match_conv(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose a kernel for a convolution."""
    data = context.value(call.args[0])
    found = _convolution(context, call, "OI", data)
    if isinstance(found, Declined):
        return found
    integers = _on_integers(context, data, found, integer_conv)
    if integers is not None:
        return integers
    data = context.as_floats(data)
    n, channels, h, w, _, out_h, out_w = found.extents
    if found.is_depthwise or (found.group and found.groups > 1):
        # They are few.
        found = _with_floats(found)
    if found.is_depthwise:
        pooled = PoolWorkload(
            "depthwise", n, channels, h, w, out_h, out_w, *found.window, found.dilation
        )
        arguments = [context.blocked(data).expression, constant(found.weight)]
        return context.emit_blocked("edgec.pool", arguments, pooled, found.shape)
    plain = not data.blocked and channels <= PLAIN_INPUT_CHANNELS and found.groups == 1
    workload = ConvWorkload(
        *found.extents,
        *found.window,
        found.dilation,
        found.groups,
        plain_input=plain,
        weight=found.format,
    )
    source = data if plain else context.blocked(data)
    arguments = [source.expression, constant(found.weight)]
    if found.group:
        assert found.scales is not None
        columns = np.arange(found.weight[:1].size).reshape(found.weight[:1].shape)
        workload = replace(workload, scale_groups=found.scales.shape[1])
        arguments += [
            constant(found.scales),
            constant((columns // found.group).astype(np.int32)),
        ]
    elif found.scales is not None:
        workload = replace(workload, epilogue=(EpilogueStep("multiply", "channel"),))
        arguments.append(constant(by_channel(found.scales, context.lanes)))
    return context.emit_blocked("edgec.conv", arguments, workload, found.shape)


def match_conv_transpose(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose a kernel for a transposed convolution."""
    data = context.value(call.args[0])
    found = _convolution(context, call, "IO", data)
    if isinstance(found, Declined):
        return found
    if found.groups != 1 or found.dilation != (1, 1):
        return Declined("transposed convolutions in groups or with dilation have no kernel")
    window, stride, _ = found.window
    if window[0] < stride[0] or window[1] < stride[1]:
        return Declined("some outputs are reached by no weight: the stride exceeds the kernel")
    integers = _on_integers(context, data, found, integer_conv_transpose)
    if integers is not None:
        return integers
    data, found = context.as_floats(data), _with_floats(found, axis=1)
    workload = ConvTransposeWorkload(*found.extents, *found.window)
    arguments = [context.blocked(data).expression, constant(found.weight)]
    return context.emit_blocked("edgec.conv_transpose", arguments, workload, found.shape)


def _on_integers(
    context: Context,
    data: PackedValue,
    found: Convolution,
    support: Callable[[Convolution, QParams, Dot, int], Supported | Declined],
) -> PackedValue | None:
    """Emit the kernel of integers of a quantized convolution; None if there is none."""
    if found.format != "int8" or found.group or context.dot is None:
        return None
    kernel: Supported | Declined = Declined("its input has no scale that is known when compiling")
    if data.qparams is not None:
        kernel = support(found, data.qparams, context.dot, context.lanes)
    if isinstance(kernel, Declined):
        context.decline(kernel)
        return None
    arguments = [context.blocked(data).expression, *map(constant, kernel.operands)]
    return context.emit_blocked(kernel.operator, arguments, kernel.workload, found.shape)


def _convolution(
    context: Context, call: relax.Call, channels: str, data: PackedValue
) -> Convolution | Declined:
    """Return a convolution of data by constant weights, [*channels, …]."""
    weight, shape = value_of(call.args[1]), shape_of(call)
    rounded = quantized_weight(context, call.args[1], channels.index("O"))
    kind = "float32"
    if rounded is not None:
        weight, kind = rounded.values, "int8"
    half, group = half_weight(context, call.args[1]), grouped_weight(context, call.args[1])
    if half is not None:
        weight, kind = half
    if group is not None:
        weight, kind = group[0], "int8"
    layouts = (str(call.attrs.data_layout), str(call.attrs.kernel_layout))
    known = layouts in (("NCHW", f"{channels}HW"), ("NCW", f"{channels}W"))
    if weight is None:
        return Declined("its weights are not constant, or in a format without a kernel")
    if shape is None or not known:
        return Declined(f"no kernel reads the layouts {layouts[0]} and {layouts[1]}")
    n, in_channels, h, w = image(data.shape)
    kernel = pair(weight.shape[2:])
    return Convolution(
        weight.reshape(*weight.shape[:2], *kernel),
        rounded.scales if rounded is not None else group[1] if group is not None else None,
        shape,
        (n, in_channels, h, w, *image(shape)[1:]),
        (kernel, pair(call.attrs.strides), leading(call.attrs.padding)),
        pair(call.attrs.dilation),
        int(call.attrs.groups),
        kind,
        group[2] if group is not None else 0,
    )


def _with_floats(found: Convolution, axis: int = 0) -> Convolution:
    """Return it with floats in place of packed weights, whose output channels are `axis`."""
    weight = found.weight
    if found.format in ("float16", "bfloat16"):
        weight = weight.view(np.dtype(found.format)).astype(np.float32)
    if found.scales is not None and found.group:
        each = np.repeat(found.scales, found.group, axis=1)[:, : found.weight[0].size]
        weight = (weight * each.reshape(weight.shape)).astype(np.float32)
    elif found.scales is not None:
        along = [-1 if i == axis else 1 for i in range(4)]
        weight = (weight * found.scales.reshape(along)).astype(np.float32)
    return replace(found, weight=weight, scales=None, format="float32", group=0)


def integer_conv(
    found: Convolution, qparams: QParams, dot: Dot, lanes: int
) -> Supported | Declined:
    """Return the kernel that convolves quantized values exactly.

    Args:
        found: the convolution, its weights int8.
        qparams: the qparams of the data.
        dot: how the target multiplies quantized values.
        lanes: float32 values in a vector.
    """
    assert found.scales is not None
    scale = by_channel((found.scales * qparams.scale).astype(np.float32), lanes)
    weight_sums = found.weight.astype(np.int64).sum(axis=(1, 2, 3))
    bias = by_channel(-qparams.zero_point * weight_sums, lanes)
    if found.is_depthwise:
        depthwise = _integer_depthwise(found, qparams, dot, bias, scale, lanes)
        if isinstance(depthwise, Supported):
            return depthwise
        return _depthwise_in_floats(found, qparams, bias, scale)
    if qparams.dtype != dot.data:
        return Declined(f"the target multiplies {dot.data}, not {qparams.dtype}")
    found = _whole_groups(found)
    epilogue = (EpilogueStep("multiply", "channel"),)
    conv = ConvWorkload(
        *found.extents, *found.window, found.dilation, found.groups, epilogue=epilogue
    )
    border = qparams.zero_point if _is_padded(conv) else 0
    fits, together = _fitting_groups(dot, [found.weight], qparams)
    workload = IntegerConvWorkload(conv, border, together, wide=not fits)
    operands = [found.weight, bias.astype(np.int32)]
    if workload.has_rows:
        operands.append(_row_sums(border, found.weight, lanes))
    return Supported("edgec.integer_conv", workload, (*operands, scale))


def _fitting_groups(
    dot: Dot, windows: Sequence[NDArray[Any]], qparams: QParams
) -> tuple[bool, int]:
    """Tell whether int16 holds all sums of products, and of how many groups of channels at once."""
    fits = [
        count
        for count in sorted(dot.sums, key=lambda count: dot.sums[count])
        if all(dot.cannot_saturate(window, 1, count, qparams.largest) for window in windows)
    ]
    # What is left over is multiplied one group at a time.
    return (True, fits[-1]) if 1 in fits else (not dot.sums, 1)


def _whole_groups(found: Convolution) -> Convolution:
    """Return the convolution with groups merged until each has a whole number of dot products.

    Weights between channels of different groups are 0.
    """
    outputs, inputs, *window = found.weight.shape
    together = next(
        count
        for count in range(1, found.groups + 1)
        if found.groups % count == 0 and (count * inputs % DOT_WIDTH == 0 or count == found.groups)
    )
    weight = np.zeros((outputs, together, inputs, *window), found.weight.dtype)
    place = np.arange(outputs) // (outputs // found.groups) % together
    weight[np.arange(outputs), place] = found.weight
    weight = weight.reshape(outputs, together * inputs, *window)
    return replace(found, weight=weight, groups=found.groups // together)


def integer_conv_transpose(
    found: Convolution, qparams: QParams, dot: Dot, lanes: int
) -> Supported | Declined:
    """Return the kernel that convolves quantized values, transposed, in one group, exactly.

    Args: see `integer_conv`.
    """
    assert found.scales is not None
    if qparams.dtype != dot.data:
        return Declined(f"the target multiplies {dot.data}, not {qparams.dtype}")
    if found.scales.size != found.weight.shape[1]:
        return Declined("its weights have no scale for each output channel")
    epilogue = (EpilogueStep("multiply", "channel"),)
    conv = ConvTransposeWorkload(*found.extents, *found.window, epilogue)
    padded = any(_is_padded(phase) for phase, _ in conv.phases())
    windows = phase_windows(conv, found.weight)
    fits, together = _fitting_groups(dot, windows, qparams)
    border = qparams.zero_point if padded else 0
    workload = IntegerConvTransposeWorkload(conv, border, together, wide=not fits)
    weight_sums = (window.astype(np.int64).sum(axis=(1, 2, 3)) for window in windows)
    biases = [by_channel(-qparams.zero_point * total, lanes) for total in weight_sums]
    operands = [found.weight, np.concatenate(biases).astype(np.int32)]
    if workload.has_rows:
        operands.append(np.concatenate([_row_sums(border, w, lanes) for w in windows]))
    scale = by_channel((found.scales * qparams.scale).astype(np.float32), lanes)
    return Supported("edgec.integer_conv_transpose", workload, (*operands, scale))


def _integer_depthwise(
    found: Convolution,
    qparams: QParams,
    dot: Dot,
    bias: NDArray[Any],
    scale: NDArray[Any],
    lanes: int,
) -> Supported | Declined:
    """Return the kernel of integers for a depthwise convolution."""
    weight = found.weight
    if qparams.dtype != dot.data:
        return Declined(f"the target multiplies {dot.data}, not {qparams.dtype}")
    if not dot.cannot_saturate(weight, 3, 1, qparams.largest):
        return Declined("int16 does not hold sums of two of its products")
    conv = ConvWorkload(
        *found.extents,
        *found.window,
        found.dilation,
        found.groups,
        epilogue=(EpilogueStep("multiply", "channel"),),
    )
    # Sums of more than two products are for pairs of neighbours.
    adds = bool(dot.sums) and not dot.in_halves
    fits = adds and dot.cannot_saturate(weight, 3, 2, qparams.largest)
    sums = wrapped_sums(weight) if adds else ()
    workload = IntegerDepthwiseWorkload(conv, qparams.zero_point, 2 if fits else 1, sums)
    if not workload.suits(lanes):
        return Declined("the integer kernel of depthwise convolutions has no such window")
    operands = [weight, bias.astype(np.int32)]
    if workload.has_rows:
        operands.append(_row_sums(qparams.zero_point, weight, lanes))
    return Supported("edgec.integer_depthwise", workload, (*operands, scale))


def _row_sums(border: int, weight: NDArray[Any], lanes: int) -> NDArray[np.int32]:
    """Return what a row of the window gives in padding, [kh, padded output channels]."""
    rows = border * weight.astype(np.int64).sum(axis=(1, 3)).T
    return np.pad(rows, ((0, 0), (0, -len(weight) % lanes))).astype(np.int32)


def _depthwise_in_floats(
    found: Convolution, qparams: QParams, bias: NDArray[Any], scale: NDArray[Any]
) -> Supported | Declined:
    """Return the kernel of whole numbers in float32 for a depthwise convolution."""
    weight_sums = np.abs(found.weight.astype(np.int64)).sum(axis=(1, 2, 3))
    # The sum of the products with the values, and that with the zero point.
    if 512 * weight_sums.max() >= EXACT_FLOAT:
        return Declined("float32 does not hold its sums exactly")
    workload = PoolWorkload(
        "depthwise",
        *found.extents[:4],
        *found.extents[5:],
        *found.window,
        found.dilation,
        (EpilogueStep("add", "channel"), EpilogueStep("multiply", "channel")),
        qparams.dtype,
        qparams.zero_point,
    )
    weight = found.weight.astype(np.float32)
    return Supported("edgec.pool", workload, (weight, bias.astype(np.float32), scale))


def _is_padded(conv: ConvWorkload) -> bool:
    """Tell whether some window reaches beyond the image."""
    for out, extent, taps, stride, before, dilation in zip(
        (conv.out_h, conv.out_w),
        (conv.in_h, conv.in_w),
        conv.kernel,
        conv.stride,
        conv.padding,
        conv.dilation,
        strict=True,
    ):
        if before > 0 or (out - 1) * stride + (taps - 1) * dilation - before >= extent:
            return True
    return False
