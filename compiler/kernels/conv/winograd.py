"""Provide 3x3 convolution with fewer multiplications: Winograd's F(2x2, 3x3) and F(4x4, 3x3).

A tile of m x m output pixels of one channel needs 9 m m multiplications directly, (m + 2) (m + 2)
after a change of basis (Lavin and Gray 2016, "Fast algorithms for convolutional neural networks",
section 4): 16 instead of 36 for m = 2, 36 instead of 144 for m = 4.

    out = A' [ (G g G') * (B' d B) ] A      d a patch of the input, g the window

    m = 2    1  0 -1  0          1    0    0
        B' = 0  1  1  0     G = .5   .5   .5     A' = 1  1  1  0
             0 -1  1  0         .5  -.5   .5          0  1 -1 -1
             0  1  0 -1          0    0    1

    m = 4    1   0 -2.5  0  1  0           6   0   0
             0 -2r  -2   r  1  0          -4 -4r  -2          1  1  1  1  1  0
        B' = 0  2r  -2  -r  1  0   6 G =  -4  4r  -2     A' = 0  r -r  s -s  0
             0 -r  -.5   s  1  0           1   s   2          0 rr rr ss ss  0
             0  r  -.5  -s  1  0           1  -s   2          0 rrr -rrr sss -sss 1
             0   1  0 -2.5  0  1           0   0   6          r = sqrt(1/2), s = sqrt(2)

Those of the paper for m = 4 evaluate polynomials at 1, -1, 2 and -2; with r, -r, s and -s the
largest error is a quarter, for two multiplications more in A'. Measured with 128 channels it is
1.8e-6 of the largest value, where that of the direct sum is 1.4e-6 and that of m = 2 is 4.5e-7.
As m = 4 loses digits, it is taken only where `winograd_weights.exact_enough` says so of the
weights.

Summed over input channels the elementwise product is one matrix product for each position in a
patch.

One task computes a block of tiles for all output channels, with P = m + 2:

    patches   B' d B of its tiles: [P * P, B, tiles, c], in the second-level cache
    products  [P * P, tiles, tile_o] for tile_o vectors of output channels at a time, by a register
              tile as in `conv.py`: each step broadcasts one value per tile and multiplies it with
              tile_o weight vectors
    output    A' m A, epilogue, stored

    weight    [tiles of output channels, P * P, input channels, tile_o * c], made by
              `pack_winograd`
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from tvm import tirx

from edgec.compiler.kernels.conv.winograd_decision import WinogradDecision, tiles_of
from edgec.compiler.kernels.conv.winograd_task import (
    WinogradTasks,
    lines_apart,
    patch_place,
    present_part,
)
from edgec.compiler.kernels.conv.winograd_weights import R, S
from edgec.compiler.kernels.conv.workload import ConvBuffers, ConvWorkload
from edgec.compiler.kernels.emit.emitter import CACHE_LINE_BYTES, Emitter, wide
from edgec.compiler.kernels.emit.epilogue import OperandLoader, Places, apply, operand_loader
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.quantized_values import store_values
from edgec.compiler.kernels.vectors import broadcast, constant, lanes_of, vector_dtype
from edgec.targets.target import Target


def emit_winograd(
    workload: ConvWorkload,
    decision: WinogradDecision,
    target: Target,
    name: str,
    buffers: ConvBuffers,
    e: Emitter,
) -> Kernel:
    """Write the kernel into an emitter whose buffers are those of `emit_conv`."""
    return _Winograd(workload, decision, target.float_lanes, e, buffers).kernel(name)


class _Winograd:
    def __init__(
        self,
        workload: ConvWorkload,
        decision: WinogradDecision,
        c: int,
        e: Emitter,
        buffers: ConvBuffers,
    ) -> None:
        self.work = workload
        self.plan = decision
        self.c = c
        self.emit = e
        self.buffers = buffers
        self.in_blocks = math.ceil(workload.in_channels / c)
        self.out_blocks = math.ceil(workload.out_channels / c)
        out_tiles = math.ceil(self.out_blocks / decision.vectors)
        self.rows, self.columns = tiles_of(workload, decision.out)
        self.block = decision.register_tiles * decision.repeats
        tiles = self.rows * self.columns
        self.tasks = WinogradTasks(tiles, self.block, out_tiles, decision.splits)
        self.width = decision.vectors * c
        # Values from one position to the next in patches and in products.
        self.patch_step = lines_apart(self.in_blocks * self.block * c)
        self.product_step = lines_apart(self.block * self.width)

    def kernel(self, name: str) -> Kernel:
        p, e, c = self.plan, self.emit, self.c
        with e.tasks() as task:
            here = self.tasks.begin(e, task)
            self.image, self.first = here.image, here.first_tile
            self.patches = e.scratch("patches", p.positions * self.patch_step, "float32")
            self.products = e.scratch("products", p.positions * self.product_step, "float32")
            self.acc = e.local("acc", p.register_tiles * p.vectors, vector_dtype("float32", c))
            with e.loop("patch", self.block) as tile:
                self._gather(tile)
            with e.loop("out_tile", here.out_tiles, here.first_out_tile) as out_tile:
                with (
                    e.loop("product", p.positions) as position,
                    e.loop("repeat", p.repeats) as part,
                ):
                    self._multiply(out_tile, position, part)
                with e.loop("result", self.block) as tile:
                    self._scatter(out_tile, tile)
        return Kernel(e.function(name), self.work.batch * p.splits * self.tasks.blocks)

    def _place(self, tile: Any) -> tuple[Any, Any]:
        """Return first output row and column of a tile of this task."""
        e = self.emit
        index = e.let("index", self.first + tile)
        row = e.let("row", tirx.floordiv(index, self.columns) * self.plan.out)
        return row, e.let("column", tirx.floormod(index, self.columns) * self.plan.out)

    def _gather(self, tile: Any) -> None:
        """Write B' d B of one tile, for all input channels."""
        w, e, c, patch = self.work, self.emit, self.c, self.plan.patch
        top, left, inside = patch_place(e, w, self._place(tile), patch)
        with e.branch(inside), e.loop("block", self.in_blocks) as block:
            base = self._pixel(block, top, left)
            self._change(
                tile, block, lambda y, x: e.load(self.buffers.data, base + (y * w.in_w + x) * c, c)
            )
        with e.branch(tirx.Not(inside)):
            self._border(tile, top, left)

    def _pixel(self, block: Any, row: Any, column: Any) -> Any:
        """Return where the input has a pixel of a block of channels."""
        w = self.work
        line = (self.image * self.in_blocks + block) * w.in_h + row
        return self.emit.let("pixel", wide((line * w.in_w + column) * self.c))

    def _border(self, tile: Any, top: Any, left: Any) -> None:
        """Read a tile whose patch lies partly outside from a copy, zero where there is no pixel."""
        w, e, c, patch = self.work, self.emit, self.c, self.plan.patch
        first_row, rows = present_part(e, "row", top, w.in_h, patch)
        first_column, columns = present_part(e, "column", left, w.in_w, patch)
        copy = e.scratch("copy", patch * patch * c, "float32")
        for position in range(patch * patch):
            e.store(copy, position * c, constant(0, "float32", c))
        with e.loop("block", self.in_blocks) as block:
            with e.loop("y", rows, first_row) as y:
                source = self._pixel(block, top + y, left)
                with e.loop("x", columns, first_column, wide=True) as x:
                    value = e.load(self.buffers.data, source + x * c, c)
                    e.store(copy, (y * patch + x) * c, value)
            self._change(tile, block, lambda y, x: e.load(copy, (y * patch + x) * c, c))

    def _change(self, tile: Any, block: Any, read: Callable[[int, int], Any]) -> None:
        """Write B' d B of one patch of a block of channels."""
        e, c, patch = self.emit, self.c, self.plan.patch
        change = _CHANGES[self.plan.out]
        to = e.let("to", wide((block * self.block + tile) * c))
        columns = [change([e.let("d", read(y, x)) for y in range(patch)], e) for x in range(patch)]
        for y in range(patch):
            for x, value in enumerate(change([column[y] for column in columns], e)):
                e.store(self.patches, to + (y * patch + x) * self.patch_step, value)

    def _multiply(self, out_tile: Any, position: Any, repeat: Any) -> None:
        """Write one register tile of the product of one position."""
        w, p, e, c = self.work, self.plan, self.emit, self.c
        count = p.register_tiles * p.vectors
        for index in range(count):
            e.store(self.acc, index, constant(0, "float32", c))
        panel = e.let("panel", (out_tile * p.positions + position) * w.in_channels)
        start = e.let("start", position * self.patch_step + repeat * (p.register_tiles * c))

        def block_of(block: Any, used: int) -> None:
            weights = e.let("weights", wide((panel + block * c) * self.width))
            self._prefetch(weights, used, repeat)
            source = e.let("source", wide(start + block * (self.block * c)))
            with e.loop("channel", used, wide=True) as channel:
                vectors = [
                    e.let(
                        "w", e.load(self.buffers.weight, weights + channel * self.width + o * c, c)
                    )
                    for o in range(p.vectors)
                ]
                for t in range(p.register_tiles):
                    at = source + t * c + channel
                    value = e.let("x", broadcast(e.load(self.patches, at), c))
                    for o, vector in enumerate(vectors):
                        index = t * p.vectors + o
                        e.store(self.acc, index, e.load(self.acc, index) + value * vector)

        full = w.in_channels // c
        if full:
            with e.loop("block", full) as block:
                block_of(block, c)
        if w.in_channels % c:
            block_of(full, w.in_channels % c)
        to = e.let("to", position * self.product_step + repeat * (p.register_tiles * self.width))
        for index in range(count):
            e.store(self.products, to + index * c, e.load(self.acc, index))

    def _prefetch(self, weights: Any, used: int, repeat: Any) -> None:
        """Ask for this repetition's share of the next position's weights."""
        line = CACHE_LINE_BYTES // 4
        share = math.ceil(used * self.width / line / self.plan.repeats)
        following = weights + self.work.in_channels * self.width
        for number in range(share):
            place = wide(repeat) * (share * line) + number * line
            self.emit.prefetch(self.buffers.weight, following + place)

    def _scatter(self, out_tile: Any, tile: Any) -> None:
        """Write A' m A of one tile, its epilogue, and the pixels that exist."""
        w, p, e, c = self.work, self.plan, self.emit, self.c
        total = _TOTALS[p.out]
        row, column = self._place(tile)
        for o in range(p.vectors):
            with ExitStack() as stack:
                block = out_tile * p.vectors + o
                if self.out_blocks % p.vectors:
                    stack.enter_context(e.branch(block < self.out_blocks))
                source = e.let("from", wide(tile * self.width + o * c))
                columns = []
                for x in range(p.patch):
                    m = [
                        e.let(
                            "m",
                            e.load(
                                self.products, source + (y * p.patch + x) * self.product_step, c
                            ),
                        )
                        for y in range(p.patch)
                    ]
                    columns.append(total(m, e))
                plane = (self.image * self.out_blocks + block) * w.out_h
                for y in range(p.out):
                    for x, value in enumerate(total([column[y] for column in columns], e)):
                        with ExitStack() as pixel:
                            # Only the last row and column of tiles can lie partly outside.
                            if y >= (w.out_h % p.out or p.out):
                                pixel.enter_context(e.branch(row + y < w.out_h))
                            if x >= (w.out_w % p.out or p.out):
                                pixel.enter_context(e.branch(column + x < w.out_w))
                            at = e.let("at", ((plane + row + y) * w.out_w + column + x) * c)
                            finished = apply(w.epilogue, value, self._operand(at, block))
                            store_values(e, self.buffers.output, at, [finished])

    def _operand(self, at: Any, block: Any) -> OperandLoader:
        places: Places = {
            "channel": block * self.c,
            "image_channel": (self.image * self.out_blocks + block) * self.c,
            "element": at,
        }
        return operand_loader(self.emit, self.buffers.operands, places, self.c)


