"""Provide the templates of convolutions on floats: direct or by Winograd, and transposed."""

import math
from typing import Any

from numpy.typing import NDArray

from edgec.compiler.kernels.conv.cost import default_decision, estimate_cycles
from edgec.compiler.kernels.conv.decision import ConvDecision, conv_space, flattened
from edgec.compiler.kernels.conv.direct import DirectConv
from edgec.compiler.kernels.conv.grouped import GroupedConv
from edgec.compiler.kernels.conv.transpose import (
    ConvTransposeWorkload,
    conv_transpose_space,
    conv_transpose_weight_size,
    default_conv_transpose_decision,
    emit_conv_transpose,
    estimate_conv_transpose_cycles,
    pack_transposed_weight,
)
from edgec.compiler.kernels.conv.weights import (
    block_size,
    pack_grouped_weight,
    pack_groups,
    pack_scales,
    pack_weight,
    packed_size,
)
from edgec.compiler.kernels.conv.winograd import emit_winograd
from edgec.compiler.kernels.conv.winograd_decision import (
    WinogradDecision,
    estimate_winograd_cycles,
)
from edgec.compiler.kernels.conv.winograd_weights import exact_enough, pack_winograd, winograd_size
from edgec.compiler.kernels.conv.workload import ConvBuffers, ConvWorkload
from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.template import Template
from edgec.targets.target import Target


def emit_conv(
    workload: ConvWorkload,
    decision: ConvDecision | WinogradDecision,
    target: Target,
    name: str,
) -> Kernel:
    """Write the kernel.

    Its buffers are data, packed weight, scales and groups if it has them, one for each binary
    step of the epilogue, and output. Channel operands are padded to whole
    blocks, element operands have the output's layout.
    """
    e = Emitter(target)
    if isinstance(decision, WinogradDecision):
        size = winograd_size(workload, decision, target.float_lanes)
        buffers = ConvBuffers.declare(e, workload, size, target.float_lanes)
        return emit_winograd(workload, decision, target, name, buffers, e)
    work = flattened(workload)
    size = packed_size(work, decision, target)
    width = decision.tile_o * target.float_lanes
    tiles = math.ceil(work.out_channels / width)
    rows = size // width // tiles
    scales = tiles * work.scale_groups * width
    buffers = ConvBuffers.declare(e, work, size, target.float_lanes, rows, scales)
    writer = DirectConv if work.groups == 1 else GroupedConv
    conv = writer(work, decision, target.float_lanes, e, buffers, 0)
    with e.tasks() as task:
        conv.body(task)
    return Kernel(e.function(name), conv.tasks)


def _pack(
    workload: ConvWorkload,
    decision: ConvDecision | WinogradDecision,
    target: Target,
    position: int,
    array: NDArray[Any],
) -> NDArray[Any]:
    c = target.float_lanes
    if isinstance(decision, WinogradDecision):
        return pack_winograd(workload, decision, array, c) if position == 1 else array
    if workload.scale_groups and position in (2, 3):
        scales = position == 2
        return pack_scales(decision, array, c) if scales else pack_groups(workload, array, c)
    if position != 1:
        return array
    work = flattened(workload)
    if work.groups > 1:
        return pack_grouped_weight(work, decision, array, c)
    return pack_weight(work, decision, array, c, block_size(work, c))


def _estimate(
    workload: ConvWorkload, decision: ConvDecision | WinogradDecision, target: Target
) -> float:
    if isinstance(decision, WinogradDecision):
        return estimate_winograd_cycles(workload, decision, target)
    return estimate_cycles(workload, decision, target)


def _weight_size(
    workload: ConvWorkload, decision: ConvDecision | WinogradDecision, target: Target
) -> int:
    if isinstance(decision, WinogradDecision):
        return winograd_size(workload, decision, target.float_lanes)
    return packed_size(flattened(workload), decision, target)


def _pack_transpose(
    workload: ConvTransposeWorkload,
    decision: ConvDecision,
    target: Target,
    position: int,
    array: NDArray[Any],
) -> NDArray[Any]:
    if position != 1:
        return array
    return pack_transposed_weight(workload, decision, array, target.float_lanes)


def decision_for_weights(
    workload: ConvWorkload,
    decision: ConvDecision | WinogradDecision,
    target: Target,
    weight: NDArray[Any],
) -> ConvDecision | WinogradDecision:
    """Return the decision, or one without F(4x4, 3x3) where that is not exact with these weights.

    F(2x2, 3x3) always is: it rounds less than the direct sum, as it adds fewer products.
    """
    if not isinstance(decision, WinogradDecision) or decision.out == 2:
        return decision
    if exact_enough(weight, decision.out):
        return decision
    return default_decision(workload, target, tile_sizes=(2,))


TEMPLATE = Template(
    ConvWorkload,
    ConvDecision | WinogradDecision,
    conv_space,
    default_decision,
    emit_conv,
    _pack,
    _estimate,
    _weight_size,
    epilogue="epilogue",
    sparse="edgec.sparse_conv",
    for_weights=decision_for_weights,
)

TRANSPOSE_TEMPLATE = Template(
    ConvTransposeWorkload,
    ConvDecision,
    conv_transpose_space,
    default_conv_transpose_decision,
    emit_conv_transpose,
    _pack_transpose,
    estimate_conv_transpose_cycles,
    conv_transpose_weight_size,
    epilogue="epilogue",
    output_channels=1,
    why_dense="there is no sparse kernel for transposed convolutions",
)
