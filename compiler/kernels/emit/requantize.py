"""Requantize accumulators: write what follows products of quantized values.

An int32 accumulator is shifted to int16 that fills its bits, by n, and multiplied with a number of
each channel; all that follows is in 16 bits. With f binary digits after the point, and x the result
less its zero point:

    w = saturate16((accumulator + 2**(n - 1)) >> n)   or accumulator << -n; the half is in the bias
    v = (w * multiplier + 2**14) >> 15
    result = saturate8((v + (zero_point << f) + 2**(f - 1)) >> f)

where v is x * 2**f. A number that is added before it is quantized is part of the zero point, which
then is no whole number. Where a hard swish comes between, v is q times its argument, and before the
result comes one more step; q is such that this gives x * 2**f:

    v = (v * (clip(v + 3 q, 0, 6 q) << k) + 2**14) >> 15

Where a SiLU comes between, v is its argument; with t an eighth of the argument's size, at most 1,
in 15 binary digits, and p the logistic function of -8 t by a polynomial, before the result comes

    v = max(v, 0) - ((|v| * p + 2**14) >> 15)

n is one for all channels where that leaves enough digits, for processors that shift and narrow by
one instruction; else it differs between channels. `fixed_point` finds it, and the multipliers.

There are no floats: all targets give the same quantized values. Before v is rounded it is less than
2**(1 - f) of a step away from what real numbers give, after a hard swish less than 2**(2 - f),
after a SiLU less than 2**(1 - f) and 2**-11 of its argument.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.emit.emitter import CACHE_LINE_BYTES, Emitter, Index
from edgec.compiler.kernels.emit.epilogue import FIXED_NUMBERS, EpilogueStep
from edgec.compiler.kernels.vectors import (
    add_saturating,
    broadcast,
    constant,
    shuffle,
    subtract_unsigned,
)

# Pairs of vectors whose SiLU is computed side by side.
_SIDE_BY_SIDE = 8
TOP = 2**15 - 1


@dataclass(frozen=True)
class Gate:
    """A gate describes a hard swish in 16 bits.

    Attributes:
        three: 3 q.
        raised: k.
    """

    three: int
    raised: int


@dataclass(frozen=True)
class Logistic:
    """A logistic describes a SiLU in 16 bits.

    Attributes:
        factor: what makes t of |v|, before it is doubled: 2**14 to 2**15 - 1.
        doublings: how often t is doubled, and stays at 1.
    """

    factor: int
    doublings: int


# p by powers of 1 - 2 t, in 15 binary digits: a fit of least largest error, 2.7e-4, with the
# rounding of each step counted.
LOGISTIC = (595, 2301, 4235, 5664, 6106, 2342, -2733, -2121)
LOGISTIC_REACH = 8.0


@dataclass(frozen=True)
class Requantization:
    """A requantization describes how accumulators become quantized.

    Attributes:
        fraction: f.
        multipliers: int16, of each channel.
        shifts: n of each channel, int16; below 0 to the left.
        gate: the hard swish or SiLU between, if there is one.
    """

    fraction: int
    multipliers: NDArray[np.int16]
    shifts: NDArray[np.int16]
    gate: Gate | Logistic | None = None

    def step(
        self, dtype: str, below: bool, above: bool, zero_point: float = math.nan
    ) -> EpilogueStep:
        """Return the only step of an epilogue; see `operand`.

        Args:
            dtype: the dtype of the quantized values.
            below: whether the smallest quantized value is that of the type.
            above: whether the largest is.
            zero_point: as `operand` takes it.
        """
        from_least = dtype == "int8" and below and zero_point == np.iinfo(np.int8).min
        least, most = int(self.shifts.min()), int(self.shifts.max())
        one = least if least == most and least >= 0 else _BY_CHANNEL
        kind, raised = _NO_GATE, 0
        if isinstance(self.gate, Gate):
            kind, raised = _HARD_SWISH, self.gate.raised
            if raised == 0 and int(self.multipliers.max()) + self.gate.three <= TOP:
                kind = _NEAR_HARD_SWISH
        elif isinstance(self.gate, Logistic):
            kind, raised = _SILU, self.gate.doublings
        lower = _FROM_LEAST if from_least else below
        numbers = (self.fraction, kind, raised, one, least < 0, lower, above)
        return EpilogueStep(f"requantize_{dtype}", "fixed", tuple(map(float, numbers)))

    def holds(self, zero_point: float) -> bool:
        """Return whether 16 bits hold a zero point with f binary digits after it, and a half."""
        return (abs(zero_point) + 0.5) * 2**self.fraction <= TOP

    def operand(self, zero_point: float, low: int, high: int) -> NDArray[np.int16]:
        """Return multipliers, shifts, then the numbers that hold for all channels.

        Args:
            zero_point: the zero point of the quantized values, and parts of a step that are added.
            low: smallest quantized value.
            high: largest quantized value.
        """
        number = 0
        if self.gate is not None:
            number = self.gate.three if isinstance(self.gate, Gate) else self.gate.factor
        numbers = (round(zero_point * 2**self.fraction), low, high, number)
        assert len(numbers) == FIXED_NUMBERS
        return np.concatenate([self.multipliers, self.shifts, np.array(numbers, np.int16)])

    def of_channels(self, begin: int, end: int, count: int) -> "Requantization":
        """Return the same for some of the channels, and more that hold nothing up to a count."""
        multipliers, shifts = self.multipliers[begin:end], self.shifts[begin:end]
        behind = (0, count - len(shifts))
        return replace(
            self,
            multipliers=np.pad(multipliers, behind),
            shifts=np.pad(shifts, behind, mode="edge"),
        )

    @property
    def halves(self) -> NDArray[np.int32]:
        """Return what accumulators begin with, so that the shift rounds."""
        return (1 << np.maximum(0, self.shifts).astype(np.int32)) >> 1


def requantizations_text(found: Mapping[str, Requantization | None]) -> str:
    """Return what `decided_requantizations` reads: JSON."""
    fields: dict[str, Any] = {}
    for name, one in found.items():
        gate = None if one is None or one.gate is None else one.gate
        fields[name] = one and {
            "fraction": one.fraction,
            "multipliers": one.multipliers.tolist(),
            "shifts": one.shifts.tolist(),
            "gate": gate and [type(gate).__name__, *vars(gate).values()],
        }
    return json.dumps(fields)


def decided_requantizations(text: str) -> dict[str, Requantization | None]:
    """Return what `requantizations_text` wrote; nothing of an empty text."""
    gates = {kind.__name__: kind for kind in (Gate, Logistic)}
    found: dict[str, Requantization | None] = {}
    for name, one in json.loads(text or "{}").items():
        found[name] = one and Requantization(
            one["fraction"],
            np.array(one["multipliers"], np.int16),
            np.array(one["shifts"], np.int16),
            one["gate"] and gates[one["gate"][0]](*one["gate"][1:]),
        )
    return found


# In place of the shift of all channels.
_BY_CHANNEL = -1
_NO_GATE, _HARD_SWISH, _SILU, _NEAR_HARD_SWISH = range(4)
# In place of whether the smallest quantized value is that of the type: the zero point, too.
_FROM_LEAST = 2


def requantizes(steps: Sequence[EpilogueStep]) -> bool:
    """Return whether an epilogue is that of this module."""
    return any(step.operand == "fixed" for step in steps)


def store_requantized(
    e: Emitter,
    step: EpilogueStep,
    operand: Any,
    channel: Index,
    buffer: Any,
    at: Index,
    accumulators: Sequence[Any],
    crossed: bool = False,
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
        crossed: whether they come two by two, the first of which has in each 128 bits the first
            half of a pixel's eight channels, and the second the other.
    """
    store_requantized_rows(e, step, operand, buffer, [(channel, at, accumulators)], crossed)


