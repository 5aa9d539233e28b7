"""Provide depthwise convolution of quantized values by products of int16, tap by tap.

Where no instruction sums four products of int8, a window in groups of four taps takes three
instructions for each, and has lanes that no tap fills. Here a task widens its lines once, with the
padding's columns beside them; a vector holds two columns of a block of channels, either half of it
is multiplied with a tap's weights, which a vector holds twice (see `Isa.multiply_halves`). Rows of
the window above and below the image are known, as in `depthwise_tiles`.

    weight  int16 [blocks, kh, kw, 2 * c], each tap twice.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.conv.depthwise_tiles import lines_read
from edgec.compiler.kernels.conv.depthwise_writer import (
    RING_BYTES,
    TASK_CYCLES,
    DepthwiseDecision,
    DepthwiseWriter,
    IntegerDepthwiseWorkload,
    shares,
)
from edgec.compiler.kernels.conv.windows import each_span, tile_spans
from edgec.compiler.kernels.emit.emitter import wide
from edgec.compiler.kernels.emit.epilogue import cost
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.machine_model import (
    ISSUE_WIDTH,
    STORE_INSTRUCTIONS,
    imbalance_of,
)
from edgec.compiler.kernels.vectors import constant, shuffle, vector_dtype
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.targets.target import Target

_MOST_LINES = 6
# Registers beside accumulators and a line's columns.
_HELD = 3
# To widen a column, to start a tile and a row of tiles.
_WIDEN, _TILE, _ROW = 2, 12, 40
# For an output of a tile of several lines that is wide, or has more outputs: LLVM loads all lines
# first, and spills; 2 to 8, counted in tiles of 6 and of 8 pixels.
_SPILLED, _MOST_OF_LINES = 3, 16


def words_space(workload: IntegerDepthwiseWorkload, target: Target) -> list[DepthwiseDecision]:
    """Return tiles whose accumulators and columns fit the registers."""
    conv, decisions = workload.conv, []
    if conv.kernel[1] > DOT_WIDTH * workload.tap_groups or conv.dilation != (1, 1):
        return []
    for tile_h in range(1, min(conv.out_h, _MOST_LINES) + 1):
        for tile_w in range(1, min(conv.out_w, target.vector_registers) + 1):
            held = tile_h * tile_w + _vectors(workload, tile_w) + _HELD
            if held > target.vector_registers or (tile_w % 2 and tile_w != conv.out_w):
                continue
            tiles = math.ceil(conv.out_h / tile_h)
            for lines in shares(tiles):
                size = lines_read(workload, lines * tile_h) * _held_line(workload)
                if 2 * size * target.float_lanes <= RING_BYTES:
                    decisions.append(DepthwiseDecision(tile_w, lines, tile_h, words=True))
    return decisions


def _vectors(workload: IntegerDepthwiseWorkload, tile_w: int) -> int:
    """Return vectors of two columns that a line of a tile reads."""
    conv = workload.conv
    return math.ceil(((tile_w - 1) * conv.stride[1] + conv.kernel[1]) / 2)


def _held_line(workload: IntegerDepthwiseWorkload) -> int:
    """Return columns of a widened line."""
    conv = workload.conv
    columns = (conv.out_w - 1) * conv.stride[1] + conv.kernel[1]
    return max(math.ceil(columns / 2) * 2, conv.padding[1] + conv.in_w)


def estimate_words_cycles(
    workload: IntegerDepthwiseWorkload, decision: DepthwiseDecision, target: Target
) -> float:
    """Return how long it takes where each instruction takes as long."""
    conv, high, across = workload.conv, decision.tile_h, decision.tile_w
    (taps_h, taps_w), lines = conv.kernel, min(lines_read(workload, high), conv.in_h)
    taps = high * min(taps_h, conv.in_h) * taps_w
    loads = taps / 2 + lines * _vectors(workload, across) / 2
    many = across > DOT_WIDTH or high * across > _MOST_OF_LINES
    spilled = _SPILLED if high > 1 and many else 0
    store = high * across * (1 + STORE_INSTRUCTIONS + cost(conv.epilogue) + spilled)
    tile = across * taps + loads + store + _TILE
    rows, tiles = math.ceil(conv.out_h / high), math.ceil(conv.out_w / across)
    parts = math.ceil(rows / decision.lines)
    read = min(lines_read(workload, decision.lines * high), conv.in_h)
    planes = conv.batch * math.ceil(conv.in_channels / target.float_lanes)
    instructions = rows * (tiles * tile + _ROW) + parts * read * conv.in_w * _WIDEN
    tasks = planes * parts
    spent = 2 * planes * instructions / (ISSUE_WIDTH * target.fma_units)
    return spent * imbalance_of(tasks, target) + tasks * TASK_CYCLES


def pack_words(
    workload: IntegerDepthwiseWorkload, target: Target, weight: NDArray[Any]
) -> NDArray[np.int16]:
    """Return weights int8 [channels, 1, kh, kw] in the kernel's order."""
    c = target.float_lanes
    channels, _, kh, kw = weight.shape
    padded = np.zeros((math.ceil(channels / c) * c, kh, kw), np.int16)
    padded[:channels] = weight[:, 0]
    blocks = padded.reshape(-1, c, kh, kw).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(np.concatenate([blocks, blocks], axis=-1))


