"""Provide the template of convolutions of quantized values: direct or by Winograd's algorithm."""

import math
from typing import Any

from numpy.typing import NDArray

from edgec.compiler.kernels.conv.decision import ConvDecision
from edgec.compiler.kernels.conv.integer import (
    IntegerConvWorkload,
    default_integer_decision,
    emit_integer_conv,
    estimate_integer_cycles,
    integer_space,
    integer_weight_size,
    pack_integer_weight,
)
from edgec.compiler.kernels.conv.integer_winograd import (
    emit_integer_winograd,
    pack_integer_winograd,
    packed_winograd_size,
)
from edgec.compiler.kernels.conv.integer_winograd_decision import (
    data_ends,
    estimate_integer_winograd_cycles,
    integer_winograd_space,
    is_exact,
)
from edgec.compiler.kernels.conv.winograd_decision import TILE_SIZES, WinogradDecision
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.template import INT32_BIAS, Template
from edgec.targets.target import Target

Decision = ConvDecision | WinogradDecision

# Where the models say that both take nearly as long, the direct sum is faster: 128 channels of
# 10 x 10 pixels take an eighth longer by Winograd's algorithm at an estimate of 0.96.
MARGIN = 0.9


def _space(workload: IntegerConvWorkload, target: Target) -> list[Decision]:
    return [*integer_space(workload, target), *integer_winograd_space(workload, target)]


def _estimate(workload: IntegerConvWorkload, decision: Decision, target: Target) -> float:
    if isinstance(decision, WinogradDecision):
        return estimate_integer_winograd_cycles(workload, decision, target)
    return estimate_integer_cycles(workload, decision, target)


def _default(
    workload: IntegerConvWorkload, target: Target, tile_sizes: tuple[int, ...] = TILE_SIZES
) -> Decision:
    """Return the best direct decision, or the best by Winograd's algorithm if it is far better."""
    direct = default_integer_decision(workload, target)
    others = [
        (estimate_integer_winograd_cycles(workload, decision, target), decision)
        for decision in integer_winograd_space(workload, target)
        if decision.out in tile_sizes
    ]
    cycles, winograd = min(others, key=lambda pair: pair[0], default=(math.inf, None))
    if winograd is None or cycles > MARGIN * estimate_integer_cycles(workload, direct, target):
        return direct
    return winograd


def _for_weights(
    workload: IntegerConvWorkload, decision: Decision, target: Target, weight: NDArray[Any]
) -> Decision:
    """Return the decision, or the best whose sums are exact with these weights."""
    if not isinstance(decision, WinogradDecision):
        return decision
    ends = data_ends(workload.wide, target, weight)
    exact = tuple(out for out in TILE_SIZES if is_exact(weight, out, ends))
    return decision if decision.out in exact else _default(workload, target, exact)


def _emit(workload: IntegerConvWorkload, decision: Decision, target: Target, name: str) -> Kernel:
    if isinstance(decision, WinogradDecision):
        return emit_integer_winograd(workload, decision, target, name)
    return emit_integer_conv(workload, decision, target, name)


def _weight_size(workload: IntegerConvWorkload, decision: Decision, target: Target) -> int:
    if isinstance(decision, WinogradDecision):
        return packed_winograd_size(workload.conv, decision, target.float_lanes)
    return integer_weight_size(workload, decision, target)


def _pack(
    workload: IntegerConvWorkload,
    decision: Decision,
    target: Target,
    position: int,
    array: NDArray[Any],
) -> NDArray[Any]:
    if position != 1:
        return array
    if isinstance(decision, WinogradDecision):
        ends = data_ends(workload.wide, target, array)
        return pack_integer_winograd(workload.conv, decision, array, target.float_lanes, ends)
    return pack_integer_weight(workload, decision, target, array)


TEMPLATE = Template(
    IntegerConvWorkload,
    Decision,
    _space,
    _default,
    _emit,
    _pack,
    _estimate,
    _weight_size,
    epilogue="conv",
    accumulator="int32",
    bias=INT32_BIAS,
    fixed_point=True,
    why_dense="there are no sparse kernels for integers",
    for_weights=_for_weights,
)
