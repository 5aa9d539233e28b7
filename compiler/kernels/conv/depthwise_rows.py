"""Provide depthwise convolution of quantized values: groups of four taps, all rows written out.

Each task rewrites its lines once: a column becomes, for each channel of a block, its code and those
of the three columns to the right, padding included. A tile has several lines of the output, each
of which multiplies what is read once with its row of the window. Lines that are in the padding for
all tiles are left out.

    weight  as of `integer_depthwise`.
"""

import itertools
import math
from contextlib import ExitStack
from functools import lru_cache
from typing import Any

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
from edgec.compiler.kernels.conv.windows import Window
from edgec.compiler.kernels.emit.emitter import wide
from edgec.compiler.kernels.emit.epilogue import cost
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.machine_model import (
    ISSUE_WIDTH,
    STORE_INSTRUCTIONS,
    imbalance_of,
)
from edgec.compiler.kernels.isa import dot_of
from edgec.compiler.kernels.vectors import constant, vector_dtype
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.targets.target import Target

_MOST_LINES = 4
# Registers for a product, and for ones; and vectors of a tile that are in registers or not far.
_HELD, _MOST_HELD = 2, 24
# To rewrite a column, to start to rewrite a line, to start a tile and a row of tiles.
_REWRITE, _FRESH, _TILE, _LINE = 4, 20, 10, 20
# With several lines in a tile some of what is loaded is moved to memory and back.
_MOVED = 1.1
# Share of lines in the image, from which on asking takes longer than multiplying padding.
_MOSTLY_INSIDE = 0.95
# Where less than four vectors are stored at once: for one alone, for two, for one of four again.
_ALONE, _PAIR, _OVERLAP = 6, 4, 4


