"""Provide direct convolution of quantized values of few channels whose windows lie side by side.

Before it computes a line of the result, or a part of one, a task copies what its windows read into
columns: all rows and channels of the window in one column of the image, then those of the next
column, with the padding in place. The windows of neighbouring pixels overlap there, and each is one
run of values, which are multiplied in units of 32 bits: a window of 3 x 3 pixels of three channels
is 27 of 28 values where groups of four channels are 27 of 36, and no pixel is at a border.

A unit is four values as `Dot` multiplies them. Where int16 does not hold the sum of a pair of its
products, a part of the weights stays for a second product with the same values. Which values are a
pair depends on how many zeros of those that fill the units are in front. All else is that of
`integer.py`.

    weight  units of int32, [tiles, units of a window and what is left of some, tile_o * c].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.conv.decision import ConvDecision
from edgec.compiler.kernels.conv.direct import Mask
from edgec.compiler.kernels.conv.integer import (
    IntegerConvWorkload,
    computing_cycles,
    groups_in_block,
    unit_step,
)
from edgec.compiler.kernels.conv.integer_writer import IntegerConv, emit_phases
from edgec.compiler.kernels.conv.windows import valid_rows
from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.kernels.emit.emitter import wide
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.machine_model import ISSUE_WIDTH, half_l1
from edgec.compiler.kernels.isa import dot_of
from edgec.compiler.kernels.vectors import broadcast, constant, reinterpret, vector_dtype
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.targets.target import Target

# Units written in a turn of the loop over them. With three LLVM would add products of different
# units to each other first, and spill.
_UNITS_TOGETHER = 2
# Cycles to copy a pixel of one row, on processors with wider vectors than 128 bits and on others.
_COPY_CYCLES = {True: 0.75, False: 1.25}
# Around a turn of the loop over units.
_TURN_INSTRUCTIONS = 4
# Blocks of output channels in a tile.
_MOST_VECTORS = 8


@dataclass(frozen=True)
class ColumnsDecision:
    """A columns decision describes a convolution whose windows lie side by side.

    Attributes:
        columns: its register tile; the segment is register tiles in a task.
        before: values before a window that are multiplied with 0.
        again: units of a window that are multiplied twice.
    """

    columns: ConvDecision
    before: int = 0
    again: tuple[int, ...] = ()


def _column(conv: ConvWorkload) -> int:
    """Return values of a column."""
    return conv.kernel[0] * conv.in_channels


def _units(conv: ConvWorkload) -> int:
    """Return units of a window."""
    return math.ceil(_column(conv) * conv.kernel[1] / DOT_WIDTH)


def _width(conv: ConvWorkload, pixels: int) -> int:
    """Return columns that some pixels of a line read."""
    return (pixels - 1) * conv.stride[1] + conv.kernel[1]


def suits(workload: IntegerConvWorkload, target: Target) -> bool:
    """Return whether groups of four channels would waste products, and columns do not."""
    conv = workload.conv
    few = conv.groups == 1 and conv.in_channels < DOT_WIDTH and math.prod(conv.kernel) > 1
    whole = conv.dilation == (1, 1) and conv.out_extent == (conv.out_h, conv.out_w)
    return few and whole and target.float_lanes >= DOT_WIDTH


def columns_space(workload: IntegerConvWorkload, target: Target) -> list[ColumnsDecision]:
    """Return decisions whose register tile fits the registers, and columns the first cache."""
    conv, dot, decisions = workload.conv, dot_of(target), []
    if dot is None or not suits(workload, target):
        return []
    blocks = math.ceil(conv.out_channels / target.float_lanes)
    for vectors in range(1, min(blocks, _MOST_VECTORS) + 1):
        for pixels in range(1, conv.out_w + 1):
            # A unit is loaded, and may have to be brought into order.
            data = pixels if dot.by_lane else 1 + dot.in_halves
            if pixels * vectors + vectors + data + dot.temporaries > target.vector_registers:
                break
            segment = _segment(conv, pixels, target)
            plan = ConvDecision(1, pixels, vectors, rows_first=False, segment=segment)
            decisions.append(ColumnsDecision(plan))
    return decisions


def _segment(conv: ConvWorkload, pixels: int, target: Target) -> int:
    """Return the register tiles of a line whose columns stay in the first cache."""
    tiles = segment = math.ceil(conv.out_w / pixels)
    while segment > 1 and _width(conv, segment * pixels) * _column(conv) > half_l1(target):
        segment = math.ceil(tiles / (math.ceil(tiles / segment) + 1))
    return segment


def estimate_columns_cycles(
    workload: IntegerConvWorkload, decision: ColumnsDecision, target: Target
) -> float:
    """Return the cycles by the model of `integer.py` for what is multiplied, and for copying."""
    conv, plan, dot = workload.conv, decision.columns, dot_of(target)
    assert dot is not None
    pixels, vectors = plan.tile_w, plan.tile_o
    units, taps = _units(conv) + len(decision.again), math.prod(conv.kernel)
    wider = groups_in_block(target) > 1
    if wider:
        step = unit_step(plan, dot, target)
    else:
        products, spread = pixels * vectors * dot.instructions, 0 if dot.by_lane else pixels
        loads = (pixels / DOT_WIDTH if dot.by_lane else pixels) + vectors
        counting = _TURN_INSTRUCTIONS / (DOT_WIDTH if dot.by_lane else _UNITS_TOGETHER)
        issued = (products + spread + loads + counting) / ISSUE_WIDTH
        step = (products + spread) / target.fma_units + issued
    # A task is a line in all channels, or a part of one.
    line = replace(plan, segment=0)
    cycles = computing_cycles(workload, line, target, step * units / taps)
    parts = math.ceil(math.ceil(conv.out_w / pixels) / plan.segment)
    columns = conv.batch * conv.out_h * parts * _width(conv, min(conv.out_w, plan.segment * pixels))
    return cycles + columns * conv.kernel[0] * _COPY_CYCLES[wider]


def columns_size(workload: IntegerConvWorkload, decision: ColumnsDecision, target: Target) -> int:
    """Return units in a packed weight."""
    width = decision.columns.tile_o * target.float_lanes
    tiles = math.ceil(workload.conv.out_channels / width)
    return tiles * (_units(workload.conv) + len(decision.again)) * width


def two_parts(
    weight: NDArray[Any], before: int, target: Target
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return weights int8 as units [out_channels, units, 4], as two parts.

    Of the first int16 holds all sums of two products, and of the second.

    Args:
        weight: int8 [out_channels, in_channels, kh, kw].
        before: zeros in front of each window.
        target: where.
    """
    windows = weight.transpose(0, 3, 2, 1).reshape(len(weight), -1)
    missing = -(windows.shape[1] + before) % DOT_WIDTH
    padded = np.pad(windows, ((0, 0), (before, missing)))
    units = padded.reshape(len(weight), -1, DOT_WIDTH)
    dot = dot_of(target)
    if dot is None or dot.exact_fallback is None:
        return units, np.zeros_like(units)
    # What is added in one int16 is beside one another here.
    places = [0, 2, 1, 3] if dot.in_halves else [0, 1, 2, 3]
    pairs = units[..., places].astype(np.int16).reshape(*units.shape[:2], -1, 2)
    ends, left = np.iinfo(dot.data), np.zeros_like(pairs)
    most = np.iinfo(np.int16).max // max(ends.max, -ends.min)
    # Products of unsigned values have the sign of the weight: those of either sign are a sum.
    for chosen in [pairs > 0, pairs < 0] if ends.min == 0 else [pairs != 0]:
        sizes = np.where(chosen, np.abs(pairs), 0)
        beyond = np.maximum(0, sizes.sum(axis=-1) - most)
        first = np.minimum(beyond, sizes[..., 0])
        left += np.stack([first, beyond - first], axis=-1) * np.sign(pairs) * chosen
    back = np.argsort(places)
    first, second = (
        part.astype(np.int8).reshape(units.shape)[..., back] for part in (pairs - left, left)
    )
    return first, second


