"""Provide depthwise convolution of quantized values in tiles, four taps of a column in each lane.

As in `depthwise_tiles`, a vector of bytes is what a window has of a block of channels, but here the
four taps of a channel are those of four lines. All taps of a row of the window, and all lines of
the tile, multiply the same vectors, so a vector is made once for many products; in return there
are other weights for every distance of a line of the tile from the first of four lines.

Lines that a row of tiles reads are rewritten once: of every four that lie in the image a column
becomes one vector; LLVM stores four of them by one instruction where there is one. Lines below the
image are zeros in such a vector; what they count is part of what accumulators begin with.

    weight      int32 [blocks, kh + 3, kw, c], each lane the taps of lines k - 3 to k.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.conv.depthwise_tiles import TiledDepthwise, lines_read
from edgec.compiler.kernels.conv.depthwise_writer import (
    RING_BYTES,
    TASK_CYCLES,
    DepthwiseDecision,
    IntegerDepthwiseWorkload,
    shares,
)
from edgec.compiler.kernels.emit.emitter import wide
from edgec.compiler.kernels.emit.epilogue import cost
from edgec.compiler.kernels.emit.machine_model import (
    ISSUE_WIDTH,
    STORE_INSTRUCTIONS,
    imbalance_of,
)
from edgec.compiler.kernels.isa import dot_of
from edgec.compiler.kernels.vectors import constant, shuffle
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.targets.target import Target

_MOST_LINES = 6
# Registers beside accumulators and vectors of data.
_BESIDE = 3
# To rewrite four columns of four lines, to start a tile and a row of tiles.
_REWRITE, _TILE, _ROW = 8, 12, 60


def columns_space(workload: IntegerDepthwiseWorkload, target: Target) -> list[DepthwiseDecision]:
    """Return tiles whose accumulators and vectors of data fit the registers."""
    conv, dot, decisions = workload.conv, dot_of(target), list[DepthwiseDecision]()
    together = conv.dilation == (1, 1) and conv.stride[0] <= conv.kernel[0]
    if dot is None or dot.in_halves or conv.in_w < DOT_WIDTH or not together:
        return decisions
    widths = [w for w in (4, 8, 12, 16) if w <= conv.out_w] or [conv.out_w]
    for tile_h in range(1, min(conv.out_h, _MOST_LINES) + 1):
        held = _groups(min(lines_read(workload, tile_h), conv.in_h)) * _held_line(workload)
        if held * DOT_WIDTH * target.float_lanes > RING_BYTES:
            continue
        counts = shares(math.ceil(conv.out_h / tile_h))
        decisions += [
            DepthwiseDecision(tile_w, count, tile_h, columns=True)
            for tile_w in widths
            if tile_h * tile_w + _read(workload, tile_w) + _BESIDE <= target.vector_registers
            for count in counts
        ]
    return decisions


def _groups(lines: int) -> int:
    """Return groups of four lines."""
    return math.ceil(lines / DOT_WIDTH)


def _read(workload: IntegerDepthwiseWorkload, tile_w: int) -> int:
    """Return columns that a tile reads."""
    conv = workload.conv
    return (tile_w - 1) * conv.stride[1] + conv.kernel[1]


def _held_line(workload: IntegerDepthwiseWorkload) -> int:
    """Return columns of a rewritten line, with the padding's."""
    conv = workload.conv
    return max(_read(workload, conv.out_w), conv.padding[1] + conv.in_w)


def estimate_columns_cycles(
    workload: IntegerDepthwiseWorkload, decision: DepthwiseDecision, target: Target
) -> float:
    """Return how long it takes where each instruction takes as long."""
    conv, dot = workload.conv, dot_of(target)
    assert dot is not None
    high, across, taps = decision.tile_h, decision.tile_w, conv.kernel[1]
    lines = min(lines_read(workload, high), conv.in_h)
    # Where the window is higher than the image, lines begin above it.
    above = max(0, min(conv.padding[0], lines_read(workload, high) - lines))
    firsts = [DOT_WIDTH * group + above - y * conv.stride[0] for group in range(_groups(lines))
              for y in range(high)]  # fmt: skip
    weights = taps * sum(-DOT_WIDTH < first < conv.kernel[0] for first in firsts)
    data = _groups(lines) * _read(workload, across)
    store = high * across * (1 + STORE_INSTRUCTIONS + cost(conv.epilogue))
    tile = weights * across * dot.instructions + (weights + data) / 2 + store + _TILE
    rows, tiles = math.ceil(conv.out_h / high), math.ceil(conv.out_w / across)
    rewriting = _groups(lines) * math.ceil(conv.in_w / DOT_WIDTH) * _REWRITE
    planes = conv.batch * math.ceil(conv.in_channels / target.float_lanes)
    tasks = planes * math.ceil(rows / decision.lines)
    spent = 2 * planes * rows * (tiles * tile + rewriting + _ROW) / (ISSUE_WIDTH * target.fma_units)
    return spent * imbalance_of(tasks, target) + tasks * TASK_CYCLES