def store_requantized_rows(
    e: Emitter,
    step: EpilogueStep,
    operand: Any,
    buffer: Any,
    rows: Sequence[tuple[Index, Index, Sequence[Any]]],
    crossed: bool = False,
) -> None:
    """Requantize and store several rows of accumulators.

    What follows from one another takes as long as several of these do side by side: where there is
    more of it, several rows are requantized at once.

    Args:
        e: where to write.
        step: as of `store_requantized`, and so are the next ones.
        operand: its buffer.
        buffer: the buffer of the quantized values.
        rows: of each the channel, where the first goes, and the accumulators.
        crossed: how they come.
    """
    silu = int(step.parameters[1]) == _SILU
    for part in [rows] if silu else [[row] for row in rows]:
        runs = [run for row in part for run in _runs(e, step, operand, buffer, row, crossed)]
        for some in _evenly(runs) if silu else [runs]:
            words = iter(some[0].maker.words([value for run in some for value in run.values]))
            for run in some:
                halves = [next(words) for _ in run.values]
                e.store(buffer, run.at, run.maker.quantized(halves, run.count))


@dataclass(frozen=True)
class _Run:
    """A run describes vectors that are stored at once.

    Attributes:
        maker: requantizes them.
        at: where they go.
        count: how many.
        values: two of them each, as `_Maker.scaled` gives them.
    """

    maker: "_Maker"
    at: Any
    count: int
    values: Sequence[Any]


