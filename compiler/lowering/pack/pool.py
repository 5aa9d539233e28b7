"""Provide pooling, over windows and over whole images, and the extremes of a tensor."""

import math
from dataclasses import replace

import numpy as np
from tvm import relax

from edgec.compiler.ir.blocked_layout import image
from edgec.compiler.ir.relax_helpers import constant, op_name, shape_of
from edgec.compiler.kernels.emit.epilogue import EpilogueStep
from edgec.compiler.kernels.layout import GlobalPoolWorkload
from edgec.compiler.kernels.pool import Mode, PoolWorkload
from edgec.compiler.kernels.reduce_minmax import ReduceMinMaxWorkload, shares_of
from edgec.compiler.kernels.volume_pool import LONGEST_ROW, VolumePoolWorkload
from edgec.compiler.kernels.volume_pool import Mode as VolumeMode
from edgec.compiler.lowering.pack.context import Context
from edgec.compiler.lowering.pack.epilogue import apply
from edgec.compiler.lowering.pack.values import PackedValue, leading, pair
from edgec.compiler.numerics.support import Declined


def match_pool(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose a kernel for the largest or mean value of windows."""
    data, shape = context.value(call.args[0]), shape_of(call)
    if shape is None or str(call.attrs.layout) not in ("NCHW", "NCW"):
        return Declined(f"no kernel pools images in layout {call.attrs.layout}")
    n, channels, h, w = image(data.shape)
    _, _, out_h, out_w = image(shape)
    kernel, stride = pair(call.attrs.pool_size), pair(call.attrs.strides)
    dilation, padding = pair(call.attrs.dilation), leading(call.attrs.padding)
    mode: Mode = "max"
    if "avg" in op_name(call):
        mode = "average_padded" if call.attrs.count_include_pad else "average"
        reach_h = (out_h - 1) * stride[0] + (kernel[0] - 1) * dilation[0] - padding[0]
        reach_w = (out_w - 1) * stride[1] + (kernel[1] - 1) * dilation[1] - padding[1]
        before = [int(p) for p in call.attrs.padding]
        after = before[len(before) // 2 :]
        below, right = (after[0], after[1]) if len(after) == 2 else (0, after[0])
        beyond = reach_h >= h + below or reach_w >= w + right
        if mode == "average_padded" and beyond:
            # Ceil mode lets it.
            return Declined("a window reaches past the padding: it divides by less")
    workload = PoolWorkload(
        mode,
        n,
        channels,
        h,
        w,
        out_h,
        out_w,
        kernel,
        stride,
        padding,
        dilation,
    )
    source, qparams = context.blocked(data).expression, data.qparams
    if qparams is None:
        return context.emit_blocked("edgec.pool", [source], workload, shape)
    workload = replace(workload, data=qparams.dtype, zero_point=qparams.zero_point)
    if mode == "max":
        return context.emit_blocked("edgec.pool", [source], workload, shape, qparams)
    workload = replace(workload, epilogue=(EpilogueStep("multiply", "number"),))
    scale = constant(np.array([qparams.scale], np.float32))
    return context.emit_blocked("edgec.pool", [source, scale], workload, shape)


def match_volume_pool(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose the kernel for the largest or mean value of windows of volumes."""
    data, shape, attrs = context.float_value(call.args[0]), shape_of(call), call.attrs
    if shape is None or str(attrs.layout) != "NCDHW" or data.shape[4] > LONGEST_ROW:
        return Declined(f"no kernel pools such volumes in layout {attrs.layout}")
    kernel, stride, dilation, padding = (
        tuple(int(number) for number in numbers)
        for numbers in (attrs.pool_size, attrs.strides, attrs.dilation, attrs.padding)
    )
    mode: VolumeMode = "max"
    if "avg" in op_name(call):
        mode = "average_padded" if attrs.count_include_pad else "average"
        if set(dilation) != {1}:
            return Declined("no kernel takes the mean of dilated windows")
        ends = [
            (count - 1) * step + taps - before > extent + after
            for count, step, taps, before, extent, after in zip(
                shape[2:], stride, kernel, padding[:3], data.shape[2:], padding[3:], strict=True
            )
        ]
        if mode == "average_padded" and any(ends):
            return Declined("a window reaches past the padding: it divides by less")
    workload = VolumePoolWorkload(
        mode,
        math.prod(data.shape[:2]),
        data.shape[2:],  # type: ignore[arg-type]
        shape[2:],  # type: ignore[arg-type]
        kernel,  # type: ignore[arg-type]
        stride,  # type: ignore[arg-type]
        padding[:3],  # type: ignore[arg-type]
        dilation,  # type: ignore[arg-type]
    )
    source = context.plain(data).expression
    variable = context.emit("edgec.volume_pool", [source], workload, shape)
    return PackedValue(variable, shape, False, 1)


def match_global_pool(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose a kernel for the sum, mean or largest value of each channel."""
    data, shape = context.value(call.args[0]), shape_of(call)
    if shape is None or call.attrs.axis is None or len(data.shape) not in (3, 4):
        return Declined("it does not reduce an image to its channels")
    rank = len(data.shape)
    axes = sorted(int(axis) % rank for axis in call.attrs.axis)
    if axes != list(range(2, rank)) or not call.attrs.keepdims:
        return Declined("it does not reduce an image to its channels")
    if not data.blocked:
        return Declined("blocking a plain tensor would cost more than the reduction")
    n, channels, h, w = image(data.shape)
    mode = op_name(call).removeprefix("relax.")
    workload = GlobalPoolWorkload(mode, n, channels, h * w)
    if data.qparams is None:
        return context.emit_blocked("edgec.global_pool", [data.expression], workload, shape)
    workload = replace(workload, data=data.qparams.dtype, zero_point=data.qparams.zero_point)
    pooled = context.emit_blocked("edgec.global_pool", [data.expression], workload, shape)
    scale = constant(np.array([data.qparams.scale], np.float32))
    return apply(context, pooled, EpilogueStep("multiply", "number"), [scale], shape)


def match_max(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose a kernel for the largest value of a tensor or of each channel."""
    found = match_min(context, call)
    return match_global_pool(context, call) if isinstance(found, Declined) else found


def match_min(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose a kernel for the smallest or largest of all values."""
    data = context.float_value(call.args[0])
    size = math.prod(data.shape)
    axes = call.attrs.axis
    every = axes is None or len(axes) == len(data.shape)
    if not every or shape_of(call) != () or size == 0:
        return Declined("it does not reduce a tensor to one value")
    # Channels that only fill a block are no values.
    whole = data.blocked and data.shape[1] % context.lanes == 0
    source = (data if whole else context.plain(data)).expression
    mode = op_name(call).removeprefix("relax.")
    while True:
        shares = shares_of(size, context.lanes)
        workload = ReduceMinMaxWorkload(mode, size, shares)  # type: ignore[arg-type]
        source = context.emit("edgec.extreme", [source], workload, (shares,) * (shares > 1))
        if shares == 1:
            return PackedValue(source, (), False, 1)
        size = shares
