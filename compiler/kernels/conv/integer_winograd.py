"""Provide 3x3 convolution of quantized values by Winograd's algorithm, exact.

F(m x m, 3 x 3) of Lavin and Gray 2016 (arXiv:1509.09308), on the points 0, 1, -1, 2, -2 and
infinity (m = 4) or 0, 1, -1 and infinity (m = 2), with all fractions moved to the end:

    k y = A' [sum over channels of (G g G') * (B' d B)] A

G, B and A are whole numbers, and k of an output pixel is 9 * 2**n or 2**n. B' d B of any uint8 or
int8 and G g G' of any int8 fit int16: products are those of pairs of int16, summed in int32. Sums
and A' m A are taken modulo 2**32; of k y that is enough: k times the least that y can be is
subtracted, the rest is multiplied with what 9 times is 1 modulo 2**32, and shifted right by n,
which gives y less that where y has 2**(32 - n) values at most. So accumulators are those of the
direct sum, bit for bit, and what follows is the same. What is the same for all pixels is, changed,
in the product at the point 1 alone: it is subtracted there.

Sums of k y are 144 / 36 (m = 4) or 36 / 16 (m = 2) times fewer products than the direct sum has.
Where a task is a whole image, tiles at its end have only 1, 2 or 3 rows or columns, and products at
as many of the same points less: of 14 x 14 pixels, a sixth fewer.

Layouts, with c float32 lanes in a vector:

    activation [N, ceil(channels / c), H, W, c] quantized; two blocks are changed at once.
    weight      int8 [tiles of output channels, pairs of input channels, 9, vectors, c, 2]: as they
                are, since what they are changed to is eight times as large. Each task changes them
                for a tile of output channels and two rows of positions, for all of its tiles of
                the image. Then int32 [padded output channels]: the least that y can be.
    bias        as of `integer.py`; padding is the zero point and is changed like any pixel.
    patches     int16 pairs [positions, pairs of blocks, tiles, c]
    products    int32 [positions, tiles, vectors, c]
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.conv.integer_winograd_changes import (
    CHANGES,
    GROUPS,
    WINDOWS,
    inverse_of_threes,
)
from edgec.compiler.kernels.conv.integer_winograd_decision import (
    COPIED_PIXELS,
    WORD_BYTES,
    Ends,
    TileGroup,
    bounds_of_sums,
    copied_lines,
    held_values,
    pairs_of,
    tile_groups,
)
from edgec.compiler.kernels.conv.winograd_decision import WinogradDecision, tiles_of
from edgec.compiler.kernels.conv.winograd_task import (
    WinogradTasks,
    present_part,
)
from edgec.compiler.kernels.conv.workload import ConvWorkload, QuantizedConvWorkload
from edgec.compiler.kernels.emit.emitter import CACHE_LINE_BYTES, Emitter, hidden, wide
from edgec.compiler.kernels.emit.epilogue import (
    OperandLoader,
    Places,
    apply,
    declare_operands,
    operand_loader,
    output_dtype,
)
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.quantized_values import store_values
from edgec.compiler.kernels.emit.requantize import requantizes, store_requantized
from edgec.compiler.kernels.isa import dot_of, isa_of
from edgec.compiler.kernels.vectors import (
    broadcast,
    constant,
    reinterpret,
    shuffle,
    vector_dtype,
    wrapping,
)
from edgec.targets.target import Target

TAPS = 9


def emit_integer_winograd(
    workload: QuantizedConvWorkload, decision: WinogradDecision, target: Target, name: str
) -> Kernel:
    """Write the kernel; its buffers are those of the direct one, of which it does not read rows."""
    return _IntegerWinograd(workload, decision, target).kernel(name)


def pack_integer_winograd(
    work: ConvWorkload, decision: WinogradDecision, weight: NDArray[np.int8], c: int, ends: Ends
) -> NDArray[np.int8]:
    """Return weights [out_channels, in_channels, 3, 3] in the order in which the kernel reads them.

    Args:
        work: the convolution.
        decision: its register tile.
        weight: the weights.
        c: lanes.
        ends: the smallest and the largest quantized value of the data.
    """
    width = decision.vectors * c
    tiles, words = math.ceil(work.out_channels / width), pairs_of(work)
    padded = np.zeros((tiles * width, 2 * words, TAPS), np.int8)
    padded[: work.out_channels, : work.in_channels] = weight.reshape(*weight.shape[:2], TAPS)
    split = padded.reshape(tiles, decision.vectors, c, words, 2, TAPS)
    ordered = np.ascontiguousarray(split.transpose(0, 3, 5, 1, 2, 4)).reshape(-1)
    least = np.zeros(tiles * width, np.int32)
    least[: work.out_channels] = bounds_of_sums(weight, ends)[0]
    return np.concatenate([ordered, least.view(np.int8)])


def packed_winograd_size(work: ConvWorkload, decision: WinogradDecision, c: int) -> int:
    """Return values in a packed weight."""
    width = decision.vectors * c
    tiles = math.ceil(work.out_channels / width)
    return tiles * width * (pairs_of(work) * TAPS * 2 + WORD_BYTES)


class _IntegerWinograd:
    def __init__(
        self, workload: QuantizedConvWorkload, decision: WinogradDecision, target: Target
    ) -> None:
        work: ConvWorkload = workload.conv
        e, c, dot, words = Emitter(target), target.float_lanes, dot_of(target), pairs_of(work)
        pair_dot = isa_of(target).pair_dot()
        assert dot is not None
        assert pair_dot is not None
        self.work, self.plan, self.c, self.emit = work, decision, c, e
        self.code, self.dtype, self.add = workload.border, dot.data, pair_dot.add
        self.change = CHANGES[decision.out]
        self.in_blocks, self.words = math.ceil(work.in_channels / c), words
        self.out_blocks = math.ceil(work.out_channels / c)
        out_tiles = math.ceil(self.out_blocks / decision.vectors)
        self.rows, self.columns = tiles_of(work, decision.out)
        self.block = decision.register_tiles * decision.repeats
        tiles = self.rows * self.columns
        self.tasks = WinogradTasks(tiles, self.block, out_tiles, decision.splits)
        self.width = decision.vectors * c
        groups = GROUPS[decision.out]
        self.group = len(groups[0]) * decision.patch
        self.rows_of_positions = [row for group in groups for row in group]
        self.tiles = tile_groups(work, decision)
        self.lines, self.line = copied_lines(work, decision), work.out_w + 2
        self.patch_step, self.weight_step, self.product_step = held_values(work, decision, c)
        channels = self.out_blocks * c
        size = work.batch * self.in_blocks * c * work.in_h * work.in_w
        self.data = e.buffer("data", size, dot.data)
        size = packed_winograd_size(work, decision, c)
        self.weight = e.buffer("weight", size, "int8")
        self.least = e.view(self.weight, size // WORD_BYTES, "int32")
        self.first_least = size // WORD_BYTES - out_tiles * self.width
        self.bias = e.buffer("bias", channels, "int32")
        if workload.has_rows:
            e.buffer("rows", work.kernel[0] * channels, "int32")
        out_size = work.batch * channels * work.out_h * work.out_w
        lengths = {"channel": channels, "image_channel": work.batch * channels, "element": out_size}
        self.operands = declare_operands(e, work.epilogue, lengths)  # type: ignore[arg-type]
        self.output = e.buffer("output", out_size, output_dtype(work.epilogue))

    def kernel(self, name: str) -> Kernel:
        p, e, c = self.plan, self.emit, self.c
        with e.tasks() as task:
            self.hidden_one = hidden(1, task)
            here = self.tasks.begin(e, task)
            self.image, self.first = here.image, here.first_tile
            self.patches = e.scratch("patches", p.positions * self.patch_step, "int32")
            self.changed = e.scratch("changed", self.group * self.weight_step, "int32")
            self.products = e.scratch("products", p.positions * self.product_step, "int32")
            self.acc = e.local("acc", p.register_tiles * p.vectors, vector_dtype("int32", c))
            self._gather()
            with e.loop("out_tile", here.out_tiles, here.first_out_tile) as out_tile:
                with e.loop("group", p.positions // self.group) as group:
                    self._change_weights(out_tile, group)
                    with e.loop("product", self.group) as position:
                        self._multiply_position(out_tile, group, position)
                for tiles in self.tiles:
                    with (
                        e.loop("result", tiles.count) as number,
                        e.loop("vector", p.vectors) as vector,
                    ):
                        self._scatter(out_tile, tiles, number, vector)
        return Kernel(e.function(name), self.work.batch * p.splits * self.tasks.blocks)

    def _place(self, tiles: TileGroup, number: Any) -> tuple[Any, Any]:
        """Return first output row and column of a tile; the last ones overlap their neighbours."""
        w, e, out = self.work, self.emit, self.plan.out
        index = e.let("index", self.first + number)
        ends = w.out_h - tiles.outs[0], w.out_w - tiles.outs[1]
        last_row, last_column = (tirx.IntImm("int32", end) for end in ends)
        row = tirx.floordiv(index, tiles.columns) * out + tiles.row
        column = tirx.floormod(index, tiles.columns) * out + tiles.column
        row, column = tirx.min(row, last_row), tirx.min(column, last_column)
        return e.let("row", row), e.let("column", column)

    def _gather(self) -> None:
        """Write B' d B of all tiles and input channels, from copies of lines with their padding."""
        w, e, c, pad = self.work, self.emit, self.c, self.work.padding[1]
        first_row, _ = self._place(self.tiles[0], tirx.IntImm("int32", 0))
        top = e.let("top", first_row - w.padding[0])
        first_line, lines = present_part(e, "line", top, w.in_h, self.lines)
        # Pixels are read two at a time, also behind the last one.
        copy = e.scratch("copy", (2 * self.lines * self.line + 1) * c, self.dtype)
        with e.loop("place", 2 * self.lines * self.line) as place:
            e.store(copy, place * c, constant(self.code, self.dtype, c))
        with e.loop("pair", math.ceil(self.in_blocks / 2)) as pair:
            for half, source in enumerate(self._pixels(pair, top)):
                with e.loop("y", lines, first_line) as y:
                    to = e.let("to", wide(((half * self.lines + y) * self.line + pad) * c))
                    line = e.let("line", source + wide(y * (w.in_w * c)))
                    self._copy(copy, to, line, min(w.in_w, self.line - pad))
            for tiles in self.tiles:
                with e.loop("patch", tiles.count) as number:
                    row, column = self._place(tiles, number)
                    start = wide(((row - first_row) * self.line + column) * c)
                    to = wide((pair * self.block + tiles.first + number) * c)
                    self._change_patch(copy, e.let("start", start), e.let("to", to), tiles)

    def _pixels(self, pair: Any, row: Any) -> list[Any]:
        """Return where the input has the first pixel of a row of two blocks of channels.

        Behind the last block it is read again: weights of channels that are none are 0.
        """
        w = self.work
        second: Any = 2 * pair + 1
        if self.in_blocks % 2:
            second = tirx.min(second, tirx.IntImm("int32", self.in_blocks - 1))
        lines = [(self.image * self.in_blocks + each) * w.in_h + row for each in (2 * pair, second)]
        return [self.emit.let("pixel", wide(line * (w.in_w * self.c))) for line in lines]

    def _copy(self, copy: Any, to: Any, source: Any, pixels: int) -> None:
        """Copy consecutive pixels, some at a time, of which the last overlap."""
        e, c = self.emit, self.c
        step = min(COPIED_PIXELS, max(1, pixels))
        with e.loop("x", pixels // step, wide=True) as x:
            e.store(copy, to + x * (step * c), e.load(self.data, source + x * (step * c), step * c))
        if pixels % step:
            last = (pixels - step) * c
            e.store(copy, to + last, e.load(self.data, source + last, step * c))

    def _change_patch(self, copy: Any, start: Any, to: Any, tiles: TileGroup) -> None:
        """Write B' d B of one patch of two blocks of channels.

        Columns are changed two at a time, of one block; then those of both blocks are joined.
        """
        e, c, words = self.emit, self.c, self._words()
        down, across = (CHANGES[m] for m in tiles.outs)
        high, width = (m + 2 for m in tiles.outs)

        def changed_columns(half: int, x: int) -> list[Any]:
            values = []
            for y in range(high):
                at = start + ((half * self.lines + y) * self.line + x) * c
                values.append(e.let("d", tirx.Cast(words, e.load(copy, at, 2 * c))))
            return down.patch(e.let, values)

        halves = [[changed_columns(half, x) for half in range(2)] for x in range(0, width, 2)]
        for y, point in enumerate(down.points):
            row = []
            for x in range(width):
                picks = [x % 2 * c + lanes + lane for lanes in (0, 2 * c) for lane in range(c)]
                both = [half[y] for half in halves[x // 2]]
                row.append(e.let("both", shuffle(both, picks)))
            for other, value in zip(across.points, across.patch(e.let, row), strict=True):
                place = to + self._rank(point, other) * self.patch_step
                e.store(self.patches, place, reinterpret(value, "int32", c))

    def _rank(self, down: str, across: str) -> int:
        """Return the number of a position: those of a group of rows follow each other."""
        points, rows = self.change.points, self.rows_of_positions
        return rows.index(points.index(down)) * self.plan.patch + points.index(across)

    def _change_weights(self, out_tile: Any, group: Any) -> None:
        """Write G g G' of a group of positions, for a tile of output channels."""
        e = self.emit
        for number, rows in enumerate(GROUPS[self.plan.out]):
            with e.branch(group == number), e.loop("word", self.words) as word:
                self._change_window(out_tile, word, rows)

    def _change_window(self, out_tile: Any, word: Any, rows: Sequence[int]) -> None:
        """Write some rows of G g G' of a pair of input channels."""
        e, c, p, patch = self.emit, self.c, self.plan, self.plan.patch
        window = WINDOWS[p.out]
        panel = wide((out_tile * self.words + word) * (TAPS * 2 * self.width))
        source, to = e.let("source", panel), e.let("to", wide(word * self.width))
        for o in range(p.vectors):

            def read(tap: int, o: int = o) -> Any:
                stored = e.load(self.weight, source + (tap * p.vectors + o) * (2 * c), 2 * c)
                return e.let("g", tirx.Cast(self._words(), stored))

            columns = [window(e.let, [read(3 * y + x) for y in range(3)]) for x in range(3)]
            for number, y in enumerate(rows):
                row = window(e.let, [column[y] for column in columns])
                for x, value in enumerate(row):
                    place = to + ((number * patch + x) * self.weight_step + o * c)
                    e.store(self.changed, place, reinterpret(value, "int32", c))

    def _words(self) -> str:
        return vector_dtype("int16", 2 * self.c)

    def _multiply_position(self, out_tile: Any, group: Any, number: Any) -> None:
        """Write the products of one position."""
        p, e, c = self.plan, self.emit, self.c
        position = e.let("position", group * self.group + number)
        self._prefetch(out_tile + 1, position)
        start = e.let("start", position * self.patch_step)
        panel = e.let("panel", wide(number * self.weight_step))
        to = e.let("to", position * self.product_step)
        if len(self.tiles) == 1:
            with e.loop("repeat", p.repeats) as repeat:
                tile = repeat * p.register_tiles
                self._multiply(start + tile * c, panel, to + tile * self.width)
            return
        row = tirx.floordiv(position, p.patch)
        column = tirx.floormod(position, p.patch)
        first, end = self._range(e.let("row", row), e.let("column", column))
        count = tirx.floordiv(end - first + (p.register_tiles - 1), p.register_tiles)
        with e.loop("repeat", e.let("count", count)) as repeat:
            last = tirx.IntImm("int32", self.block - p.register_tiles)
            tile = e.let("tile", tirx.min(first + repeat * p.register_tiles, last))
            self._multiply(start + tile * c, panel, to + tile * self.width)

    def _prefetch(self, out_tile: Any, position: Any) -> None:
        """Ask for the share of a position of the weights of a tile of output channels."""
        panel = TAPS * 2 * self.words * self.width
        lines = math.ceil(panel / CACHE_LINE_BYTES / self.plan.positions)
        for line in range(lines):
            place = wide(out_tile * panel) + wide(position * lines + line) * CACHE_LINE_BYTES
            self.emit.prefetch(self.weight, place)

    def _range(self, row: Any, column: Any) -> tuple[Any, Any]:
        """Return the first tile that has a product at a position, and behind the last one."""
        points, out = self.change.points, self.plan.out
        down = [points[row] for row in self.rows_of_positions]
        # Only whole tiles have products at all points.
        some = [
            [all(point in CHANGES[g.outs[axis]].points for g in self.tiles) for point in order]
            for axis, order in enumerate((down, points))
        ]
        masks = [sum(has << place for place, has in enumerate(axis)) for axis in some]
        in_row, in_column = (
            tirx.bitwise_and(tirx.shift_right(tirx.IntImm("int32", mask), place), 1)
            for mask, place in zip(masks, (row, column), strict=True)
        )
        at = {tuple(m == out for m in g.outs): g for g in self.tiles}
        sizes = {key: group.count for key, group in at.items()}
        few_columns, few_rows, few_both = (
            sizes.get(key, 0) for key in ((True, False), (False, True), (False, False))
        )
        first = (1 - in_column) * few_columns
        end = few_columns + sizes[True, True] + in_row * (few_rows + in_column * few_both)
        return self.emit.let("first", first), self.emit.let("end", end)

    def _multiply(self, start: Any, panel: Any, to: Any) -> None:
        """Write one register tile of the product of one position."""
        p, e, c = self.plan, self.emit, self.c
        count = p.register_tiles * p.vectors
        start, to = e.let("start", start), e.let("to", wide(to))
        for index in range(count):
            e.store(self.acc, index, constant(0, "int32", c))

        def add(pair: Any, used: int) -> None:
            weights = e.let("weights", panel + wide(pair * (c * self.width)))
            source = e.let("source", wide(start + pair * (self.block * c)))
            # Unrolled, LLVM would add up the products of several turns, and spill the sums.
            with e.loop("channels", used, wide=True, step=self.hidden_one) as word:
                vectors = [
                    e.let("w", e.load(self.changed, weights + word * self.width + o * c, c))
                    for o in range(p.vectors)
                ]
                for t in range(p.register_tiles):
                    at = source + t * c + word
                    value = e.let("x", broadcast(e.load(self.patches, at), c))
                    for o, vector in enumerate(vectors):
                        index = t * p.vectors + o
                        e.store(self.acc, index, self.add(e.load(self.acc, index), value, vector))

        full, left = divmod(self.words, c)
        if full:
            with e.loop("pair", full) as pair:
                add(pair, c)
        if left:
            add(full, left)
        for index in range(count):
            e.store(self.products, to + index * c, e.load(self.acc, index))

    def _scatter(self, out_tile: Any, tiles: TileGroup, number: Any, vector: Any) -> None:
        """Write y of a vector of output channels of one tile, and what follows."""
        p, e, c = self.plan, self.emit, self.c
        down, across = (CHANGES[m] for m in tiles.outs)
        row, column = self._place(tiles, number)
        block = e.let("block", out_tile * p.vectors + vector)
        with ExitStack() as stack:
            if self.out_blocks % p.vectors:
                stack.enter_context(e.branch(block < self.out_blocks))
            source = wide((tiles.first + number) * self.width + vector * c)
            source = e.let("from", source)
            least = e.let("least", e.load(self.least, self.first_least + block * c, c))
            # What this is of, changed, is the least that y can be in all pixels.
            low = wrapping("mul", least, constant(down.one * across.one, "int32", c))

            def read(y: str, x: str) -> Any:
                at = source + self._rank(y, x) * self.product_step
                m = e.load(self.products, at, c)
                return e.let("m", wrapping("sub", m, low) if (y, x) == ("1", "1") else m)

            columns = [down.total(e.let, [read(y, x) for y in down.points]) for x in across.points]
            bias = e.let("bias", e.load(self.bias, block * c, c) + least)
            for y, halvings in enumerate(down.halvings):
                totals = across.total(e.let, [column[y] for column in columns])
                rests = [
                    self._divided(total, down.threes + across.threes, halvings + more)
                    for total, more in zip(totals, across.halvings, strict=True)
                ]
                self._put(block, row + y, column, [rest + bias for rest in rests])

    def _divided(self, total: Any, threes: int, halvings: int) -> Any:
        """Return a sum less the least that it can be, of which this is a multiple."""
        c = self.c
        if threes:
            total = wrapping("mul", total, constant(inverse_of_threes(threes), "int32", c))
        rest = reinterpret(total, "uint32", c)
        if halvings:
            rest = tirx.shift_right(rest, constant(halvings, "uint32", c))
        return reinterpret(rest, "int32", c)

    def _put(self, block: Any, row: Any, column: Any, sums: Sequence[Any]) -> None:
        """Store consecutive pixels of a line."""
        w, e, c, steps = self.work, self.emit, self.c, self.work.epilogue
        plane = (self.image * self.out_blocks + block) * w.out_h
        at = e.let("at", ((plane + row) * w.out_w + column) * c)
        if requantizes(steps):
            operand = self.operands[0]
            store_requantized(e, steps[0], operand, block * c, self.output, at, sums)
            return
        floats = vector_dtype("float32", c)
        finished = [
            apply(steps, tirx.Cast(floats, total), self._operand(at + x * c, block))
            for x, total in enumerate(sums)
        ]
        store_values(e, self.output, at, finished)

    def _operand(self, at: Any, block: Any) -> OperandLoader:
        places: Places = {
            "channel": block * self.c,
            "image_channel": (self.image * self.out_blocks + block) * self.c,
            "element": at,
        }
        return operand_loader(self.emit, self.operands, places, self.c)