class DepthwiseWords(DepthwiseWriter):
    """Multiplies taps one by one."""

    def declare_weight(self) -> Any:
        """Return the parameter of weights, each tap twice."""
        size = self.blocks * math.prod(self.conv.kernel) * 2 * self.c
        return self.emit.buffer("weight", size, "int16")

    def kernel(self, name: str) -> Kernel:
        """Return the finished kernel."""
        w, e, p, c = self.conv, self.emit, self.plan, self.c
        spans = tile_spans(w.window(0), p.tile_h)
        tiles = sum(len(span.starts) for span in spans)
        parts = math.ceil(tiles / p.lines)
        self.held_line = _held_line(self.work)
        held = min(w.in_h, lines_read(self.work, p.lines * p.tile_h))
        with e.tasks() as task:
            part = e.let("part", tirx.floormod(task, parts))
            plane = e.let("plane", tirx.floordiv(task, parts))
            block = e.let("block", tirx.floormod(plane, self.blocks))
            self.lines = e.local("lines", held * self.held_line * c, "int16")
            self.acc = e.local("acc", p.tile_h * p.tile_w, vector_dtype("int32", c))
            first = e.let("first_tile", part * p.lines)
            count = tirx.min(tirx.IntImm("int32", p.lines), tiles - first)
            # The last tile overlaps the one before, so a part can begin above its first tile.
            last_start = w.out_h - p.tile_h
            start = tirx.min(first * p.tile_h, tirx.IntImm("int32", last_start))
            top = start * w.stride[0] - w.padding[0]
            highest = tirx.max(tirx.min(top, w.in_h - held), tirx.IntImm("int32", 0))
            self.highest = e.let("highest", highest)
            self._widen(plane, held)
            with e.loop("row_tile", e.let("tiles", count)) as offset:
                tile = e.let("tile", first + offset)
                for span, line in each_span(e, tile, spans, p.tile_h):
                    self._row_of_tiles(plane, block, line, span.valid)
        return Kernel(e.function(name), w.batch * self.blocks * parts)

    def _widen(self, plane: Any, held: int) -> None:
        """Write lines of the image from `highest` on, with the padding's columns beside them."""
        w, e, c = self.conv, self.emit, self.c
        left = w.padding[1]
        right = min(left + w.in_w, self.held_line)
        padding = constant(self.work.border, "int16", c)
        wide_columns = (right - left) // DOT_WIDTH
        with e.loop("line", held) as line:
            to = e.let("line_to", line * (self.held_line * c))
            source = e.let("from", (plane * w.in_h + self.highest + line) * w.in_w * c)
            for begin, past in ((0, min(left, self.held_line)), (right, self.held_line)):
                for column in range(begin, past):
                    e.store(self.lines, to + column * c, padding)
            with e.loop("columns", max(0, wide_columns), wide=True) as number:
                values = e.let("four", e.load(self.data, source + number * self.step, self.step))
                for half in range(2):
                    eight = shuffle([values], range(8 * half, 8 * half + 8))
                    at = to + left * c + number * self.step + 8 * half
                    e.store(self.lines, at, tirx.Cast("int16x8", eight))
            for column in range(wide_columns * DOT_WIDTH, right - left):
                value = e.load(self.data, source + column * c, c)
                at = to + (left + column) * c
                e.store(self.lines, at, tirx.Cast(vector_dtype("int16", c), value))

    def _row_of_tiles(
        self, plane: Any, block: Any, line: Any, valid: Sequence[Sequence[bool]]
    ) -> None:
        """Write some lines of the output; `valid` says by line which rows of the window exist."""
        w, e, c, tile = self.conv, self.emit, self.c, self.plan.tile_w
        top = e.let("top", line * w.stride[0] - w.padding[0] - self.highest)
        starts = [self.start_of(block, row) for row in valid]
        base = e.let("weights", wide(block * (math.prod(w.kernel) * 2 * c)))
        with e.loop("tile", math.ceil(w.out_w / tile)) as number:
            column = number * tile
            if w.out_w % tile:
                column = tirx.min(column, tirx.IntImm("int32", w.out_w - tile))
            column = e.let("column", column)
            for y, start in enumerate(starts):
                for x in range(tile):
                    e.store(self.acc, y * tile + x, start)
            at = e.let("at", wide((top * self.held_line + column * w.stride[1]) * c))
            self._products(at, base, valid)
            for y in range(self.plan.tile_h):
                accumulators = [e.load(self.acc, y * tile + x) for x in range(tile)]
                self.store_line(plane, block, line + y, column, accumulators)

    def _products(self, at: Any, base: Any, valid: Sequence[Sequence[bool]]) -> None:
        """Add all products of a tile, line by line."""
        w, e, c, tile = self.conv, self.emit, self.c, self.plan.tile_w
        taps_h, taps_w = w.kernel
        for read in range((len(valid) - 1) * w.stride[0] + taps_h):
            rows = [(y, read - y * w.stride[0]) for y in range(len(valid))]
            rows = [(y, kh) for y, kh in rows if 0 <= kh < taps_h and valid[y][kh]]
            if not rows:
                continue
            vectors = [
                e.let("x", e.load(self.lines, at + (read * self.held_line + 2 * pair) * c, 2 * c))
                for pair in range(_vectors(self.work, tile))
            ]
            for y, kh in rows:
                for kw in range(taps_w):
                    place = base + (kh * taps_w + kw) * (2 * c)
                    weights = e.let("w", e.load(self.weight, place, 2 * c))
                    for x in range(tile):
                        pair, half = divmod(x * w.stride[1] + kw, 2)
                        product = e.isa.multiply_halves(vectors[pair], weights, half)
                        index = y * tile + x
                        e.store(self.acc, index, e.load(self.acc, index) + product)
