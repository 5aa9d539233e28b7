"""Provide the template of convolutions of quantized values: direct or by Winograd's algorithm."""

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
from edgec.compiler.kernels.isa import isa_of
from edgec.compiler.kernels.template import INT32_BIAS, Template
from edgec.targets.target import Target

Decision = ConvDecision | WinogradDecision

# What an estimate of Winograd's algorithm may be beside that of the direct sum, by instructions of
# `PairDot`: the one with vpdpbusd counts 0.6 of the cycles that a Zen 4 takes, the one with
# vpmaddubsw twice as many. Measured, 28 x 28 pixels of 128 channels take 0.62 and 0.46 of the time
# of the direct sum, 10 x 10 pixels of 64 and of 128 channels 1.14 and 1.12.
MARGIN = {1: 1.7, 2: 0.9}


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
    pair_dot = isa_of(target).pair_dot()
    if pair_dot is None or not others:
        return direct
    cycles, winograd = min(others, key=lambda pair: pair[0])
    most = MARGIN[pair_dot.instructions] * estimate_integer_cycles(workload, direct, target)
    return winograd if cycles < most else direct


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