def with_units_again(
    decision: ColumnsDecision, weight: NDArray[Any], target: Target
) -> ColumnsDecision:
    """Return the decision for these weights, int8 [out_channels, in_channels, kh, kw]."""
    values = weight[0].size
    found = []
    for before in range(-values % DOT_WIDTH + 1):
        left = two_parts(weight, before, target)[1].any(axis=(0, 2))
        again = tuple(int(unit) for unit in np.flatnonzero(left))
        found.append(replace(decision, before=before, again=again))
    return min(found, key=lambda each: len(each.again))


def pack_columns(
    workload: IntegerConvWorkload, decision: ColumnsDecision, target: Target, weight: NDArray[Any]
) -> NDArray[Any]:
    """Return weights int8 [out_channels, in_channels, kh, kw] as units, in the kernel's order."""
    units, left = two_parts(weight, decision.before, target)
    units = np.concatenate([units, left[:, list(decision.again)]], axis=1)
    width = decision.columns.tile_o * target.float_lanes
    padded = np.pad(units, ((0, -len(units) % width), (0, 0), (0, 0)))
    words = np.ascontiguousarray(padded).view(np.int32)
    packed = words.reshape(-1, width, units.shape[1]).transpose(0, 2, 1)
    dot = dot_of(target)
    assert dot is not None
    return dot.arrange(np.ascontiguousarray(packed), target.float_lanes)


