"""Provide the template of convolutions of quantized values: direct or by Winograd's algorithm.

Of each there are two ways, by the products that the target has: groups of four int8 or words of
int16 for the direct sum, pairs or lanes of int16 for Winograd's algorithm.
"""

from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from edgec.compiler.kernels.conv.decision import ConvDecision
from edgec.compiler.kernels.conv.integer import (
    IntegerConvWorkload,
    default_integer_decision,
    estimate_integer_cycles,
    integer_space,
    integer_weight_size,
    pack_integer_weight,
)
from edgec.compiler.kernels.conv.integer_columns import (
    ColumnsDecision,
    columns_size,
    columns_space,
    emit_columns_conv,
    estimate_columns_cycles,
    pack_columns,
    with_units_again,
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
from edgec.compiler.kernels.conv.integer_words import (
    WordsDecision,
    emit_words_conv,
    estimate_words_cycles,
    pack_words,
    words_size,
    words_space,
)
from edgec.compiler.kernels.conv.integer_writer import emit_integer_conv
from edgec.compiler.kernels.conv.lane_winograd import emit_lane_winograd
from edgec.compiler.kernels.conv.lane_winograd_decision import (
    LaneWinogradDecision,
    estimate_lane_winograd_cycles,
    lane_winograd_bytes,
    lane_winograd_space,
    pack_lane_winograd,
    parts_needed,
)
from edgec.compiler.kernels.conv.winograd_decision import TILE_SIZES, WinogradDecision
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.isa import isa_of
from edgec.compiler.kernels.template import INT32_BIAS, Template
from edgec.targets.target import Target

Decision = ConvDecision | WordsDecision | ColumnsDecision | WinogradDecision | LaneWinogradDecision

# What an estimate of Winograd's algorithm may be beside that of the direct sum, by instructions of
# `PairDot`: on a Zen 4 a cycle of the former takes 2.0 and 0.56 cycles, one of the latter 1.63 and
# 0.63. With vpdpwssd, 13 x 13 pixels of 64 channels, estimated at 0.81, take 0.86 of the time of
# the direct sum, 55 x 55 of 16, estimated at 0.7, 0.99, and 7 x 7 of 512, at 1.07, 1.45.
MARGIN = {1: 0.86, 2: 1.1}


def _space(workload: IntegerConvWorkload, target: Target) -> list[Decision]:
    others = [*_by_words(workload, target), *integer_winograd_space(workload, target)]
    return [*integer_space(workload, target), *columns_space(workload, target), *others]


def _by_words(
    workload: IntegerConvWorkload, target: Target
) -> list[WordsDecision | LaneWinogradDecision]:
    """Return decisions that multiply int16 lane by lane, where that is faster."""
    if not isa_of(target).multiplies_int16_faster:
        return []
    return [*words_space(workload, target), *lane_winograd_space(workload.conv, target)]


def _estimate(workload: IntegerConvWorkload, decision: Decision, target: Target) -> float:
    if isinstance(decision, WinogradDecision):
        return estimate_integer_winograd_cycles(workload, decision, target)
    if isinstance(decision, LaneWinogradDecision):
        return estimate_lane_winograd_cycles(workload.conv, decision, target)
    if isinstance(decision, ColumnsDecision):
        return estimate_columns_cycles(workload, decision, target)
    if isinstance(decision, WordsDecision):
        return estimate_words_cycles(workload, decision, target)
    return estimate_integer_cycles(workload, decision, target)


def _default(
    workload: IntegerConvWorkload, target: Target, tile_sizes: tuple[int, ...] = TILE_SIZES
) -> Decision:
    """Return the best direct decision, or the best by Winograd's algorithm if it is far better."""
    direct: Decision = default_integer_decision(workload, target)
    ways = [direct, *columns_space(workload, target), *_by_words(workload, target)]
    direct = min(ways, key=lambda decision: _estimate(workload, decision, target))
    others = [
        (estimate_integer_winograd_cycles(workload, decision, target), decision)
        for decision in integer_winograd_space(workload, target)
        if decision.out in tile_sizes
    ]
    pair_dot = isa_of(target).pair_dot()
    if pair_dot is None or not others:
        return direct
    cycles, winograd = min(others, key=lambda pair: pair[0])
    most = MARGIN[pair_dot.instructions] * _estimate(workload, direct, target)
    return winograd if cycles < most else direct


def _for_weights(
    workload: IntegerConvWorkload, decision: Decision, target: Target, weight: NDArray[Any]
) -> Decision:
    """Return the decision, or the best whose sums are exact with these weights."""
    if isinstance(decision, LaneWinogradDecision):
        parts = parts_needed(weight, target.instruction_set.activation_dtype)
        if parts is None:
            return default_integer_decision(workload, target)
        return replace(decision, parts=parts)
    if isinstance(decision, ColumnsDecision):
        decision = with_units_again(decision, weight, target)
        if not decision.again:
            return decision
        others = [default_integer_decision(workload, target), *_by_words(workload, target)]
        return min([decision, *others], key=lambda way: _estimate(workload, way, target))
    if not isinstance(decision, WinogradDecision):
        return decision
    ends = data_ends(workload.wide, target, weight)
    exact = tuple(out for out in TILE_SIZES if is_exact(weight, out, ends))
    if decision.out in exact:
        return decision
    return _for_weights(workload, _default(workload, target, exact), target, weight)


def _emit(workload: IntegerConvWorkload, decision: Decision, target: Target, name: str) -> Kernel:
    if isinstance(decision, WinogradDecision):
        return emit_integer_winograd(workload, decision, target, name)
    if isinstance(decision, LaneWinogradDecision):
        conv, rows = workload.conv, workload.has_rows
        return emit_lane_winograd(conv, workload.border, rows, decision, target, name)
    if isinstance(decision, ColumnsDecision):
        return emit_columns_conv(workload, decision, target, name)
    if isinstance(decision, WordsDecision):
        return emit_words_conv(workload, decision, target, name)
    return emit_integer_conv(workload, decision, target, name)


def _weight_size(workload: IntegerConvWorkload, decision: Decision, target: Target) -> int:
    if isinstance(decision, WinogradDecision):
        return packed_winograd_size(workload.conv, decision, target.float_lanes)
    if isinstance(decision, LaneWinogradDecision):
        return lane_winograd_bytes(workload.conv, decision.vectors, target.float_lanes) // 2
    if isinstance(decision, ColumnsDecision):
        return columns_size(workload, decision, target)
    if isinstance(decision, WordsDecision):
        return words_size(workload, decision.words, target)
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
    if isinstance(decision, LaneWinogradDecision):
        return pack_lane_winograd(workload.conv, decision, array, target.float_lanes)
    if isinstance(decision, ColumnsDecision):
        return pack_columns(workload, decision, target, array)
    if isinstance(decision, WordsDecision):
        return pack_words(workload, decision, target, array)
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
