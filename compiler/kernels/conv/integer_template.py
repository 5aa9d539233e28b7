"""Provide the template of convolutions of quantized values: direct or by Winograd's algorithm."""

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
from edgec.compiler.kernels.conv.integer_winograd import emit_integer_winograd
from edgec.compiler.kernels.conv.integer_winograd_decision import (
    IntegerWinogradDecision,
    estimate_integer_winograd_cycles,
    integer_winograd_space,
    pack_integer_winograd,
    parts_needed,
    winograd_weight_bytes,
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
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.isa import isa_of
from edgec.compiler.kernels.template import INT32_BIAS, Template
from edgec.targets.target import Target

Decision = ConvDecision | WordsDecision | IntegerWinogradDecision


def _by_int16(
    workload: IntegerConvWorkload, target: Target
) -> list[WordsDecision | IntegerWinogradDecision]:
    """Return decisions that multiply int16, where that is faster."""
    if not isa_of(target).multiplies_int16_faster:
        return []
    return [*words_space(workload, target), *integer_winograd_space(workload.conv, target)]


def _space(workload: IntegerConvWorkload, target: Target) -> list[Decision]:
    return [*integer_space(workload, target), *_by_int16(workload, target)]


def _default(workload: IntegerConvWorkload, target: Target) -> Decision:
    direct = default_integer_decision(workload, target)
    others = _by_int16(workload, target)
    return min([direct, *others], key=lambda decision: _estimate(workload, decision, target))


def _for_weights(
    workload: IntegerConvWorkload, decision: Decision, target: Target, weight: NDArray[Any]
) -> Decision:
    """Return the decision with the parts in which sums fit, or a direct one where none do."""
    if not isinstance(decision, IntegerWinogradDecision):
        return decision
    parts = parts_needed(weight, target.instruction_set.activation_dtype)
    if parts is None:
        return default_integer_decision(workload, target)
    return replace(decision, parts=parts)


def _emit(workload: IntegerConvWorkload, decision: Decision, target: Target, name: str) -> Kernel:
    if isinstance(decision, ConvDecision):
        return emit_integer_conv(workload, decision, target, name)
    if isinstance(decision, WordsDecision):
        return emit_words_conv(workload, decision, target, name)
    return emit_integer_winograd(
        workload.conv, workload.border, workload.has_rows, decision, target, name
    )


def _pack(
    workload: IntegerConvWorkload,
    decision: Decision,
    target: Target,
    position: int,
    array: NDArray[Any],
) -> NDArray[Any]:
    if position != 1:
        return array
    if isinstance(decision, ConvDecision):
        return pack_integer_weight(workload, decision, target, array)
    if isinstance(decision, WordsDecision):
        return pack_words(workload, decision, target, array)
    return pack_integer_winograd(workload.conv, decision, array, target.float_lanes)


def _estimate(workload: IntegerConvWorkload, decision: Decision, target: Target) -> float:
    if isinstance(decision, ConvDecision):
        return estimate_integer_cycles(workload, decision, target)
    if isinstance(decision, WordsDecision):
        return estimate_words_cycles(workload, decision, target)
    return estimate_integer_winograd_cycles(workload.conv, decision, target)


def _weight_size(workload: IntegerConvWorkload, decision: Decision, target: Target) -> int:
    if isinstance(decision, ConvDecision):
        return integer_weight_size(workload, decision, target)
    if isinstance(decision, WordsDecision):
        return words_size(workload, decision.words, target)
    return winograd_weight_bytes(workload.conv, decision.vectors, target.float_lanes) // 2


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
    for_weights=_for_weights,
    why_dense="there are no sparse kernels for integers",
)