def emit_columns_conv(
    workload: IntegerConvWorkload, decision: ColumnsDecision, target: Target, name: str
) -> Kernel:
    """Write the kernel; its buffers are those of `emit_integer_conv`."""
    return emit_phases([(workload, decision)], target, name, _Columns, columns_size)


class _Columns(IntegerConv):
    """Copies columns, and multiplies windows of them."""

    def __init__(
        self, workload: IntegerConvWorkload, decision: ColumnsDecision, *others: Any
    ) -> None:
        super().__init__(workload, decision.columns, *others)
        w = self.conv = workload.conv
        dot = self.emit.isa.dot()
        assert dot is not None
        # Not the one for weights whose pairs of channels saturate: here are other pairs.
        self.dot, self.before, self.again = dot, decision.before, decision.again
        self.column, self.units = _column(w), _units(w)
        tiles = math.ceil(w.out_w / self.plan.tile_w)
        self.pixels = min(w.out_w, self.plan.segment * self.plan.tile_w)
        self.parts = math.ceil(tiles / self.plan.segment)
        self.out_tiles = len(self.channels.starts)
        self.tasks = w.batch * w.out_h * self.parts

    def body(self, task: Any) -> None:
        """Compute some pixels of a line in all output channels."""
        w, e, p = self.conv, self.emit, self.plan
        part = e.let("part", tirx.floormod(task, self.parts))
        rest = e.let("rest", tirx.floordiv(task, self.parts))
        row = e.let("row", tirx.floormod(rest, w.out_h))
        self.image, self.task = e.let("image", tirx.floordiv(rest, w.out_h)), task
        last = tirx.IntImm("int32", w.out_w - self.pixels)
        self.first_pixel = e.let("first_pixel", tirx.min(part * self.pixels, last))
        self._copy(row)
        count = p.tile_w * p.tile_o
        self.acc = e.local("acc", count, vector_dtype(self.dtype, self.c))
        with e.loop("tile", self.hide_from_llvm(self.out_tiles)) as tile:
            self.tile = tile
            self.begin_tiles()
            tiles = math.ceil(self.pixels / p.tile_w)
            with e.loop("column_tile", self.hide_from_llvm(tiles)) as number:
                self.passed = number
                column = number * p.tile_w
                if self.pixels % p.tile_w:
                    column = tirx.min(column, tirx.IntImm("int32", self.pixels - p.tile_w))
                column = e.let("column", self.first_pixel + column)
                self._tile(row, column, (), None)

    def _copy(self, row: Any) -> None:
        """Copy what the windows read."""
        w, e = self.conv, self.emit
        width = _width(w, self.pixels)
        # What is stored and read beyond the last column.
        more = 2 * DOT_WIDTH * DOT_WIDTH
        self.columns = e.scratch("columns", width * self.column + more, self.dot.data)
        self.bytes = e.view(self.data, int(self.data.shape[0]) * DOT_WIDTH, self.dot.data)
        top = e.let("top", row * w.stride[0] - w.padding[0])
        left = e.let("left", self.first_pixel * w.stride[1] - w.padding[1])
        first, count = valid_rows(e, top, w.window(0))
        begin: Any = tirx.IntImm("int32", 0)
        past: Any = tirx.IntImm("int32", width)
        window = w.window(1)
        if len(window.interior) < w.out_w:
            begin = e.let("begin", tirx.min(tirx.max(begin, 0 - left), past))
            inside = tirx.min(tirx.IntImm("int32", w.in_w) - left, past)
            past = e.let("past", tirx.max(begin, inside))
            self._pad(0, begin)
        rows = [top + kh for kh in range(w.kernel[0])]
        if isinstance(count, int):
            self._copy_rows(left, begin, past, rows, None)
        else:
            with e.branch(count == w.kernel[0]):
                self._copy_rows(left, begin, past, rows, None)
            with e.branch(count < w.kernel[0]):
                low, high = tirx.IntImm("int32", 0), tirx.IntImm("int32", w.in_h - 1)
                inside_rows = [
                    tirx.all(first <= kh, first + count > kh) for kh in range(w.kernel[0])
                ]
                near = [tirx.max(low, tirx.min(high, each)) for each in rows]
                self._copy_rows(left, begin, past, near, inside_rows)
        if len(window.interior) < w.out_w:
            self._pad(past, width - past)

    def _pad(self, first: Any, count: Any) -> None:
        """Write columns of padding."""
        e = self.emit
        with e.loop("padding", count, first) as column:
            for value in range(self.column):
                to = column * self.column + value + self.before
                e.store(self.columns, to, tirx.const(self.code, self.dot.data))

    def _copy_rows(
        self, left: Any, begin: Any, past: Any, rows: Sequence[Any], inside: Sequence[Any] | None
    ) -> None:
        """Copy columns; of three channels four values, the last of which is overwritten."""
        w, e, channels = self.conv, self.emit, self.conv.in_channels
        lanes = 4 if channels == 3 else channels
        plane = self.image * w.in_h
        starts = [e.let("start", wide((plane + row) * w.in_w + left)) for row in rows[:1]]
        if inside is None:
            starts += [starts[0] + kh * w.in_w for kh in range(1, len(rows))]
        else:
            starts += [e.let("start", wide((plane + row) * w.in_w + left)) for row in rows[1:]]
        with e.loop("column", past - begin, begin, wide=True) as column:
            for kh, start in enumerate(starts):
                value = e.load(self.bytes, (start + column) * self.c, lanes)
                if inside is not None:
                    code = constant(self.code, self.dot.data, lanes)
                    value = tirx.Select(inside[kh], value, code)
                e.store(self.columns, column * self.column + kh * channels + self.before, value)

    def accumulate_taps(self, column: Any, valid: Sequence[Mask], window: Any) -> None:
        """Add the products of the windows of a register tile."""
        e = self.emit
        step = min(DOT_WIDTH if self.dot.by_lane else _UNITS_TOGETHER, self.units)
        pixel = (column - self.first_pixel) * (self.conv.stride[1] * self.column)
        base = e.let("base", wide(pixel))
        rows = self.units + len(self.again)
        first = e.let("weights", wide(self.tile * (rows * self.width)))
        turns, left = divmod(self.units, step)
        with e.loop("unit", self.hide_from_llvm(turns), wide=True) as turn:
            at, row = turn * (step * DOT_WIDTH), turn * (step * self.width)
            self._add_units(base + at, first + row, step)
        at, row = turns * step * DOT_WIDTH, turns * step * self.width
        self._add_units(base + at, first + row, left)
        for number, unit in enumerate(self.again, self.units):
            self._add_units(base + unit * DOT_WIDTH, first + number * self.width, 1)

    def _add_units(self, at: Any, weights: Any, count: int) -> None:
        """Add the products of so many units, the weights of one after those of the other."""
        e, p, c = self.emit, self.plan, self.c
        apart = self.conv.stride[1] * self.column
        rows = [weights + unit * self.width for unit in range(count)]
        if self.dot.by_lane:
            fours = [
                self._loaded(at + x * apart, DOT_WIDTH) for x in range(p.tile_w if count else 0)
            ]
            for unit, row in enumerate(rows):
                for o in range(p.tile_o):
                    weight = e.let("w", e.load(self.weight, row + o * c, c))
                    for x, four in enumerate(fours):
                        self._add(x, o, self.dot.spread(four, unit, c), weight)
            return
        for unit, row in enumerate(rows):
            vectors = [e.let("w", e.load(self.weight, row + o * c, c)) for o in range(p.tile_o)]
            for x in range(p.tile_w):
                value = broadcast(self._loaded(at + x * apart + unit * DOT_WIDTH, 1), c)
                value = e.let("x", self.dot.spread(value, 0, c) if self.dot.in_halves else value)
                for o, weight in enumerate(vectors):
                    self._add(x, o, value, weight)

    def _loaded(self, at: Any, units: int) -> Any:
        """Return units as int32."""
        values = self.emit.load(self.columns, at, units * DOT_WIDTH)
        return self.emit.let("units", reinterpret(values, "int32", units))

    def _add(self, x: int, o: int, value: Any, weight: Any) -> None:
        """Accumulate the products of a unit."""
        position = x * self.plan.tile_o + o
        total = self.dot.add(self.emit.load(self.acc, position), [value], [weight])
        self.emit.store(self.acc, position, total)