def pack_columns(
    workload: IntegerDepthwiseWorkload, target: Target, weight: NDArray[Any]
) -> NDArray[Any]:
    """Return weights int8 [channels, 1, kh, kw] in the kernel's order."""
    c, dot = target.float_lanes, dot_of(target)
    assert dot is not None
    channels, _, kh, kw = weight.shape
    blocks = math.ceil(channels / c)
    before = DOT_WIDTH - 1
    padded = np.zeros((blocks * c, kh + 2 * before, kw), np.int8)
    padded[:channels, before : before + kh] = weight[:, 0]
    taps = [padded[:, first : first + DOT_WIDTH] for first in range(kh + before)]
    four = np.stack(taps).reshape(kh + before, blocks, c, DOT_WIDTH, kw)
    ordered = np.ascontiguousarray(four.transpose(1, 0, 4, 2, 3))
    return dot.arrange(ordered.view(np.int32)[..., 0], c)


class DepthwiseColumns(TiledDepthwise):
    """Makes vectors of four lines."""

    def declare_weight(self) -> Any:
        """Return the parameter of packed weights."""
        kh, kw = self.conv.kernel
        size = self.blocks * (kh + DOT_WIDTH - 1) * kw * self.c
        return self.emit.buffer("weight", size, "int32")

    def begin_task(self) -> None:
        """Declare the rewritten lines."""
        self.held_line = _held_line(self.work)
        lines = min(lines_read(self.work, self.plan.tile_h), self.conv.in_h)
        size = _groups(lines) * self.held_line * self.step
        self.rows = self.emit.local("rows", size, self.dot.data)

    def write_row(self, plane: Any, block: Any, line: Any, valid: Sequence[Sequence[bool]]) -> None:
        """Write some lines of the output; `valid` says by line which rows of the window exist."""
        w, e, c, tile = self.conv, self.emit, self.c, self.plan.tile_w
        used = self.used_lines(valid)
        top = e.let("top", line * w.stride[0] - w.padding[0])
        for group, first in enumerate(used[::DOT_WIDTH]):
            self._rewrite(plane, top + first, group, min(DOT_WIDTH, used[-1] + 1 - first))
        starts = self.written_starts([self.start_of(block, row) for row in valid])
        tiles: Any = math.ceil(w.out_w / tile)
        if tiles > 1:
            tiles = self.hidden_count(tiles)
        with e.loop("tile", tiles) as number:
            column = number * tile
            if w.out_w % tile:
                column = tirx.min(column, tirx.IntImm("int32", w.out_w - tile))
            column = e.let("column", column)
            self.start_tile(starts, number)
            kh, kw = w.kernel
            # Weights that LLVM moves out of the loop would be spilled.
            size = (kh + DOT_WIDTH - 1) * kw * c
            weights = e.let("weights", wide(block * size + self.hidden_number(0, number)))
            for group, first in enumerate(used[::DOT_WIDTH]):
                self._add_group(column, weights, group, first)
            for y in range(self.plan.tile_h):
                accumulators = [e.load(self.acc, y * tile + x) for x in range(tile)]
                self.store_line(plane, block, line + y, column, accumulators)

    def _rewrite(self, plane: Any, source: Any, group: int, lines: int) -> None:
        """Write vectors of up to four lines of the image, and of the padding beside them."""
        w, e, c, step = self.conv, self.emit, self.c, self.step
        to, left = group * self.held_line * step, w.padding[1]
        byte = int(np.array(self.work.border).astype(np.uint8))
        bits = int.from_bytes(bytes([byte] * lines).ljust(DOT_WIDTH, b"\0"), "little", signed=True)
        padding = tirx.reinterpret(f"{self.dot.data}x{step}", constant(bits, "int32", c))
        right = left + w.in_w
        for begin, past in ((0, left), (right, self.held_line)):
            for column in range(begin, past):
                e.store(self.rows, to + column * step, padding)
        first = e.let("from", wide((plane * w.in_h + source) * w.in_w * c))
        zeros = constant(0, self.dot.data, step)
        order = [line * step + place for place in range(step) for line in range(DOT_WIDTH)]
        with e.loop("columns", math.ceil(w.in_w / DOT_WIDTH), wide=True) as number:
            column = number * DOT_WIDTH
            if w.in_w % DOT_WIDTH:
                last = tirx.IntImm("int64", w.in_w - DOT_WIDTH)
                column = e.let("column", tirx.min(column, last))
            read = [
                e.let("line", e.load(self.data, first + (n * w.in_w + column) * c, step))
                for n in range(lines)
            ]
            four = [*read, *[zeros] * (DOT_WIDTH - lines)]
            e.store(self.rows, to + (left + column) * step, shuffle(four, order))

    def _add_group(self, column: Any, weights: Any, group: int, first: int) -> None:
        """Add the products of four lines, `first` of which is so far below the tile's first."""
        w, e, c, tile = self.conv, self.emit, self.c, self.plan.tile_w
        (kh, kw), step = w.kernel, self.step
        at = e.let("at", wide((group * self.held_line + column * w.stride[1]) * step))
        vectors = [
            e.let("x", tirx.reinterpret(f"int32x{c}", e.load(self.rows, at + place * step, step)))
            for place in range(_read(self.work, tile))
        ]
        for y in range(self.plan.tile_h):
            above = first - y * w.stride[0]
            if not -DOT_WIDTH < above < kh:
                continue
            for tap in range(kw):
                place = ((above + DOT_WIDTH - 1) * kw + tap) * c
                vector = e.let("w", e.load(self.weight, weights + place, c))
                for x in range(tile):
                    total = e.load(self.acc, y * tile + x)
                    value = vectors[x * w.stride[1] + tap]
                    e.store(self.acc, y * tile + x, self.dot.add(total, [value], [vector]))
