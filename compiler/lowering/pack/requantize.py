"""Decide which kernels compute quantized values, and their constant operands.

Arithmetic, no packing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.ir.relax_helpers import constant, dtype_of, op_name, scalar_of, value_of
from edgec.compiler.kernels.elementwise import ElementwiseWorkload
from edgec.compiler.kernels.emit.epilogue import QUANTIZED_DTYPES, EpilogueStep
from edgec.compiler.kernels.emit.fixed_point import (
    logistic_requantization,
    requantization,
    swished_requantization,
)
from edgec.compiler.kernels.emit.requantize import Requantization
from edgec.compiler.kernels.integer_elementwise import (
    IntegerElementwiseWorkload,
    accumulator_fraction,
    multiplier,
    numbers_of,
)
from edgec.compiler.kernels.template import from_text
from edgec.compiler.lowering.pack.epilogue import OpenKernel
from edgec.compiler.lowering.pack.values import QParams, QuantizedConstant
from edgec.compiler.numerics.pair_sums import DOT_WIDTH

# Epilogues of int32 accumulators to which a bias in units of the products can be added.
_SCALED_ACCUMULATORS = (
    (EpilogueStep("multiply", "channel"),),
    (EpilogueStep("add", "channel"), EpilogueStep("multiply", "channel")),
)


def quantizer(qparams: QParams, bounds: tuple[float, float] | None) -> NDArray[np.float32]:
    """Return the operand of a step that quantizes floats.

    Args:
        qparams: the qparams of the result.
        bounds: the bounds of a clip of the floats, done on the quantized values.
    """
    limits = np.iinfo(qparams.dtype)
    inverse = np.float32(1) / qparams.scale
    ends = np.array([limits.min, limits.max], np.float32) - qparams.zero_point
    if bounds is not None:
        # Rounding keeps order: to clip before or after the product is the same.
        ends = np.clip(np.array(bounds, np.float32) * inverse, *ends)
    return np.array([inverse, qparams.zero_point, *ends], np.float32)


def function_of_quantized(
    workload: ElementwiseWorkload, scale: NDArray[Any] | None
) -> tuple[QParams, tuple[EpilogueStep, ...]] | None:
    """Return parameters of a quantized value, and the steps that a chain applies to it.

    Args:
        workload: the chain.
        scale: its first operand, if that is constant.

    Returns:
        None if the chain is no function of one quantized value.
    """
    begin, *steps = workload.steps
    if (
        begin != EpilogueStep("multiply", "number")
        or scale is None
        or any(s.operand for s in steps)
    ):
        return None
    if workload.data not in QUANTIZED_DTYPES:
        return None
    return QParams.of(workload.data, scale.reshape(()), workload.zero_point), tuple(steps)


def with_bias(kernel: OpenKernel, size: int, bias: QuantizedConstant) -> list[Any] | None:
    """Return arguments of a kernel that adds a bias to its accumulators; None if it cannot.

    Args:
        kernel: without the bias.
        size: output channels.
        bias: in units of the products.
    """
    arguments, operand = kernel.arguments, kernel.template.bias
    scale = value_of(arguments[-1])
    if operand is None or scale is None or kernel.steps not in _SCALED_ACCUMULATORS:
        return None
    if bias.scales.size != size or not np.array_equal(bias.scales, scale[:size]):
        return None
    added = np.zeros(scale.size, np.int64)
    added[:size] = bias.values.reshape(-1)
    weight, known = value_of(arguments[1]), value_of(arguments[2])
    assert weight is not None
    assert known is not None
    channels = np.moveaxis(weight, kernel.template.output_channels, 0).reshape(size, -1)
    reach = 256 * np.abs(channels.astype(np.int64)).sum(axis=1).max()
    total = (known.astype(np.int64).reshape(-1, added.size) + added).reshape(-1)
    if np.abs(total).max() + reach >= operand.limit:
        return None
    return [*arguments[:2], constant(total.astype(operand.dtype)), *arguments[3:]]


# What can come between accumulators times their scale and the result, and what plans it.
GATES: dict[tuple[EpilogueStep, ...], Any] = {
    (): None,
    (EpilogueStep("hard_swish"),): swished_requantization,
    (EpilogueStep("silu"),): logistic_requantization,
}


def requantized(
    kernel: OpenKernel,
    qparams: QParams,
    numbers: NDArray[np.float32],
    ends: tuple[bool, bool],
    decided: Requantization | None = None,
) -> tuple[EpilogueStep, list[Any], Requantization] | None:
    """Return the step that requantizes a kernel's accumulators, and the kernel's arguments.

    Args:
        kernel: with floats after the accumulators.
        qparams: the qparams of the result.
        numbers: as `quantizer` gives them.
        ends: whether the smallest and the largest value are those of the type.
        decided: how, where that is known already; None: as is best.

    Returns:
        Beside these, how it is done. None if more comes before than a scale and a gate, or numbers
        do not fit.
    """
    scaled = EpilogueStep("multiply", "channel")
    gate, factor, added = _without_affine(kernel.steps[1:])
    if not kernel.template.fixed_point or factor <= 0:
        return None
    if kernel.steps[:1] != (scaled,) or gate not in GATES:
        return None
    gated = GATES[gate]
    arguments = kernel.arguments
    weight, bias, scales = (value_of(arguments[place]) for place in (1, 2, -1))
    limits = np.iinfo(dtype_of(arguments[0]))
    if weight is None or bias is None or scales is None or (scales < 0).any():
        return None
    flat = weight.reshape(len(weight), -1).astype(np.int64)
    above, below = np.maximum(flat, 0).sum(axis=1), np.minimum(flat, 0).sum(axis=1)
    known = bias.reshape(-1)[: len(flat)].astype(np.int64)
    most = above * int(limits.max) + below * int(limits.min) + known
    least = above * int(limits.min) + below * int(limits.max) + known
    reach = np.zeros(scales.size)
    reach[: len(flat)] = np.maximum(np.abs(most), np.abs(least))
    low, high = (int(np.rint(end)) + qparams.zero_point for end in numbers[2:])
    # What is added to a multiple of the result's scale moves its zero point, by parts of a step.
    zero = qparams.zero_point + added / float(qparams.scale)
    scale = float(qparams.scale) / factor
    if decided is not None:
        found: Requantization | None = decided.of_channels(0, scales.size, scales.size)
    elif gated is None:
        span = math.ceil(max(high - zero, zero - low)) + 1
        found = requantization(scales.astype(np.float64) / scale, reach, span)
    else:
        found = gated(scales, reach, scale, high - zero)
    if found is None or not found.holds(zero):
        return None
    rounded = constant((bias + found.halves).astype(bias.dtype))
    operand = constant(found.operand(zero, low, high))
    step = found.step(qparams.dtype, *ends, zero)
    return step, [*arguments[:2], rounded, *arguments[3:-1], operand], found


def _without_affine(
    steps: tuple[EpilogueStep, ...],
) -> tuple[tuple[EpilogueStep, ...], float, float]:
    """Return steps without the numbers at their end, and what these multiply by and add."""
    kept = list(steps)
    numbers = []
    while kept and kept[-1].op in ("multiply_number", "add_number"):
        numbers.append(kept.pop())
    factor, added = 1.0, 0.0
    for step in reversed(numbers):
        (number,) = step.parameters
        if step.op == "add_number":
            added += number
        else:
            factor, added = factor * number, added * number
    return tuple(kept), factor, added


@dataclass(frozen=True)
class Combination:
    """A combination is a kernel that computes on quantized values, element by element.

    Attributes:
        workload: the workload of the template.
        operands: all of its arguments.
    """

    workload: IntegerElementwiseWorkload
    operands: list[Any]


def combined(
    workload: ElementwiseWorkload,
    arguments: Sequence[Any],
    gate: Any,
    qparams: QParams,
    numbers: NDArray[np.float32],
    ends: tuple[bool, bool],
) -> Combination | None:
    """Return the kernel of a sum of quantized values, or of these times a gate.

    None if it is neither, or 16 bits are too few.

    Args:
        workload: the workload of the chain on floats.
        arguments: the arguments of its kernel.
        gate: the kernel that dequantizes the gate, None if there is none.
        qparams: the qparams of the result.
        numbers: as `quantizer` gives them.
        ends: whether the smallest and the largest value are those of the type.
    """
    if len(workload.steps) != 2 or workload.steps[0] != EpilogueStep("multiply", "number"):
        return None
    scale = scalar_of(arguments[1])
    whole = workload.inner % workload.lanes == 0 and workload.lanes > 1
    if scale is None or workload.data != qparams.dtype or not whole:
        return None
    if workload.inner < DOT_WIDTH * workload.lanes:
        return None
    factors, zeros = [float(scale) / float(qparams.scale)], [workload.zero_point]
    inputs, step = [arguments[0]], workload.steps[1]
    gated, before = step == EpilogueStep("multiply", "image_channel"), None
    limits = np.iinfo(qparams.dtype)
    if step == EpilogueStep("add", qparams.dtype):
        other = value_of(arguments[3])
        if other is None:
            return None
        factors.append(float(other[0]) / float(qparams.scale))
        zeros.append(int(other[1]))
        inputs.append(arguments[2])
        fraction = accumulator_fraction(factors)
    elif gated and gate is not None:
        before = _qparams_before(gate, qparams.dtype)
        if before is None:
            return None
        factors[0] *= float(before.scale)
        largest = max(limits.max - before.zero_point, before.zero_point - limits.min)
        fraction = accumulator_fraction([factors[0] * int(largest)])
    else:
        return None
    if fraction is None:
        return None
    more = []
    if before is not None:
        by = np.array([factors[0] * 2 ** (8 + fraction), before.zero_point], np.float32)
        more = [gate.args[0], constant(by)]
    multipliers = [0 if gated else multiplier(factor, fraction) for factor in factors]
    low, high = (int(np.rint(end)) + qparams.zero_point for end in numbers[2:])
    words = numbers_of(zeros, multipliers, fraction, qparams.zero_point, (low, high))
    result = IntegerElementwiseWorkload(
        workload.outer * workload.channels,
        workload.inner,
        len(inputs),
        gated,
        qparams.dtype,
        fraction,
        *ends,
    )
    return Combination(result, [*inputs, constant(words), *more])


def _qparams_before(call: Any, dtype: str) -> QParams | None:
    """Return the parameters of what a kernel dequantizes, if it does nothing else."""
    if op_name(call) != "edgec.elementwise":
        return None
    workload = from_text(ElementwiseWorkload, str(call.attrs["workload"]))
    scale = scalar_of(call.args[1]) if len(call.args) > 1 else None
    if (
        workload.steps != (EpilogueStep("multiply", "number"),)
        or workload.data != dtype
        or scale is None
    ):
        return None
    return QParams.of(dtype, scale, workload.zero_point)
