"""Requantize accumulators: write what follows products of quantized values.

An int32 accumulator is requantized by one product in float32; all that follows is in 16 bits:

    result = saturate8(saturate16(round(accumulator * scale / result scale)) + zero_point)

Where a hard swish comes between, there are no floats at all. The accumulator is shifted to int16
that fills its bits, by n that differs between channels, and multiplied with a number of each
channel. With f binary digits after the point, and x the result less its zero point:

    w = saturate16((accumulator + 2**(n - 1)) >> n)   or accumulator << -n; the half is in the bias
    v = (w * multiplier + 2**14) >> 15             q times the argument
    v = (v * (clip(v + 3 q, 0, 6 q) << k) + 2**14) >> 15         q is such that it is x * 2**f
    result = saturate8((v + (zero_point << f) + 2**(f - 1)) >> f)

Every step is exact or rounds as IEEE 754 says: all targets give the same quantized values. Before v
is rounded it is less than 2**(2 - f) of a step away from what real numbers give.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.emit.emitter import Emitter, Index
from edgec.compiler.kernels.emit.epilogue import FIXED_NUMBERS, SCALED_NUMBERS, EpilogueStep
from edgec.compiler.kernels.vectors import add_saturating, broadcast, shuffle

LEAST_FRACTION = 4
_MOST_FRACTION = 7
_MOST_LEFT = -8
_MOST_RAISED = 4
_TOP = 2**15 - 1


@dataclass(frozen=True)
class Requantization:
    """A requantization describes how accumulators pass a hard swish and become quantized.

    Attributes:
        fraction: f.
        multipliers: int16, of each channel.
        shifts: n of each channel, int16; below 0 to the left.
        three: 3 q.
        raised: k.
    """

    fraction: int
    multipliers: NDArray[np.int16]
    shifts: NDArray[np.int16]
    three: int
    raised: int

    def step(self, dtype: str, below: bool, above: bool) -> EpilogueStep:
        """Return the only step of an epilogue; see `operand`.

        Args:
            dtype: the dtype of the quantized values.
            below: whether the smallest quantized value is that of the type.
            above: whether the largest is.
        """
        left = self.shifts.min() < 0
        numbers = (self.fraction, self.raised, left, below, above)
        return EpilogueStep(f"requantize_{dtype}", "fixed", tuple(map(float, numbers)))

    def operand(self, zero_point: int, low: int, high: int) -> NDArray[np.int16]:
        """Return multipliers, shifts, then the numbers that hold for all channels.

        Args:
            zero_point: the zero point of the quantized values.
            low: smallest quantized value.
            high: largest quantized value.
        """
        numbers = (zero_point << self.fraction, low, high, self.three)
        assert len(numbers) == FIXED_NUMBERS
        return np.concatenate([self.multipliers, self.shifts, np.array(numbers, np.int16)])

    @property
    def halves(self) -> NDArray[np.int32]:
        """Return what accumulators begin with, so that the shift rounds."""
        return (1 << np.maximum(0, self.shifts).astype(np.int32)) >> 1


def requantization(
    scales: NDArray[Any], reach: NDArray[Any], scale: float, high: float
) -> Requantization | None:
    """Return the finest one; None if it is coarser than `LEAST_FRACTION`.

    Args:
        scales: the scales of the accumulators, by channel.
        reach: largest magnitude of the accumulators, by channel.
        scale: the scale of the quantized values.
        high: largest quantized value less the zero point.
    """
    scales = scales.astype(np.float64)
    # Accumulators beyond give 0 or the largest quantized value in any case.
    bound = max(3.0, high * scale) + scale
    used = np.minimum(reach, bound / np.maximum(scales, np.finfo(np.float32).tiny))
    shifts = np.maximum(_MOST_LEFT, np.ceil(np.log2(np.maximum(used, 1) / _TOP)))
    if reach.max() * 2.0 ** -min(0, shifts.min()) >= 2**31:
        return None
    for raised in range(_MOST_RAISED + 1):
        for fraction in range(_MOST_FRACTION, LEAST_FRACTION - 1, -1):
            unit = math.sqrt(2.0 ** (15 + fraction - raised) / (6 * scale))
            multipliers = np.rint(scales * unit * 2.0 ** (shifts + 15))
            if max(6.0 * 2**raised, bound) * unit <= _TOP and multipliers.max() <= _TOP:
                words = multipliers.astype(np.int16), shifts.astype(np.int16)
                return Requantization(fraction, *words, round(3 * unit), raised)
    return None


def scaled_step(dtype: str, below: bool, above: bool) -> EpilogueStep:
    """Return the only step of an epilogue without a hard swish.

    Args as of `Requantization.step`.
    """
    return EpilogueStep(f"requantize_{dtype}", "scaled", (float(below), float(above)))


def scaled_operand(
    scales: NDArray[Any], zero_point: int, low: int, high: int
) -> NDArray[np.float32]:
    """Return scales in steps, then the zero point and the ends."""
    numbers = np.array([zero_point, low, high], np.float32)
    assert len(numbers) == SCALED_NUMBERS
    return np.concatenate([scales.astype(np.float32), numbers])


def requantizes(steps: Sequence[EpilogueStep]) -> bool:
    """Return whether an epilogue is that of this module."""
    return any(step.operand in ("fixed", "scaled") for step in steps)


def store_requantized(
    e: Emitter,
    step: EpilogueStep,
    operand: Any,
    channel: Index,
    buffer: Any,
    at: Index,
    accumulators: Sequence[Any],
) -> None:
    """Requantize and store consecutive vectors of accumulators.

    Args:
        e: where to write.
        step: see `Requantization.step`.
        operand: its buffer.
        channel: the channel of the first lane of every vector.
        buffer: the buffer of the quantized values.
        at: where the first goes.
        accumulators: vectors of int32.
    """
    lanes = int(accumulators[0].ty.dtype.lanes)
    accumulators = [e.let("sum", value) for value in accumulators]
    kind = _Scaled if step.operand == "scaled" else _Swished
    maker = kind(e, step, operand, channel, lanes, str(buffer.ty.dtype.dtype))
    done = 0
    while done < len(accumulators):
        count = min(4, 1 << (len(accumulators) - done).bit_length() - 1)
        four = [accumulators[done + number % count] for number in range(4)]
        quantized = maker.quantized(four[: max(2, count)], count)
        e.store(buffer, at + done * lanes, quantized)
        done += count


class _Maker:
    """A maker requantizes up to four vectors of accumulators."""

    fraction = 0
    zero: Any
    low: Any
    high: Any

    def __init__(
        self, e: Emitter, step: EpilogueStep, operand: Any, channel: Index, lanes: int, dtype: str
    ) -> None:
        self.e, self.lanes, self.dtype = e, lanes, dtype
        self.below, self.above = map(bool, step.parameters[-2:])
        # Where `Isa.narrow_pair` puts two vectors: four values of the first, then of the second.
        parts = range(0, lanes, 4)
        self.order = [part + lane for part in parts for _ in range(2) for lane in range(4)]
        self.begin(step, operand, channel)

    def begin(self, step: EpilogueStep, operand: Any, channel: Index) -> None:
        """Load what is the same for all vectors."""
        raise NotImplementedError

    def every(self, number: Any) -> Any:
        """Return a number in all lanes of 16 bits."""
        return self.e.let("number", broadcast(number, 2 * self.lanes))

    def quantized(self, accumulators: Sequence[Any], count: int) -> Any:
        """Return quantized values of two or four vectors, of which `count` count."""
        halves = [
            add_saturating(self.words(accumulators[i : i + 2]), self.zero)
            for i in range(0, len(accumulators), 2)
        ]
        # Each 128 bits hold four quantized values of every vector.
        order = [4 * part + vector for vector in range(count) for part in range(self.lanes // 4)]
        quantized = self.e.isa.narrow_rounded(halves, self.fraction, self.dtype, order)
        return bounded(
            quantized, None if self.below else self.low, None if self.above else self.high
        )

    def words(self, accumulators: Sequence[Any]) -> Any:
        """Return two vectors as one of int16, less the zero point, with fractions."""
        raise NotImplementedError


class _Scaled(_Maker):
    def begin(self, step: EpilogueStep, operand: Any, channel: Index) -> None:
        size = int(operand.shape[0])
        numbers = [self.e.load(operand, size - SCALED_NUMBERS + i) for i in range(SCALED_NUMBERS)]
        zero, self.low, self.high = (tirx.Cast("int16", number) for number in numbers)
        self.zero = self.every(zero)
        self.scales = self.e.let("scales", self.e.load(operand, channel, self.lanes))

    def words(self, accumulators: Sequence[Any]) -> Any:
        floats = f"float32x{self.lanes}"
        return self.e.isa.narrow_pair(
            [
                self.e.isa.round_to_int32(tirx.Cast(floats, accumulator) * self.scales)
                for accumulator in accumulators
            ]
        )


class _Swished(_Maker):
    def begin(self, step: EpilogueStep, operand: Any, channel: Index) -> None:
        e, lanes = self.e, self.lanes
        self.fraction, self.raised = map(int, step.parameters[:2])
        self.left = bool(step.parameters[2])
        size = int(operand.shape[0])
        numbers = [e.load(operand, size - FIXED_NUMBERS + i) for i in range(FIXED_NUMBERS)]
        zero, self.low, self.high, three = numbers
        self.zero = self.every(e.isa.rounding_offset(zero, self.fraction, self.dtype))
        self.three = self.every(three)
        self.six = self.every(three * tirx.const(2, "int16"))
        channels = (size - FIXED_NUMBERS) // 2
        shifts = tirx.Cast(f"int32x{lanes}", e.load(operand, channel + channels, lanes))
        self.shifts = e.let("shifts", shifts)
        multipliers = e.load(operand, channel, lanes)
        self.multipliers = e.let("multipliers", shuffle([multipliers] * 2, self.order))

    def words(self, accumulators: Sequence[Any]) -> Any:
        isa = self.e.isa
        words = isa.narrow_pair(
            [isa.shift_right(accumulator, self.shifts, self.left) for accumulator in accumulators]
        )
        value = self.e.let("v", isa.multiply_high_rounded(words, self.multipliers))
        zeros = broadcast(tirx.const(0, "int16"), 2 * self.lanes)
        gate = tirx.min(tirx.max(add_saturating(value, self.three), zeros), self.six)
        if self.raised:
            by = broadcast(tirx.const(self.raised, "int16"), 2 * self.lanes)
            gate = tirx.shift_left(gate, by)
        return isa.multiply_high_rounded(value, gate)


def bounded(quantized: Any, low: Any, high: Any) -> Any:
    """Return quantized values between two numbers, int16; None: no bound."""
    kind = quantized.ty.dtype
    count, dtype = int(kind.lanes), str(kind.with_lanes(1))
    if low is not None:
        quantized = tirx.max(quantized, broadcast(tirx.Cast(dtype, low), count))
    if high is not None:
        quantized = tirx.min(quantized, broadcast(tirx.Cast(dtype, high), count))
    return quantized
