"""Provide 3x3 convolution of quantized values with a quarter of the multiplications, exactly.

Winograd's F(4x4, 3x3), see `winograd.py`, at the points 0, 1, -1, 2 and -2: with these all numbers
are whole once G is multiplied by 24 (its last row by 6, which A' makes up for):

         4  0 -5  0  1  0          6  0  0
         0 -4 -4  1  1  0         -4 -4 -4          1  1  1  1  1  0
    B' = 0  4 -4 -1  1  0    G' = -4  4 -4     A' = 0  1 -1  2 -2  0
         0 -2 -1  2  1  0          1  2  4          0  1  1  4  4  0
         0  2 -1 -2  1  0          1 -2  4          0  1 -1  8 -8  4
         0  4  0 -5  0  1          0  0  6

A patch of 8-bit values changes to at most 100 * 255, a window of weights to at most 144 * 128: both
fit int16. Their products are summed in 32 bits, which may wrap: what A' gives is 576 times the
accumulator, modulo 2**32. Times the inverse of 9 that is 64 times the accumulator, exactly where
this is less than 2**25; else the channels are summed in parts (`parts_needed`). So every bit is
that of the direct sum.

Padding stands for zero: its value is the zero point, written around the image. The bias is that of
`integer.py`, whose rows are not needed.

One task computes a block of tiles for all output channels. Tiles at the end of the image overlap
their neighbours.

    patches   int16 [36, pairs of blocks of input channels, tiles, 8]
    products  int32 [parts, 36, tiles, vectors * c] for some output channels at a time: a lane
              of a tile's patch by a vector of weights
    weight    int16 [tiles of output channels, 36, input channels, vectors * c]
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from tvm import tirx

from edgec.compiler.kernels.conv.lane_winograd_decision import (
    DEPTH,
    OUT,
    PATCH,
    POSITIONS,
    WHOLE,
    LaneWinogradDecision,
    lane_winograd_bytes,
    pairs_of,
    pairs_of_part,
    tiles_of,
)
from edgec.compiler.kernels.conv.winograd_task import (
    WinogradTasks,
    lines_apart,
    patch_place,
    present_part,
)
from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.kernels.emit.emitter import Emitter, wide
from edgec.compiler.kernels.emit.epilogue import (
    Places,
    apply,
    declare_operands,
    operand_loader,
    output_dtype,
)
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.quantized_values import store_values
from edgec.compiler.kernels.emit.requantize import requantizes, store_requantized
from edgec.compiler.kernels.vectors import (
    constant,
    reinterpret,
    shuffle,
    wrapping,
)
from edgec.targets.target import Target

_C = 4
# 576 is 9 * 2**6, and 9 times this is 1 modulo 2**32.
_INVERSE_OF_9, _SHIFT = 954437177, 6
assert WHOLE == 9 << _SHIFT


def emit_lane_winograd(
    conv: ConvWorkload,
    border: int,
    has_rows: bool,
    decision: LaneWinogradDecision,
    target: Target,
    name: str,
) -> Kernel:
    """Write the kernel.

    Args:
        conv: the convolution.
        border: quantized value of the padding.
        has_rows: whether there is an operand of rows; it is not read.
        decision: how it is computed.
        target: where; its vectors have four lanes.
        name: of the function.
    """
    return _LaneWinograd(conv, border, has_rows, decision, target).kernel(name)


class _LaneWinograd:
    def __init__(
        self,
        conv: ConvWorkload,
        border: int,
        has_rows: bool,
        decision: LaneWinogradDecision,
        target: Target,
    ) -> None:
        self.work, self.plan, self.border = conv, decision, border
        self.dtype = target.instruction_set.activation_dtype
        e = self.emit = Emitter(target)
        self.in_blocks = math.ceil(conv.in_channels / _C)
        self.out_blocks = math.ceil(conv.out_channels / _C)
        self.pairs = pairs_of(conv, _C)
        out_tiles = math.ceil(self.out_blocks / decision.vectors)
        self.rows, self.columns = tiles_of(conv)
        tiles = self.rows * self.columns
        self.tasks = WinogradTasks(tiles, decision.block, out_tiles, decision.splits)
        self.width = decision.vectors * _C
        self.patch_step = lines_apart(self.pairs * decision.block * DEPTH, 2)
        self.product_step = lines_apart(decision.block * self.width)
        channels = self.out_blocks * _C
        self.data = e.buffer("data", conv.batch * self.in_blocks * conv.in_h * conv.in_w, "int32")
        weights = lane_winograd_bytes(conv, decision.vectors, _C) // 2
        self.weight = e.buffer("weight", weights, "int16")
        self.bias = e.buffer("bias", channels, "int32")
        if has_rows:
            e.buffer("rows", conv.kernel[0] * channels, "int32")
        out_size = conv.batch * channels * conv.out_h * conv.out_w
        lengths = {"channel": channels, "image_channel": conv.batch * channels, "element": out_size}
        self.operands = declare_operands(e, conv.epilogue, lengths)  # type: ignore[arg-type]
        self.output = e.buffer("output", out_size, output_dtype(conv.epilogue))

    def kernel(self, name: str) -> Kernel:
        """Return the finished kernel."""
        p, e = self.plan, self.emit
        with e.tasks() as task:
            here = self.tasks.begin(e, task)
            self.image, self.first = here.image, here.first_tile
            self.patches = e.local("patches", POSITIONS * self.patch_step, "int16")
            size = p.parts * POSITIONS * self.product_step
            self.products = e.local("products", size, "int32")
            self.copy = e.local("copy", 2 * POSITIONS, "int32")
            self.acc = e.local("acc", p.tiles * p.vectors, "int32x4")
            self.sums = e.local("sums", OUT * OUT, "int32x4")
            with e.loop("patch", p.block) as tile:
                self._gather(tile)
            with e.loop("out_tile", here.out_tiles, here.first_out_tile) as out_tile:
                with (
                    e.loop("part", p.parts) as part,
                    e.loop("product", POSITIONS) as position,
                    e.loop("repeat", p.repeats) as repeat,
                ):
                    self._multiply(out_tile, part, position, repeat)
                with e.loop("result", p.block) as tile, e.loop("vector", p.vectors) as vector:
                    self._scatter(out_tile, tile, vector)
        return Kernel(e.function(name), self.work.batch * p.splits * self.tasks.blocks)

    def _place(self, tile: Any) -> tuple[Any, Any]:
        """Return first output row and column of a tile of this task."""
        w, e = self.work, self.emit
        index = e.let("index", self.first + tile)
        row = tirx.min(tirx.floordiv(index, self.columns) * OUT, w.out_h - OUT)
        column = tirx.min(tirx.floormod(index, self.columns) * OUT, w.out_w - OUT)
        return e.let("row", row), e.let("column", column)

    def _gather(self, tile: Any) -> None:
        """Write B' d B of one tile, for all input channels."""
        w, e = self.work, self.emit
        top, left, inside = patch_place(e, w, self._place(tile), PATCH)
        with e.branch(inside), e.loop("pair", self.pairs) as pair:
            sources = [self._pixel(block, top, left) for block in self._blocks(pair)]
            self._change(tile, pair, self.data, sources, w.in_w)
        with e.branch(tirx.Not(inside)):
            self._border(tile, top, left)

    def _blocks(self, pair: Any) -> list[Any]:
        """Return the two blocks of channels of a pair; past the last one, whose weights are 0."""
        second = pair * 2 + 1
        if self.in_blocks % 2:
            second = tirx.min(second, tirx.IntImm("int32", self.in_blocks - 1))
        return [pair * 2, second]

    def _pixel(self, block: Any, row: Any, column: Any) -> Any:
        """Return where the input has a pixel of a block of channels."""
        w = self.work
        line = (self.image * self.in_blocks + block) * w.in_h + row
        return self.emit.let("pixel", wide(line * w.in_w + column))

    def _border(self, tile: Any, top: Any, left: Any) -> None:
        """Read a tile whose patch lies partly outside from a copy, with the padding around it."""
        w, e = self.work, self.emit
        first_row, rows = present_part(e, "row", top, w.in_h, PATCH)
        first_column, columns = present_part(e, "column", left, w.in_w, PATCH)
        code = np.repeat(np.array([self.border]).astype(self.dtype), _C).view(np.int32)
        for four in range(0, 2 * POSITIONS, 4):
            e.store(self.copy, four, constant(int(code[0]), "int32", 4))
        with e.loop("pair", self.pairs) as pair:
            for half, block in enumerate(self._blocks(pair)):
                with e.loop("y", rows, first_row) as y:
                    source = self._pixel(block, top + y, left)
                    to = e.let("to", wide(half * POSITIONS + y * PATCH))
                    with e.loop("x", columns, first_column, wide=True) as x:
                        e.store(self.copy, to + x, e.load(self.data, source + x))
            self._change(tile, pair, self.copy, [0, POSITIONS], PATCH)

    def _change(self, tile: Any, pair: Any, buffer: Any, sources: Sequence[Any], line: int) -> None:
        """Write B' d B of one patch of eight channels.

        Args:
            tile: its number in the task.
            pair: the number of the eight channels.
            buffer: has four channels of a pixel as one int32.
            sources: where the first pixel of either four channels is.
            line: pixels of a line.
        """
        e = self.emit
        to = e.let("to", wide((pair * self.plan.block + tile) * DEPTH))
        pixels = [self._line(buffer, [s + y * line for s in sources]) for y in range(PATCH)]
        columns = [_change([row[x] for row in pixels], e) for x in range(PATCH)]
        for y in range(PATCH):
            for x, value in enumerate(_change([column[y] for column in columns], e)):
                e.store(self.patches, to + (y * PATCH + x) * self.patch_step, value)

    def _line(self, buffer: Any, sources: Sequence[Any]) -> list[Any]:
        """Return six pixels of a line, eight channels of each as int16."""
        e = self.emit
        four = [e.let("four", e.load(buffer, source, 4)) for source in sources]
        two = [e.let("two", e.load(buffer, source + 4, 2)) for source in sources]
        pixels = []
        for pair, order in ((four, (0, 4, 1, 5)), (four, (2, 6, 3, 7)), (two, (0, 2, 1, 3))):
            values = e.let("bytes", reinterpret(shuffle(pair, order), self.dtype, 16))
            for half in range(2):
                eight = shuffle([values], range(8 * half, 8 * half + 8))
                pixels.append(e.let("d", tirx.Cast("int16x8", eight)))
        return pixels

    def _multiply(self, out_tile: Any, part: Any, position: Any, repeat: Any) -> None:
        """Write one register tile of the product of one position and part of the channels."""
        p, e = self.plan, self.emit
        tiles, vectors = range(p.tiles), range(p.vectors)
        count = p.tiles * p.vectors
        for index in range(count):
            e.store(self.acc, index, constant(0, "int32", _C))
        panel = e.let("panel", (out_tile * POSITIONS + position) * (self.pairs * DEPTH))
        start = e.let("start", position * self.patch_step + repeat * (p.tiles * DEPTH))
        most = pairs_of_part(self.work, p.parts, _C)
        first_pair = part * most
        count_pairs: Any = most
        if self.pairs % most:
            left = tirx.IntImm("int32", self.pairs) - first_pair
            count_pairs = e.let("pairs", tirx.min(left, tirx.IntImm("int32", most)))
        with e.loop("pair", count_pairs, first_pair) as pair:
            weights = e.let("weights", wide((panel + pair * DEPTH) * self.width))
            source = e.let("source", wide(start + pair * (p.block * DEPTH)))
            data = [e.let("x", e.load(self.patches, source + t * DEPTH, DEPTH)) for t in tiles]
            for channel in range(DEPTH):
                for first in vectors[::2]:
                    lanes = _C * min(2, p.vectors - first)
                    at = weights + (channel * self.width + first * _C)
                    both = e.let("w", e.load(self.weight, at, lanes))
                    for half in range(lanes // _C):
                        for t in tiles:
                            index = t * p.vectors + first + half
                            product = e.isa.multiply_by_lane(both, half, data[t], channel)
                            total = wrapping("add", e.load(self.acc, index), product)
                            e.store(self.acc, index, total)
        place = (part * POSITIONS + position) * self.product_step
        to = e.let("to", place + repeat * (p.tiles * self.width))
        for index in range(count):
            e.store(self.products, to + index * _C, e.load(self.acc, index))

    def _scatter(self, out_tile: Any, tile: Any, vector: Any) -> None:
        """Write a vector of output channels of one tile: A' m A, divided, and its epilogue."""
        w, p, e = self.work, self.plan, self.emit
        row, column = self._place(tile)
        with ExitStack() as stack:
            block = e.let("block", out_tile * p.vectors + vector)
            if self.out_blocks % p.vectors:
                stack.enter_context(e.branch(block < self.out_blocks))
            bias = e.let("bias", e.load(self.bias, block * _C, _C))
            for place in range(OUT * OUT):
                e.store(self.sums, place, bias)
            with e.loop("part", p.parts) as part:
                self._add_part(part, tile, vector)
            plane = (self.image * self.out_blocks + block) * w.out_h
            for y in range(OUT):
                at = e.let("at", ((plane + row + y) * w.out_w + column) * _C)
                self._put(block, at, [e.load(self.sums, y * OUT + x) for x in range(OUT)])

    def _add_part(self, part: Any, tile: Any, vector: Any) -> None:
        """Add the accumulators of a part of the channels to those of a tile."""
        e = self.emit
        first = part * (POSITIONS * self.product_step)
        source = e.let("from", wide(first + tile * self.width + vector * _C))

        def product(y: int, x: int) -> Any:
            at = source + (y * PATCH + x) * self.product_step
            return e.let("m", e.load(self.products, at, _C))

        columns = [_total([product(y, x) for y in range(PATCH)], e) for x in range(PATCH)]
        inverse, shift = (constant(n, "int32", _C) for n in (_INVERSE_OF_9, _SHIFT))
        for y in range(OUT):
            for x, value in enumerate(_total([column[y] for column in columns], e)):
                accumulator = tirx.shift_right(wrapping("mul", value, inverse), shift)
                place = y * OUT + x
                e.store(self.sums, place, e.load(self.sums, place) + accumulator)

    def _put(self, block: Any, at: Any, sums: Sequence[Any]) -> None:
        """Store the accumulators of a line of a tile."""
        steps, e = self.work.epilogue, self.emit
        if requantizes(steps):
            channel = block * _C
            store_requantized(e, steps[0], self.operands[0], channel, self.output, at, sums)
            return
        values = []
        for x, value in enumerate(sums):
            places: Places = {
                "channel": block * _C,
                "image_channel": (self.image * self.out_blocks + block) * _C,
                "element": at + x * _C,
            }
            operand = operand_loader(e, self.operands, places, _C)
            values.append(apply(steps, tirx.Cast("float32x4", value), operand))
        store_values(e, self.output, at, values)


def _change(d: Sequence[Any], e: Emitter) -> list[Any]:
    """Return B' d for one column or row of a patch, int16."""

    def times(number: int, value: Any) -> Any:
        return value * constant(number, "int16", DEPTH)

    # Rows 1 and 2, and 3 and 4, have equal even columns and opposite odd ones.
    even = [e.let("even", d[4] - times(4, d[2])), e.let("even", d[4] - d[2])]
    odd = [e.let("odd", d[3] - times(4, d[1])), e.let("odd", times(2, d[3] - d[1]))]
    rows = (
        times(4, d[0] - d[2]) + even[1],
        even[0] + odd[0],
        even[0] - odd[0],
        even[1] + odd[1],
        even[1] - odd[1],
        d[5] - d[3] - times(2, odd[1]),
    )
    return [e.let("t", row) for row in rows]


def _total(m: Sequence[Any], e: Emitter) -> list[Any]:
    """Return A' m for one column or row, int32 that wraps."""

    def plus(first: Any, *others: Any) -> Any:
        for other in others:
            first = wrapping("add", first, other)
        return first

    def raised(value: Any, by: int) -> Any:
        return tirx.shift_left(value, constant(by, "int32", _C))

    sums = [e.let("sum", plus(*m[first : first + 2])) for first in (1, 3)]
    differences = [e.let("difference", wrapping("sub", m[first], m[first + 1])) for first in (1, 3)]
    rows = (
        plus(m[0], *sums),
        plus(differences[0], raised(differences[1], 1)),
        plus(sums[0], raised(sums[1], 2)),
        plus(differences[0], raised(differences[1], 3), raised(m[5], 2)),
    )
    return [e.let("s", row) for row in rows]
