"""Provide depthwise convolution of quantized values in tiles of several lines, without a ring.

Where a vector has four lanes, four columns of a block of channels are one vector of bytes, and one
instruction makes a window of it: four taps of a channel in each lane. It is multiplied for all
lines of the tile that it is a row of the window of, so it is made once for several lines. Where
windows lie side by side, several pixels can share one, each with weights that are moved to where
its taps are: then fewer are made, of more weights.

The lines that a row of tiles reads are copied to where they have the padding's columns beside
them. Rows of the window above and below the image are known here, as in `direct`.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.conv.depthwise_writer import (
    RING_BYTES,
    TASK_CYCLES,
    DepthwiseDecision,
    DepthwiseWriter,
    IntegerDepthwiseWorkload,
    shares,
)
from edgec.compiler.kernels.conv.windows import each_span, tile_spans
from edgec.compiler.kernels.emit.emitter import hidden, wide
from edgec.compiler.kernels.emit.epilogue import cost
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.machine_model import (
    FEW_TILES,
    ISSUE_WIDTH,
    STORE_INSTRUCTIONS,
    imbalance_of,
)
from edgec.compiler.kernels.isa import Dot, dot_of
from edgec.compiler.kernels.vectors import vector_dtype
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.targets.target import Target

_MOST_LINES = 6
# Vectors of weights that stay in registers.
_HELD_WEIGHTS = 10
# To load and rearrange a window, to copy a vector, to start a tile and a row of tiles.
_WINDOW, _COPY, _TILE, _ROW = 2, 1, 12, 60
# Registers beside accumulators and weights: windows, how they are rearranged, and numbers of the
# requantization.
_BESIDE = 6
# For an output whose products take several instructions: what is moved to memory and back.
_MOVED = 3


def tiled_space(workload: IntegerDepthwiseWorkload, target: Target) -> list[DepthwiseDecision]:
    """Return tiles whose accumulators and weights fit the registers."""
    conv, dot = workload.conv, dot_of(target)
    assert dot is not None
    weights = min(_HELD_WEIGHTS, conv.kernel[0] * workload.tap_groups)
    room = max(1, target.vector_registers - weights - dot.temporaries // 2 - 3)
    decisions = []
    for tile_h in range(1, min(conv.out_h, _MOST_LINES, room) + 1):
        held = lines_read(workload, tile_h) * workload.line * DOT_WIDTH
        widths = range(1, min(conv.out_w, room // tile_h) + 1)
        if tile_h > 1 and held > RING_BYTES:
            continue
        tiles = math.ceil(conv.out_h / tile_h)
        counts = shares(tiles)
        decisions += [
            DepthwiseDecision(w, count, tile_h, shifts=shifts)
            for w in widths
            for count in counts
            for shifts in _shifts(workload, dot)
        ]
    # Four vectors of quantized values are stored at once.
    whole = [d for d in decisions if d.tile_w % DOT_WIDTH == 0]
    return whole or decisions


def lines_read(workload: IntegerDepthwiseWorkload, tile_h: int) -> int:
    """Return lines of the image that some lines of the output read."""
    return (tile_h - 1) * workload.conv.stride[0] + workload.conv.kernel[0]


def _shifts(workload: IntegerDepthwiseWorkload, dot: Dot) -> list[int]:
    """Return how many pixels can share windows, of no more groups of taps."""
    taps = workload.conv.kernel[1]
    if workload.conv.stride[1] > 1 or dot.in_halves:
        return [1]
    groups = workload.tap_groups
    return [n for n in (1, 2, 4) if math.ceil((taps + n - 1) / DOT_WIDTH) == groups]


def _columns(workload: IntegerDepthwiseWorkload, tile_w: int, shifts: int) -> list[int]:
    """Return where the windows of some pixels begin, from that of the first."""
    stride, groups = workload.conv.stride[1], range(workload.tap_groups)
    firsts = {x * stride // shifts * shifts for x in range(tile_w)}
    return sorted({first + DOT_WIDTH * g for first in firsts for g in groups})


def _weights_of(workload: IntegerDepthwiseWorkload, tile_h: int, shifts: int) -> int:
    """Return vectors of weights of a block of channels, of rows that lie in the image."""
    conv = workload.conv
    rows = min(conv.kernel[0], conv.in_h + (tile_h - 1) * conv.stride[0])
    return rows * shifts * workload.tap_groups


def _fits(workload: IntegerDepthwiseWorkload, decision: DepthwiseDecision, target: Target) -> bool:
    """Return whether all weights stay in registers beside a tile."""
    weights = _weights_of(workload, decision.tile_h, decision.shifts)
    return decision.tile_h * decision.tile_w + weights + _BESIDE <= target.vector_registers


def pack_tiled(
    workload: IntegerDepthwiseWorkload, shifts: int, target: Target, weight: NDArray[Any]
) -> NDArray[Any]:
    """Return weights int8 [channels, 1, kh, kw] as int32 [blocks, kh, shifts, tap groups, c]."""
    c, dot = target.float_lanes, dot_of(target)
    assert dot is not None
    channels, _, kh, kw = weight.shape
    shape = (math.ceil(channels / c) * c, kh, shifts, workload.tap_groups * DOT_WIDTH)
    padded = np.zeros(shape, np.int8)
    for shift in range(shifts):
        padded[:channels, :, shift, shift : shift + kw] = weight[:, 0]
    groups = padded.view(np.int32).reshape(-1, c, kh, shifts, workload.tap_groups)
    return dot.arrange(np.ascontiguousarray(groups.transpose(0, 2, 3, 4, 1)), c)


def estimate_tiled_cycles(
    workload: IntegerDepthwiseWorkload, decision: DepthwiseDecision, target: Target
) -> float:
    """Return how long it takes where each instruction takes as long."""
    conv, dot = workload.conv, dot_of(target)
    assert dot is not None
    high, across = decision.tile_h, decision.tile_w
    lines = min(lines_read(workload, high), conv.in_h)
    products = high * across * min(conv.kernel[0], conv.in_h) * workload.tap_groups
    windows: float = lines * len(_columns(workload, across, decision.shifts))
    if not dot.in_halves and not _fits(workload, decision, target):
        # Weights are loaded where they are used.
        windows += high * _weights_of(workload, high, decision.shifts) / _WINDOW
    moved = _MOVED if dot.in_halves else 0
    store = high * across * (1 + STORE_INSTRUCTIONS + cost(conv.epilogue) + moved)
    tile = products * dot.instructions + windows * _WINDOW + store + _TILE
    rows, tiles = math.ceil(conv.out_h / high), math.ceil(conv.out_w / across)
    row = tiles * tile + lines * conv.in_w / DOT_WIDTH * _COPY + _ROW
    planes = conv.batch * math.ceil(conv.in_channels / target.float_lanes)
    tasks = planes * math.ceil(rows / decision.lines)
    spent = 2 * planes * rows * row / (ISSUE_WIDTH * target.fma_units)
    return spent * imbalance_of(tasks, target) + tasks * TASK_CYCLES


class TiledDepthwise(DepthwiseWriter):
    """Makes windows in registers."""

    def kernel(self, name: str) -> Kernel:
        """Return the finished kernel."""
        w, e, p = self.conv, self.emit, self.plan
        spans = tile_spans(w.window(0), p.tile_h)
        tiles = sum(len(span.starts) for span in spans)
        parts = math.ceil(tiles / p.lines)
        with e.tasks() as task:
            self.task = task
            part = e.let("part", tirx.floormod(task, parts))
            plane = e.let("plane", tirx.floordiv(task, parts))
            block = e.let("block", tirx.floormod(plane, self.blocks))
            self.acc = e.local("acc", p.tile_h * p.tile_w, vector_dtype("int32", self.c))
            self.begin_task()
            first = e.let("first_tile", part * p.lines)
            count = tirx.min(tirx.IntImm("int32", p.lines), tiles - first)
            with e.loop("row_tile", e.let("tiles", count)) as offset:
                tile = e.let("tile", first + offset)
                for span, line in each_span(e, tile, spans, p.tile_h):
                    self.write_row(plane, block, line, span.valid)
        return Kernel(e.function(name), w.batch * self.blocks * parts)

    def begin_task(self) -> None:
        """Declare the copied lines."""
        held = lines_read(self.work, self.plan.tile_h)
        self.held_line = math.ceil(self.work.line / DOT_WIDTH) * DOT_WIDTH
        self.held_weights = not self.dot.in_halves and _fits(self.work, self.plan, self.target)
        self.rows = self.emit.local("rows", held * self.held_line * self.c, self.dot.data)
        self.write_borders(self.rows, held, self.held_line)

    def used_lines(self, valid: Sequence[Sequence[bool]]) -> list[int]:
        """Return lines of the image that are read, from the first that a tile could read."""
        taps, stride = range(self.conv.kernel[0]), self.conv.stride[0]
        return sorted({y * stride + kh for y, row in enumerate(valid) for kh in taps if row[kh]})

    def write_row(self, plane: Any, block: Any, line: Any, valid: Sequence[Sequence[bool]]) -> None:
        """Write some lines of the output; `valid` says by line which rows of the window exist."""
        w, e, c, tile = self.conv, self.emit, self.c, self.plan.tile_w
        used = self.used_lines(valid)
        top = e.let("top", line * w.stride[0] - w.padding[0])
        for read in used:
            self.copy_line(plane, top + read, self.rows, read * self.held_line * c)
        starts = self.written_starts([self.start_of(block, row) for row in valid])
        held = self._weights(block, 0) if self.held_weights else {}
        tiles: Any = math.ceil(w.out_w / tile)
        if not held and tiles > 1:
            tiles = self.hidden_count(tiles)
        with e.loop("tile", tiles) as number:
            # Halves of vectors that LLVM moves out of the loop are none that one instruction takes.
            weights = held or self._weights(block, self.hidden_number(0, number))
            column = number * tile
            if w.out_w % tile:
                column = tirx.min(column, tirx.IntImm("int32", w.out_w - tile))
            column = e.let("column", column)
            self.start_tile(starts, number)
            self._products(column, used, valid, weights)
            for y in range(self.plan.tile_h):
                accumulators = [e.load(self.acc, y * tile + x) for x in range(tile)]
                self.store_line(plane, block, line + y, column, accumulators)

    def written_starts(self, starts: list[Any]) -> Any:
        """Return what accumulators begin with, by line, or where it is for each of them.

        Two are loaded as fast as one is copied.
        """
        e, p = self.emit, self.plan
        if self.dot.in_halves or math.ceil(self.conv.out_w / p.tile_w) < FEW_TILES:
            return starts
        written = e.local("starts", p.tile_h * p.tile_w, vector_dtype("int32", self.c))
        for place in range(p.tile_h * p.tile_w):
            e.store(written, place, starts[place // p.tile_w])
        return written

    def start_tile(self, starts: Any, number: Any) -> None:
        """Write what accumulators begin with, from a place that LLVM does not know."""
        e, tile = self.emit, self.plan.tile_w
        zero: Any = 0
        if not isinstance(starts, list):
            zero = e.let("zero", hidden(0, number + self.task))
        for place in range(self.plan.tile_h * tile):
            listed = isinstance(starts, list)
            start = starts[place // tile] if listed else e.load(starts, zero + place)
            e.store(self.acc, place, start)

    def _weights(self, block: Any, base: Any) -> dict[tuple[int, int, int], Any]:
        """Load weights, by row of the window, place of the first tap and group of taps."""
        w, e, c = self.conv, self.emit, self.c
        shifts, groups = range(self.plan.shifts), range(self.work.tap_groups)
        rows = [(kh, s, group) for kh in range(w.kernel[0]) for s in shifts for group in groups]
        first = e.let("weights", block * (len(rows) * c) + base)
        return {
            row: e.let("w", e.load(self.weight, first + number * c, c))
            for number, row in enumerate(rows)
        }

    def hidden_count(self, count: int) -> Any:
        """Return a number above 0 in a way that LLVM does not see."""
        return tirx.max(tirx.IntImm("int32", count), self.task - tirx.IntImm("int32", 2**30))

    def hidden_number(self, number: int, count: Any = None) -> Any:
        """Return a number from 0 to 15 in a way that LLVM, for whom counts can be 2**31, misses."""
        zero = tirx.shift_right(self.task if count is None else count, tirx.IntImm("int32", 27))
        return tirx.max(zero, tirx.IntImm("int32", number))

    def _products(
        self,
        column: Any,
        used: Sequence[int],
        valid: Sequence[Sequence[bool]],
        weights: dict[tuple[int, int, int], Any],
    ) -> None:
        """Add all products of a tile, window by window."""
        w, e, c, tile = self.conv, self.emit, self.c, self.plan.tile_w
        shifts, stride = self.plan.shifts, w.stride[1]
        # Offsets of whole vectors are part of an instruction that loads two; others take one more.
        # So each place in a vector has an address of its own, whose distance LLVM does not see.
        bases = [
            e.let("base", wide(column * (w.stride[1] * c) + self.hidden_number(number * c)))
            for number in range(DOT_WIDTH)
        ]
        for read in used:
            rows = [(y, read - y * w.stride[0]) for y in range(len(valid))]
            rows = [(y, kh) for y, kh in rows if 0 <= kh < w.kernel[0] and valid[y][kh]]
            for place in _columns(self.work, tile, shifts):
                number = place % DOT_WIDTH
                at = bases[number] + (read * self.held_line + place - number) * c
                window = e.let("x", self.by_channel(e.load(self.rows, at, self.step)))
                for y, kh in rows:
                    for group, x in product(range(self.work.tap_groups), range(tile)):
                        first, shift = divmod(x * stride, shifts)
                        if first * shifts + DOT_WIDTH * group == place:
                            total = e.load(self.acc, y * tile + x)
                            total = self.dot.add(total, [window], [weights[kh, shift, group]])
                            e.store(self.acc, y * tile + x, total)