def _runs(
    e: Emitter,
    step: EpilogueStep,
    operand: Any,
    buffer: Any,
    row: tuple[Index, Index, Sequence[Any]],
    crossed: bool,
) -> list[_Run]:
    """Return a row in runs; args as of `store_requantized_rows`."""
    channel, at, accumulators = row
    lanes, done, runs = int(accumulators[0].ty.dtype.lanes), 0, []
    accumulators = [e.let("sum", value) for value in accumulators]
    maker = _Maker(e, step, operand, channel, lanes, str(buffer.ty.dtype.dtype), crossed)
    while done < len(accumulators):
        left = len(accumulators) - done
        if left == 3 and done and 4 < lanes < CACHE_LINE_BYTES // 4:
            # Four, one of them again, take fewer instructions than two and one; but a store of a
            # whole cache line would then lie in two.
            done, left = done - 1, 4
        count = min(4, 1 << left.bit_length() - 1)
        some = accumulators[done : done + count]
        pairs = [some[i : i + 2] for i in range(0, count, 2)]
        values = [maker.scaled([pair[0], pair[-1]]) for pair in pairs]
        runs.append(_Run(maker, at + done * lanes, count, values))
        done += count
    return runs


def _evenly(runs: Sequence[_Run]) -> list[list[_Run]]:
    """Return runs in parts of as many values, so few that registers hold what is between."""
    total = sum(len(run.values) for run in runs)
    each, before = total / math.ceil(total / _SIDE_BY_SIDE), 0
    parts: list[list[_Run]] = []
    for run in runs:
        if len(parts) <= before // each:
            parts.append([])
        parts[-1].append(run)
        before += len(run.values)
    return parts


