"""Provide depthwise convolution of quantized values by products of two taps, summed in int16.

Where an instruction adds two products of bytes in int16 and none adds four in int32, sums stay in
int16 for as long as the weights allow. Each line is rewritten once: a column becomes, for each
channel of a block, its code and that of the column to the right. Two neighbouring windows are one
vector, which is multiplied by two taps; lines that windows cover are in a ring, padding included.

Sums of int16 wrap. Each begins with minus the middle of what its products can add up to, so that it
is in range at the end; two sums at a time are added in int32. `IntegerDepthwiseWorkload.sums` says
which products the weights allow to be added.

    weight  int32 [blocks, kh * ceil(kw / 2) + sums + 1, c]: pairs of taps, int8, each twice; what
            sums of several products begin with, int16, each twice; minus the sum of these.
"""

import math
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
from edgec.compiler.kernels.emit.emitter import wide
from edgec.compiler.kernels.emit.epilogue import cost
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.machine_model import (
    ISSUE_WIDTH,
    STORE_INSTRUCTIONS,
    imbalance_of,
)
from edgec.compiler.kernels.emit.requantize import requantizes, store_requantized
from edgec.compiler.kernels.isa import isa_of
from edgec.compiler.kernels.vectors import constant, reinterpret, shuffle, wrapping
from edgec.compiler.numerics.pair_sums import pair_products
from edgec.targets.target import Target

# Channels of a block, windows of a vector.
_LANES, _WINDOWS = 8, 2
_COLUMN = 2 * _LANES
# Vectors whose sums are in registers, two for each.
_MOST_VECTORS = 4
# For a product, with the moves of sums that are in no register: counted in loops of 3 and 5 lines.
_PRODUCT = 2.5
# To rewrite a column, to widen two sums, to start a tile and some lines.
_REWRITE, _WIDEN, _TILE, _LINE = 3, 6, 8, 60
# Share of the lines of windows that are in the image, from which on multiplying padding too is
# faster. Measured on a Zen 4: windows of 5 lines take 1.48 times as long at 2 lines of output (a
# share of 0.4), 1.13 at 3 lines (0.6), 0.87 at 7 (0.83).
_LEAST_PRESENT = 0.75