def rows_space(workload: IntegerDepthwiseWorkload, target: Target) -> list[DepthwiseDecision]:
    """Return tiles whose sums fit the registers."""
    conv, dot, decisions = workload.conv, dot_of(target), []
    if dot is None or dot.exact_fallback is None or target.float_lanes != 8:
        return []
    size = workload.columns * target.float_lanes * DOT_WIDTH
    for tile_h in range(1, min(conv.out_h, _MOST_LINES) + 1):
        for tile_w in range(1, min(conv.out_w, _MOST_HELD // tile_h) + 1):
            if _held(workload, tile_h, tile_w) > _MOST_HELD:
                break
            for lines in shares(math.ceil(conv.out_h / tile_h)):
                if lines_read(workload, min(conv.out_h, lines * tile_h)) * size <= RING_BYTES:
                    decisions.append(DepthwiseDecision(tile_w, lines, tile_h, rows=True))
    return decisions


def _held(workload: IntegerDepthwiseWorkload, tile_h: int, tile_w: int) -> int:
    """Return accumulators, values of a row of the window, and its weights for each line."""
    return tile_h * tile_w + (1 + tile_h) * workload.together + _HELD


def _present(workload: IntegerDepthwiseWorkload, tile_h: int) -> list[int]:
    """Return the lines that a tile reads which are in the image for some tile."""
    conv = workload.conv
    starts = [*range(0, conv.out_h - tile_h, tile_h), conv.out_h - tile_h]
    tops = [start * conv.stride[0] - conv.padding[0] for start in starts]
    read = range(lines_read(workload, tile_h))
    return [line for line in read if any(0 <= top + line < conv.in_h for top in tops)]


@lru_cache(maxsize=256)
def _inside(window: Window) -> float:
    """Return the share of the lines of all windows that are in the image."""
    places = itertools.product(range(window.out), range(window.taps))
    inside = sum(window.inside(line, row) for line, row in places)
    return inside / (window.out * window.taps)


def _skips(workload: IntegerDepthwiseWorkload, tile_h: int) -> bool:
    """Return whether lines of padding are left out tile by tile."""
    return (
        tile_h == 1 and not workload.has_rows and _inside(workload.conv.window(0)) < _MOSTLY_INSIDE
    )


def estimate_rows_cycles(
    workload: IntegerDepthwiseWorkload, decision: DepthwiseDecision, target: Target
) -> float:
    """Return how long it takes where each instruction takes as long."""
    conv, dot, high, across = workload.conv, dot_of(target), decision.tile_h, decision.tile_w
    assert dot is not None
    groups, together = workload.tap_groups, workload.together
    # Of a row of the window: each product that is added in int16 saves an instruction.
    row = groups * dot.instructions - (groups - math.ceil(groups / together))
    lines = _present(workload, high)
    rows = sum(
        0 <= line - y * conv.stride[0] < conv.kernel[0] for line in lines for y in range(high)
    )
    products = rows * (across * row + groups) * (_MOVED if high > 1 else 1)
    if _skips(workload, high):
        products *= _inside(conv.window(0))
    # Accumulators that are in no register.
    over = max(0, _held(workload, high, across) - target.vector_registers)
    products += 2 * rows * min(across, over / high)
    store = across * (STORE_INSTRUCTIONS + cost(conv.epilogue))
    store += (
        _OVERLAP
        if across > 3 and across % 4 == 3
        else across % 2 * _ALONE + across // 2 % 2 * _PAIR
    )
    tile = _TILE + products + len(lines) * across * groups + high * store
    steps, tiles = math.ceil(conv.out_h / high), math.ceil(conv.out_w / across)
    parts = math.ceil(steps / decision.lines)
    fresh = parts * lines_read(workload, min(conv.out_h, decision.lines * high))
    line = workload.columns * _REWRITE + conv.in_w / 2 + _FRESH
    spent = steps * (tiles * tile + _LINE) + fresh * line
    planes = conv.batch * math.ceil(conv.in_channels / target.float_lanes)
    tasks = planes * parts
    return planes * spent / ISSUE_WIDTH * imbalance_of(tasks, target) + tasks * TASK_CYCLES


class DepthwiseRows(DepthwiseWriter):
    """Multiplies all rows of a tile of lines."""

    def kernel(self, name: str) -> Kernel:
        """Return the finished kernel."""
        w, e, p, c = self.conv, self.emit, self.plan, self.c
        tiles = math.ceil(w.out_h / p.tile_h)
        parts = math.ceil(tiles / p.lines)
        self.line_size = self.work.columns * c
        self.present = _present(self.work, p.tile_h)
        self.skips = _skips(self.work, p.tile_h)
        last = tirx.IntImm("int32", w.out_h - p.tile_h)
        with e.tasks() as task:
            part = e.let("part", tirx.floormod(task, parts))
            plane = e.let("plane", tirx.floordiv(task, parts))
            block = e.let("block", tirx.floormod(plane, self.blocks))
            held = lines_read(self.work, min(w.out_h, p.lines * p.tile_h))
            self.lines = e.scratch("lines", held * self.line_size, "int32")
            # The last line may be written a few columns too far.
            size = held * self.work.line * c + self.step
            self.plain = e.scratch("plain", size, self.dot.data)
            self.acc = e.local("acc", p.tile_h * p.tile_w, vector_dtype("int32", c))
            first = e.let("first", part * p.lines)
            count = e.let("count", tirx.min(tirx.IntImm("int32", p.lines), tiles - first))
            # The last tile overlaps the one before, so a part can begin above its first tile.
            begin = e.let("begin", tirx.min(first * p.tile_h, last))
            past = tirx.min((first + count) * p.tile_h, tirx.IntImm("int32", w.out_h))
            self.top = e.let("top", begin * w.stride[0])
            self._rewrite(plane, (past - 1 - begin) * w.stride[0] + w.kernel[0])
            starts = []
            for y in range(p.tile_h):
                lines = [y * w.stride[0] + row for row in range(w.kernel[0])]
                starts.append(self.start_of(block, [line in self.present for line in lines]))
            self.base = e.let("weights", wide(block * (w.kernel[0] * self.work.tap_groups * c)))
            with e.loop("row_tile", count) as offset:
                line = e.let("line", tirx.min((first + offset) * p.tile_h, last))
                self._row_of_tiles(plane, block, line, starts)
        return Kernel(e.function(name), w.batch * self.blocks * parts)

    def _rewrite(self, plane: Any, read: Any) -> None:
        """Rewrite the lines of a task, those of padding too unless no tile multiplies them."""
        w, e, c = self.conv, self.emit, self.c
        columns = self.work.columns
        first, count = 0, e.let("read", read)
        if self.plan.tile_h == w.out_h:
            first, count = self.present[0], self.present[-1] - self.present[0] + 1
        # Lines are read after all are written, and what was written is no longer on its way.
        for copying in (True, False):
            with e.loop("line", count, first) as line:
                source = e.let("source", self.top + line - w.padding[0])
                at = e.let("from", wide(line * (self.work.line * c)))
                inside = tirx.all(source >= 0, source < w.in_h)
                if copying:
                    with e.branch(inside):
                        self._copy(plane, source, at)
                    continue
                to = e.let("to", wide(line * self.line_size))
                with e.branch(inside), e.loop("column", columns, wide=True) as column:
                    place = at + column * (w.stride[1] * c)
                    quantized = self.by_channel(e.load(self.plain, place, self.step))
                    e.store(self.lines, to + column * c, quantized)
                if first == 0 and not self.skips:
                    outside = self.dot.repeated(self.work.border, c)
                    with (
                        e.branch(tirx.any(source < 0, source >= w.in_h)),
                        e.loop("column", columns, wide=True) as column,
                    ):
                        e.store(self.lines, to + column * c, outside)

    def _copy(self, plane: Any, source: Any, to: Any) -> None:
        """Copy a line of the image, with the padding's columns beside it."""
        w, e, c, step = self.conv, self.emit, self.c, self.step
        left, right = self.inside()
        padding = constant(self.work.border, self.dot.data, step)
        # What is written too far is written again: by the image, by the next line.
        for begin, past in ((0, left), (right, self.work.line)):
            for column in range(begin, past, DOT_WIDTH):
                e.store(self.plain, to + column * c, padding)
        at = e.let("image", wide((plane * w.in_h + source) * w.in_w * c))
        inside, size = to + left * c, (right - left) * c
        with e.loop("columns", size // step, wide=True) as turn:
            e.store(self.plain, inside + turn * step, e.load(self.data, at + turn * step, step))
        whole = size // step * step
        if whole and whole < size:
            last = e.load(self.data, at + (size - step), step)
            e.store(self.plain, inside + (size - step), last)
        for place in range(0 if whole else size // c):
            value = e.load(self.data, at + place * c, c)
            e.store(self.plain, inside + place * c, value)

    def _row_of_tiles(self, plane: Any, block: Any, line: Any, starts: list[Any]) -> None:
        """Write some lines of the output."""
        w, e, tile = self.conv, self.emit, self.plan.tile_w
        top = line * w.stride[0] - self.top
        with e.loop("tile", math.ceil(w.out_w / tile)) as number:
            column = number * tile
            if w.out_w % tile:
                column = tirx.min(column, tirx.IntImm("int32", w.out_w - tile))
            column = e.let("column", column)
            at = e.let("at", wide(top * self.line_size + column * self.c))
            for y, start in enumerate(starts):
                for x in range(tile):
                    e.store(self.acc, y * tile + x, start)
            for read in self.present:
                source = line * w.stride[0] + (read - w.padding[0])
                with ExitStack() as stack:
                    if self.skips:
                        stack.enter_context(e.branch(tirx.all(source >= 0, source < w.in_h)))
                    self._products(at + read * self.line_size, read)
            for y in range(self.plan.tile_h):
                accumulators = [e.load(self.acc, y * tile + x) for x in range(tile)]
                self.store_line(plane, block, line + y, column, accumulators)

    def _products(self, at: Any, read: int) -> None:
        """Add the products of a line with the rows of the window that it is in."""
        w, e, c, tile = self.conv, self.emit, self.c, self.plan.tile_w
        groups, together = self.work.tap_groups, self.work.together
        rows = [(y, read - y * w.stride[0]) for y in range(self.plan.tile_h)]
        rows = [(y, row) for y, row in rows if 0 <= row < w.kernel[0]]
        for first in range(0, groups, together):
            taken = range(first, min(first + together, groups))
            weights = {
                row: [
                    e.let("w", e.load(self.weight, self.base + (row * groups + g) * c, c))
                    for g in taken
                ]
                for _, row in rows
            }
            for x in range(tile):
                places = [at + (x + group * self.work.spread) * c for group in taken]
                values = [e.let("x", e.load(self.lines, place, c)) for place in places]
                for y, row in rows:
                    place = y * tile + x
                    total = self.dot.add(e.load(self.acc, place), values, weights[row])
                    e.store(self.acc, place, total)