class _Maker:
    """A maker requantizes up to four vectors of accumulators."""

    def __init__(
        self,
        e: Emitter,
        step: EpilogueStep,
        operand: Any,
        channel: Index,
        lanes: int,
        dtype: str,
        crossed: bool,
    ) -> None:
        self.e, self.lanes, self.dtype, self.crossed = e, lanes, dtype, crossed
        self.fraction, self.kind, self.raised, self.shift = map(int, step.parameters[:4])
        self.left, self.below, self.above = map(bool, step.parameters[4:])
        self.from_least = step.parameters[5] == _FROM_LEAST
        size = int(operand.shape[0])
        numbers = [e.load(operand, size - FIXED_NUMBERS + i) for i in range(FIXED_NUMBERS)]
        zero, self.low, self.high, number = numbers
        self.zero = self.every(e.isa.rounding_offset(zero, self.fraction, dtype))
        if self.kind != _NO_GATE:
            self.number = self.every(number)
        if self.kind == _HARD_SWISH:
            self.six = self.every(number * tirx.const(2, "int16"))
        elif self.kind == _NEAR_HARD_SWISH:
            top = tirx.const(TOP, "int16")
            self.number = self.every(top - number)
            self.six = self.every(top - number - number)
        if self.shift == _BY_CHANNEL:
            channels = (size - FIXED_NUMBERS) // 2
            shifts = tirx.Cast(f"int32x{lanes}", e.load(operand, channel + channels, lanes))
            shifts = e.let("shifts", shifts)
            self.shifts = [shifts, shifts]
            if crossed:
                halves = [[*range(half, half + 4)] * 2 for half in (0, 4)]
                self.shifts = [e.let("shifts", shuffle([shifts], half)) for half in halves]
        # Where `Isa.narrow_pair` puts two vectors: four values of the first, then of the second.
        parts = range(0, lanes, 4)
        order = [part + lane for part in parts for _ in range(2) for lane in range(4)]
        if crossed:
            order = [*range(2 * lanes)]
        multipliers = e.load(operand, channel, lanes)
        self.multipliers = e.let("multipliers", shuffle([multipliers] * 2, order))

    def every(self, number: Any) -> Any:
        """Return a number in all lanes of 16 bits."""
        return self.e.let("number", broadcast(number, 2 * self.lanes))

    def quantized(self, words: Sequence[Any], count: int) -> Any:
        """Return quantized values of two or four vectors, of which `count` count."""
        # Each 128 bits hold four quantized values of every vector.
        order = [4 * part + vector for vector in range(count) for part in range(self.lanes // 4)]
        if self.crossed:
            parts = range(self.lanes // 4)
            order = [
                4 * part + 2 * pair + half
                for pair in range(count // 2)
                for part in parts
                for half in (0, 1)
            ]
        isa, quantized = self.e.isa, None
        if self.from_least:
            quantized = isa.narrow_from_least(words, self.fraction, self.dtype, order)
        if quantized is None:
            halves = [add_saturating(each, self.zero) for each in words]
            quantized = isa.narrow_rounded(halves, self.fraction, self.dtype, order)
        return bounded(
            quantized, None if self.below else self.low, None if self.above else self.high
        )

    def words(self, values: Sequence[Any]) -> list[Any]:
        """Return results of `scaled` less the zero point, with fractions, after what is between."""
        if self.kind == _NO_GATE:
            return list(values)
        if self.kind != _SILU:
            return [self.hard_swish(value) for value in values]
        return self.silu(values)

    def scaled(self, accumulators: Sequence[Any]) -> Any:
        """Return two vectors as one of int16, multiplied with a number of each channel."""
        isa = self.e.isa
        if self.shift == _BY_CHANNEL:
            words = isa.shift_each_and_narrow_pair(accumulators, self.shifts, self.left)
        else:
            words = isa.shift_and_narrow_pair(accumulators, self.shift)
        return self.e.let("v", isa.multiply_high_rounded(words, self.multipliers))

    def hard_swish(self, value: Any) -> Any:
        """Return v times the gate.

        Where v is no less than 3 q - 2**15 + 1, both ends of the gate come of saturation.
        """
        isa = self.e.isa
        if self.kind == _NEAR_HARD_SWISH:
            most = self.e.let("most", add_saturating(value, self.number))
            gate = subtract_unsigned(most, self.six)
            return isa.multiply_high_rounded(value, gate)
        gate = tirx.min(add_saturating(value, self.number), self.six)
        return isa.multiply_high_rounded(value, isa.positive_shifted(gate, self.raised))

    def silu(self, values: Sequence[Any]) -> list[Any]:
        """Return each v times the logistic function."""
        isa, let = self.e.isa, self.e.let
        sizes = [let("size", tirx.max(value, self.same(0) - value)) for value in values]
        ts = [let("t", isa.multiply_high_rounded(size, self.number)) for size in sizes]
        for _ in range(self.raised):
            ts = [let("t", add_saturating(t, t)) for t in ts]
        places = [let("place", self.same(TOP) - t - t) for t in ts]
        *others, most = LOGISTIC
        totals = [self.same(most)] * len(values)
        for coefficient in reversed(others):
            products = [
                let("product", isa.multiply_high_rounded(total, place))
                for total, place in zip(totals, places, strict=True)
            ]
            totals = [let("p", product + self.same(coefficient)) for product in products]
        return [
            tirx.max(value, self.same(0)) - isa.multiply_high_rounded(size, total)
            for value, size, total in zip(values, sizes, totals, strict=True)
        ]

    def same(self, number: int) -> Any:
        """Return a constant in all lanes of 16 bits."""
        return constant(number, "int16", 2 * self.lanes)


def bounded(quantized: Any, low: Any, high: Any) -> Any:
    """Return quantized values between two numbers, int16; None: no bound."""
    kind = quantized.ty.dtype
    count, dtype = int(kind.lanes), str(kind.with_lanes(1))
    if low is not None:
        quantized = tirx.max(quantized, broadcast(tirx.Cast(dtype, low), count))
    if high is not None:
        quantized = tirx.min(quantized, broadcast(tirx.Cast(dtype, high), count))
    return quantized