def pairs_space(workload: IntegerDepthwiseWorkload, target: Target) -> list[DepthwiseDecision]:
    """Return tiles whose sums fit the registers; none where the kernel has no such window."""
    conv, decisions = workload.conv, []
    has = isa_of(target).byte_pairs() is not None and target.float_lanes == _LANES
    if not has or not workload.sums or conv.stride[1] > 2 or conv.out_w < _WINDOWS:
        return []
    if _present(workload) < _LEAST_PRESENT:
        return []
    for tile_h in range(1, min(conv.out_h, 2) + 1):
        ring = _rows(workload, tile_h) * _columns(workload) * _COLUMN
        if ring > RING_BYTES:
            continue
        for vectors in range(1, _MOST_VECTORS // tile_h + 1):
            if _WINDOWS * vectors > conv.out_w:
                continue
            tiles = math.ceil(conv.out_h / tile_h)
            for lines in shares(tiles):
                decisions.append(DepthwiseDecision(_WINDOWS * vectors, lines, tile_h, pairs=True))
    return decisions


def _present(workload: IntegerDepthwiseWorkload) -> float:
    """Return the share of the lines of all windows that are no padding."""
    conv = workload.conv
    lines = np.arange(conv.out_h)[:, None] * conv.stride[0] - conv.padding[0]
    taps = lines + np.arange(conv.kernel[0]) * conv.dilation[0]
    return float(np.mean((taps >= 0) & (taps < conv.in_h)))


def _rows(workload: IntegerDepthwiseWorkload, tile_h: int) -> int:
    """Return lines of the ring."""
    return (tile_h - 1) * workload.conv.stride[0] + workload.conv.kernel[0]


def _columns(workload: IntegerDepthwiseWorkload) -> int:
    """Return rewritten columns of a line."""
    conv = workload.conv
    return conv.out_w + (math.ceil(conv.kernel[1] / 2) - 1) * (2 // conv.stride[1])


def estimate_pairs_cycles(
    workload: IntegerDepthwiseWorkload, decision: DepthwiseDecision, target: Target
) -> float:
    """Return how long it takes where each instruction takes as long."""
    conv, high, across = workload.conv, decision.tile_h, decision.tile_w
    vectors = across // _WINDOWS
    products = conv.kernel[0] * math.ceil(conv.kernel[1] / 2)
    rows = _rows(workload, high)
    loads = (rows * vectors + high * conv.kernel[0]) * math.ceil(conv.kernel[1] / 2)
    store = (
        2 * STORE_INSTRUCTIONS + cost(conv.epilogue) + math.ceil(len(workload.sums) / 2) * _WIDEN
    )
    tile = high * vectors * (_PRODUCT * products + store) + loads + _TILE
    tiles, steps = math.ceil(conv.out_w / across), math.ceil(conv.out_h / high)
    parts = math.ceil(steps / decision.lines)
    fresh = steps * min(rows, high * conv.stride[0]) + parts * max(0, rows - high * conv.stride[0])
    planes = conv.batch * math.ceil(conv.in_channels / _LANES)
    spent = steps * (tiles * tile + _LINE) + fresh * _columns(workload) * _REWRITE
    tasks = planes * parts
    return planes * spent / ISSUE_WIDTH * imbalance_of(tasks, target) + tasks * TASK_CYCLES


def pack_pairs(workload: IntegerDepthwiseWorkload, weight: NDArray[Any]) -> NDArray[np.int32]:
    """Return weights int8 [channels, 1, kh, kw] in the kernel's order."""
    channels = math.ceil(len(weight) / _LANES) * _LANES
    padded = np.zeros((channels, *weight.shape[1:]), np.int8)
    padded[: len(weight)] = weight
    pairs = pair_products(padded)
    products = pairs.shape[1]
    # [blocks, products, twice, c, 2]
    taps = pairs.reshape(-1, _LANES, products, 2).transpose(0, 2, 1, 3)[:, :, None]
    taps = np.repeat(taps, 2, axis=2)
    middles = np.zeros((channels, len(workload.sums)), np.int64)
    for number, taken in enumerate(workload.sums):
        if len(taken) > 1:
            middles[:, number] = 255 * pairs[:, taken].astype(np.int64).sum(axis=(1, 2)) // 2
    begin = (-middles).astype(np.int16).reshape(-1, _LANES, middles.shape[1]).transpose(0, 2, 1)
    begin = np.repeat(begin[:, :, None], 2, axis=2)
    back = middles.sum(axis=1).astype(np.int32)
    blocks = channels // _LANES
    parts = [np.ascontiguousarray(part).reshape(blocks, -1) for part in (taps, begin, back)]
    return np.concatenate([part.view(np.int32) for part in parts], axis=1)


class DepthwisePairs(DepthwiseWriter):
    """Multiplies two taps at a time."""

    def declare_weight(self) -> Any:
        """Return the parameter of packed weights."""
        w = self.conv
        self.taken = math.ceil(w.kernel[1] / 2)
        self.products = w.kernel[0] * self.taken
        self.block_size = (self.products + len(self.work.sums) + 1) * _LANES
        return self.emit.buffer("weight", self.blocks * self.block_size, "int32")

    def kernel(self, name: str) -> Kernel:
        """Return the finished kernel."""
        w, e, p = self.conv, self.emit, self.plan
        pairs = e.isa.byte_pairs()
        assert pairs is not None
        self.pairs = pairs
        self.rows, self.columns = _rows(self.work, p.tile_h), _columns(self.work)
        steps = math.ceil(w.out_h / p.tile_h)
        parts = math.ceil(steps / p.lines)
        with e.tasks() as task:
            part = e.let("part", tirx.floormod(task, parts))
            plane = e.let("plane", tirx.floordiv(task, parts))
            block = e.let("block", tirx.floormod(plane, self.blocks))
            self.ring = e.scratch("ring", self.rows * self.columns * _COLUMN, self.dot.data)
            kind = f"int16x{_COLUMN}"
            vectors = p.tile_h * p.tile_w // _WINDOWS
            self.acc = e.local("acc", len(self.work.sums) * vectors, kind)
            self.total = e.local("total", 2 * vectors, f"int32x{_LANES}")
            base = self.base = e.let("weights", wide(block * self.block_size))
            last = base + (self.block_size - _LANES)
            bias = e.load(self.bias, block * _LANES, _LANES) + e.load(self.weight, last, _LANES)
            bias = e.let("bias", bias)
            self.start = [
                e.let("start", shuffle([bias], [*range(half, half + 4)] * 2)) for half in (0, 4)
            ]
            first = e.let("first", part * p.lines)
            count = tirx.min(tirx.IntImm("int32", p.lines), steps - first)
            with e.loop("step", e.let("steps", count)) as offset:
                line: Any = (first + offset) * p.tile_h
                top: Any = line * w.stride[0]
                known = e.let("known", top - p.tile_h * w.stride[0] + self.rows)
                if w.out_h % p.tile_h:
                    line = tirx.min(line, tirx.IntImm("int32", w.out_h - p.tile_h))
                line = e.let("line", line)
                top = e.let("top", line * w.stride[0])
                begin = e.let("begin", tirx.Select(offset == 0, top, tirx.max(known, top)))
                with e.loop("fresh", top + self.rows - begin, begin) as place:
                    self._rewrite(plane, place)
                self._line(plane, block, line, top)
        return Kernel(e.function(name), w.batch * self.blocks * parts)

    def _slot(self, place: Any) -> Any:
        """Return where the ring has a line, counted from the first in the padding."""
        slot = tirx.floormod(place, tirx.IntImm("int32", self.rows))
        return self.emit.let("slot", wide(slot * (self.columns * _COLUMN)))

    def _rewrite(self, plane: Any, place: Any) -> None:
        """Write a line of the input into the ring."""
        w, e = self.conv, self.emit
        to = self._slot(place)
        source = e.let("source", place - w.padding[0])
        outside = constant(self.work.border, self.dot.data, _COLUMN)
        with (
            e.branch(tirx.any(source < 0, source >= w.in_h)),
            e.loop("column", self.columns, wide=True) as column,
        ):
            e.store(self.ring, to + column * _COLUMN, outside)
        with e.branch(tirx.all(source >= 0, source < w.in_h)):
            start = e.let("from", wide((plane * w.in_h + source) * w.in_w * _LANES))
            self._rewrite_inside(start, to)

    def _rewrite_inside(self, start: Any, to: Any) -> None:
        """Write a line of the image; two columns at a time where four are inside."""
        w, e, step = self.conv, self.emit, self.conv.stride[1]
        left = w.padding[1]
        # Column i of the ring has columns i * step - left and the one after that of the image.
        first = max(0, min(self.columns, math.ceil(left / step)))
        # Four columns are read for two.
        past = max(first, min(self.columns, (w.in_w - 4 + left) // step + 2))
        twos = (past - first) // 2
        by_two = [lane + 8 * half for lane in range(8) for half in (0, 1)]
        with e.loop("two", twos, wide=True) as number:
            at = start + (first * step - left) * _LANES + number * (2 * step * _LANES)
            to_two = to + first * _COLUMN + number * (2 * _COLUMN)
            four = e.let("four", e.load(self.data, at, 4 * _LANES))
            both = shuffle([four], [*by_two, *(step * _LANES + lane for lane in by_two)])
            e.store(self.ring, to_two, both)
        edges = [*range(first), *range(first + 2 * twos, self.columns)]
        for column in edges:
            sides = []
            for place in (column * step - left, column * step - left + 1):
                inside = 0 <= place < w.in_w
                outside = constant(self.work.border, self.dot.data, _LANES)
                loaded = e.load(self.data, start + place * _LANES, _LANES) if inside else outside
                sides.append(e.let("side", loaded))
            e.store(self.ring, to + column * _COLUMN, shuffle(sides, by_two))

    def _line(self, plane: Any, block: Any, line: Any, top: Any) -> None:
        """Write some lines of the output."""
        w, e, tile = self.conv, self.emit, self.plan.tile_w
        slots = [self._slot(top + row) for row in range(self.rows)]
        with e.loop("tile", math.ceil(w.out_w / tile)) as number:
            column = number * tile
            if w.out_w % tile:
                column = tirx.min(column, tirx.IntImm("int32", w.out_w - tile))
            column = e.let("column", column)
            at = e.let("at", wide(column * _COLUMN))
            self._products(slots, at)
            for y in range(self.plan.tile_h):
                self._store(plane, block, line + y, column, y)

    def _weights(self, number: int, dtype: str, lanes: int) -> Any:
        loaded = self.emit.load(self.weight, self.base + number * _LANES, _LANES)
        return self.emit.let("w", reinterpret(self.emit.let("w", loaded), dtype, lanes))

    def _products(self, slots: list[Any], at: Any) -> None:
        """Add all products of a tile, line by line."""
        w, e, p = self.conv, self.emit, self.plan
        vectors, taken = p.tile_w // _WINDOWS, self.taken
        for row, slot in enumerate(slots):
            lines = [(y, row - y * w.stride[0]) for y in range(p.tile_h)]
            lines = [(y, kh) for y, kh in lines if 0 <= kh < w.kernel[0]]
            for pair in range(taken):
                data = []
                for x in range(vectors if lines else 0):
                    place = (_WINDOWS * x + pair * (2 // w.stride[1])) * _COLUMN
                    data.append(e.let("x", e.load(self.ring, slot + at + place, 2 * _COLUMN)))
                for y, kh in lines:
                    self._add(y, kh * taken + pair, data)

    def _add(self, y: int, product: int, data: list[Any]) -> None:
        """Add one product of a line to its sum; add two sums that are complete to the total."""
        e, sums = self.emit, self.work.sums
        number = next(n for n, members in enumerate(sums) if product in members)
        weights = self._weights(product, "int8", 2 * _COLUMN)
        members, first = sums[number], number // 2 * 2
        pair = sums[first : first + 2]
        for x, values in enumerate(data):
            index = y * len(data) + x
            place = len(sums) * index + number
            added = self.pairs.multiply(values, weights)
            if product != members[0]:
                added = wrapping("add", e.load(self.acc, place), added)
            elif len(members) > 1:
                begin = self._weights(self.products + number, "int16", _COLUMN)
                added = wrapping("add", begin, added)
            e.store(self.acc, place, added)
            if product < max(map(max, pair)):
                continue
            both = [e.load(self.acc, len(sums) * index + first + i) for i in range(len(pair))]
            if len(both) == 1:
                both.append(constant(0, "int16", _COLUMN))
            for half, more in enumerate(self.pairs.widen(both[0], both[1])):
                before = e.load(self.total, 2 * index + half) if first else self.start[half]
                e.store(self.total, 2 * index + half, before + more)

    def _store(self, plane: Any, block: Any, line: Any, column: Any, y: int) -> None:
        """Store consecutive pixels of a line of the output."""
        w, e, count = self.conv, self.emit, self.plan.tile_w
        halves = [e.load(self.total, y * count + number) for number in range(count)]
        if requantizes(w.epilogue):
            to = e.let("to", ((plane * w.out_h + line) * w.out_w + column) * _LANES)
            step, operand = w.epilogue[0], self.operands[0]
            channel = block * _LANES
            store_requantized(e, step, operand, channel, self.output, to, halves, crossed=True)
            return
        picks = [[*range(side, side + 4), *range(side + 8, side + 12)] for side in (0, 4)]
        pixels = [
            e.let("pixel", shuffle(halves[number : number + 2], pick))
            for number in range(0, count, 2)
            for pick in picks
        ]
        self.store_line(plane, block, line, column, pixels)
