"""Add and multiply quantized values without floats: a residual addition, a gate for each channel.

In 16 bits, with f binary digits after the point and z the zero points:

    v = sum of ((x - z) * 2**7 * multiplier + 2**14) >> 15
    result = saturate8((v + (z << f) + 2**(f - 1)) >> f)

A multiplier is a constant, or a value of each channel less its zero point, scaled and rounded.
Every step is exact, or float32 arithmetic of one order: all targets give the same quantized values.
Before v is rounded it is less than 2**-f of a step for each operand away from what real numbers
give.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.emit.emitter import Emitter, wide
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.requantize import (
    bounded,
)
from edgec.compiler.kernels.template import undecided
from edgec.compiler.kernels.vectors import (
    add_saturating,
    broadcast,
    constant,
    shuffle,
    vector_dtype,
)
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.targets.target import Target

# Bytes of one task, where planes do not matter.
TASK_BYTES = 4096
# Vectors in a turn of the loop.
_TOGETHER = 4
LEAST_FRACTION = 3
_MOST_FRACTION = 7
_TOP = 2**15 - 1


@dataclass(frozen=True)
class IntegerElementwiseWorkload:
    """This workload adds blocked quantized images, or multiplies one with a gate.

    Attributes:
        planes: images times blocks of channels.
        inner: quantized values of a plane.
        operands: the operands that are summed.
        gated: whether the only one is multiplied with a value of each channel of each image.
        dtype: the dtype of all quantized values.
        fraction: f.
        below: whether the smallest quantized value is that of the type.
        above: whether the largest is.
    """

    planes: int
    inner: int
    operands: int
    gated: bool
    dtype: str
    fraction: int
    below: bool = True
    above: bool = True

    @property
    def macs(self) -> int:
        """Return products."""
        return self.planes * self.inner * self.operands


def accumulator_fraction(factors: Sequence[float]) -> int | None:
    """Return the largest f that multipliers allow, None if it is less than `LEAST_FRACTION`.

    Args:
        factors: largest magnitude of each, steps of the result for a step of the operand.
    """
    largest = max(factors) * 2**8
    fraction = min(_MOST_FRACTION, math.floor(math.log2(_TOP / largest))) if largest else 7
    return fraction if fraction >= LEAST_FRACTION else None


def multiplier(factor: float, fraction: int) -> int:
    """Return the multiplier of an operand, see the module."""
    return round(factor * 2 ** (8 + fraction))


def numbers_of(
    zero_points: Sequence[int],
    multipliers: Sequence[int],
    fraction: int,
    result: int,
    ends: tuple[int, int],
) -> NDArray[np.int16]:
    """Return the operand that holds for all quantized values.

    Args:
        zero_points: the zero points of the operands.
        multipliers: the multipliers of the operands; 0 for a gated one.
        fraction: f.
        result: zero point of the result.
        ends: smallest and largest quantized value of the result.
    """
    shifted = [zero << 7 for zero in zero_points]
    return np.array([result << fraction, *ends, *shifted, *multipliers], np.int16)


def emit_integer_elementwise(
    workload: IntegerElementwiseWorkload, target: Target, name: str
) -> Kernel:
    """Write the kernel.

    Its buffers are the operands, the numbers, for a gated one the gates' quantized values [planes *
    c] and their factor and zero point, float32 [2], and the output.
    """
    w, c, e = workload, target.float_lanes, Emitter(target)
    size, width = w.planes * w.inner, DOT_WIDTH * c
    data = [e.buffer(f"data{number}", size, w.dtype) for number in range(w.operands)]
    numbers = e.buffer("numbers", 3 + 2 * w.operands, "int16")
    gates = e.buffer("gates", w.planes * c, w.dtype) if w.gated else None
    factor = e.buffer("factor", 2, "float32") if w.gated else None
    output = e.buffer("output", size, w.dtype)
    span = w.inner if w.gated else max(width, TASK_BYTES // width * width)

    order = [4 * part + 2 * half + i for half in range(2) for part in range(c // 4) for i in (0, 1)]

    def every(number: Any) -> Any:
        return e.let("number", broadcast(number, 2 * c))

    with e.tasks() as task:
        zero, low, high = (e.load(numbers, place) for place in range(3))
        zero = every(e.isa.rounding_offset(zero, w.fraction, w.dtype))
        zeros = [every(e.load(numbers, 3 + place)) for place in range(w.operands)]
        if w.gated:
            floats = tirx.Cast(vector_dtype("float32", c), e.load(gates, task * c, c))
            shift, scale = (broadcast(e.load(factor, place), c) for place in (1, 0))
            whole = e.isa.round_to_int32((floats - shift) * scale)
            gate = e.let("gate", tirx.Cast(vector_dtype("int16", c), whole))
            multipliers = [e.let("gates", shuffle([gate] * 2, [*range(c)] * 2))]
        else:
            first = 3 + w.operands
            multipliers = [every(e.load(numbers, first + place)) for place in range(w.operands)]

        def quantized(at: Any) -> Any:
            loaded = [e.let("codes", e.load(buffer, at, width)) for buffer in data]
            halves = []
            for half in range(2):
                total: Any = None
                for value, zero_point, by in zip(loaded, zeros, multipliers, strict=True):
                    part = shuffle([value], range(half * 2 * c, (half + 1) * 2 * c))
                    wide = tirx.shift_left(
                        tirx.Cast(vector_dtype("int16", 2 * c), part), constant(7, "int16", 2 * c)
                    )
                    less = wide - zero_point
                    if total is None:
                        total = e.isa.multiply_high_rounded(less, by)
                    else:
                        total = e.isa.add_product(total, less, by)
                halves.append(add_saturating(total, zero))
            found = e.isa.narrow_rounded(halves, w.fraction, w.dtype, order)
            return bounded(found, None if w.below else low, None if w.above else high)

        start = e.let("start", task * span)
        past = e.let("past", tirx.min(start + span, tirx.IntImm("int32", size)))
        together = _TOGETHER * width
        turns: Any = span // together
        vectors: Any = math.ceil((span - turns * together) / width)
        if size % span:
            turns = e.let("turns", tirx.floordiv(past - start, together))
            vectors = tirx.floordiv(past - start - turns * together + (width - 1), width)
        with e.loop("vectors", turns, wide=True) as turn:
            for number in range(_TOGETHER):
                at = wide(start) + turn * together + number * width
                e.store(output, at, quantized(at))
        rest = e.let("rest", start + turns * together)
        with e.loop("vector", vectors) as vector:
            at = rest + vector * width
            # The last one overlaps the one before it.
            at = at if span % width == 0 == size % width else tirx.min(at, past - width)
            at = e.let("at", at)
            e.store(output, at, quantized(at))
    return Kernel(e.function(name), w.planes if w.gated else math.ceil(size / span))


TEMPLATE = undecided(IntegerElementwiseWorkload, emit_integer_elementwise)