def _change_2(d: Sequence[Any], e: Emitter) -> list[Any]:
    """Return B' d for one column or row of a patch."""
    return [e.let("t", value) for value in (d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3])]


def _change_4(d: Sequence[Any], e: Emitter) -> list[Any]:
    # Rows 1 and 2, and 3 and 4, have equal even columns and opposite odd ones.
    even = [e.let("even", d[4] - _times(2, d[2])), e.let("even", d[4] - _times(0.5, d[2]))]
    odd = [e.let("odd", d[3] - _times(2, d[1])), e.let("odd", d[3] - _times(0.5, d[1]))]
    rows = (
        d[0] - _times(2.5, d[2]) + d[4],
        even[0] + _times(R, odd[0]),
        even[0] - _times(R, odd[0]),
        even[1] + _times(S, odd[1]),
        even[1] - _times(S, odd[1]),
        d[1] - _times(2.5, d[3]) + d[5],
    )
    return [e.let("t", row) for row in rows]


def _total_2(m: Sequence[Any], e: Emitter) -> list[Any]:
    """Return A' m for one column or row."""
    return [e.let("s", m[0] + m[1] + m[2]), e.let("s", m[1] - m[2] - m[3])]


def _total_4(m: Sequence[Any], e: Emitter) -> list[Any]:
    sums = [e.let("sum", m[1] + m[2]), e.let("sum", m[3] + m[4])]
    differences = [e.let("difference", m[1] - m[2]), e.let("difference", m[3] - m[4])]
    rows = (
        m[0] + sums[0] + sums[1],
        _times(R, differences[0]) + _times(S, differences[1]),
        _times(0.5, sums[0]) + _times(2, sums[1]),
        m[5] + _times(R**3, differences[0]) + _times(S**3, differences[1]),
    )
    return [e.let("s", row) for row in rows]


def _times(number: float, value: Any) -> Any:
    return constant(number, "float32", lanes_of(value)) * value


_CHANGES = {2: _change_2, 4: _change_4}
_TOTALS = {2: _total_2, 4: _total_4}
