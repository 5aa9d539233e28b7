"""Provide 3x3 convolution of quantized values by Winograd's algorithm, exact.

F(m x m, 3 x 3) of Lavin and Gray 2016 (arXiv:1509.09308), on the points 0, 1, -1, 2, -2 and
infinity (m = 4) or 0, 1, -1 and infinity (m = 2), with all fractions moved to the end:

    k y = A' [sum over channels of (G g G') * (B' d B)] A

G, B and A are whole numbers, and k of an output pixel is 9 * 2**n or 2**n. B' d B of any uint8 or
int8 and G g G' of any int8 fit int16: products are those of pairs of int16, summed in int32. Sums
and A' m A are taken modulo 2**32; of k y that is enough: it is multiplied with what 9 times is 1
modulo 2**32, the least that y can be, times 2**n, is subtracted, and the rest is shifted right by
n, which gives y less that where y has 2**(32 - n) values at most. So accumulators are those of the
direct sum, bit for bit, and what follows is the same.

Sums of k y are 144 / 36 (m = 4) or 36 / 16 (m = 2) times fewer products than the direct sum has.

Layouts, with c float32 lanes in a vector:

    activation [N, ceil(channels / c), H, W, c] quantized; two blocks are changed at once.
    weight      int8 [tiles of output channels, pairs of input channels, 9, vectors, c, 2]: as they
                are, since what they are changed to is eight times as large. Each task changes them
                for a tile of output channels, for all of its tiles of the image. Then int32
                [padded output channels]: the least that y can be.
    bias        as of `integer.py`; padding is the zero point and is changed like any pixel.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.conv.integer_winograd_decision import (
    WORD_BYTES,
    Ends,
    bounds_of_sums,
    held_values,
    pairs_of,
)
from edgec.compiler.kernels.conv.winograd_decision import WinogradDecision, tiles_of
from edgec.compiler.kernels.conv.winograd_task import (
    WinogradTasks,
    patch_place,
    present_part,
)
from edgec.compiler.kernels.conv.workload import ConvWorkload, QuantizedConvWorkload
from edgec.compiler.kernels.emit.emitter import Emitter, hidden, wide
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
    lanes_of,
    reinterpret,
    shuffle,
    vector_dtype,
    wrapping,
)
from edgec.targets.target import Target

TAPS = 9

Let = Callable[[str, Any], Any]


@dataclass(frozen=True)
class ChangeOfBasis:
    """A change of basis describes Winograd's algorithm along one dimension.

    Attributes:
        patch: gives B' d of the values of a column or row of a patch, int16.
        window: gives G g of three weights, int16.
        total: gives A' m, int32 modulo 2**32.
        halvings: by output pixel, how often 2 divides what `total` gives too much.
        inverse: what the rest of it times is 1 modulo 2**32.
    """

    patch: Callable[[Let, Sequence[Any]], list[Any]]
    window: Callable[[Let, Sequence[Any]], list[Any]]
    total: Callable[[Let, Sequence[Any]], list[Any]]
    halvings: tuple[int, ...]
    inverse: int = 1


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
            self.changed = e.scratch("changed", p.positions * self.weight_step, "int32")
            self.products = e.scratch("products", p.positions * self.product_step, "int32")
            self.acc = e.local("acc", p.register_tiles * p.vectors, vector_dtype("int32", c))
            with e.loop("patch", self.block) as tile:
                self._gather(tile)
            with e.loop("out_tile", here.out_tiles, here.first_out_tile) as out_tile:
                with e.loop("word", self.words) as word:
                    self._change_weights(out_tile, word)
                with (
                    e.loop("product", p.positions) as position,
                    e.loop("repeat", p.repeats) as part,
                ):
                    self._multiply(position, part)
                with e.loop("result", self.block) as tile:
                    self._scatter(out_tile, tile)
        return Kernel(e.function(name), self.work.batch * p.splits * self.tasks.blocks)

    def _place(self, tile: Any) -> tuple[Any, Any]:
        """Return first output row and column of a tile; the last ones overlap their neighbours."""
        w, e, out = self.work, self.emit, self.plan.out
        index = e.let("index", self.first + tile)
        last_row, last_column = (tirx.IntImm("int32", end - out) for end in (w.out_h, w.out_w))
        row = tirx.min(tirx.floordiv(index, self.columns) * out, last_row)
        column = tirx.min(tirx.floormod(index, self.columns) * out, last_column)
        return e.let("row", row), e.let("column", column)

    def _gather(self, tile: Any) -> None:
        """Write B' d B of one tile, for all input channels."""
        w, e, c, patch = self.work, self.emit, self.c, self.plan.patch
        top, left, inside = patch_place(e, w, self._place(tile), patch)
        pairs = math.ceil(self.in_blocks / 2)
        with e.branch(inside), e.loop("pair", pairs) as pair:
            first, second = self._pixels(pair, top, left)

            def read(y: int, x: int) -> Any:
                at = (y * w.in_w + x) * c
                halves = [e.load(self.data, place + at, c) for place in (first, second)]
                return shuffle(halves, range(2 * c))

            self._change_patch(tile, pair, read)
        with e.branch(tirx.Not(inside)):
            self._border(tile, top, left, pairs)

    def _pixels(self, pair: Any, row: Any, column: Any) -> tuple[Any, Any]:
        """Return where the input has a pixel of two blocks of channels.

        Behind the last block it is read again: weights of channels that are none are 0.
        """
        w = self.work
        second: Any = 2 * pair + 1
        if self.in_blocks % 2:
            second = tirx.min(second, tirx.IntImm("int32", self.in_blocks - 1))
        places = []
        for name, block in (("first", 2 * pair), ("second", second)):
            line = (self.image * self.in_blocks + block) * w.in_h + row
            places.append(self.emit.let(name, wide((line * w.in_w + column) * self.c)))
        return places[0], places[1]

    def _border(self, tile: Any, top: Any, left: Any, pairs: int) -> None:
        """Read a tile whose patch lies partly outside from a copy, with the code of the padding."""
        w, e, c, patch = self.work, self.emit, self.c, self.plan.patch
        first_row, rows = present_part(e, "row", top, w.in_h, patch)
        first_column, columns = present_part(e, "column", left, w.in_w, patch)
        copy = e.scratch("copy", patch * patch * 2 * c, self.dtype)
        with e.loop("place", patch * patch) as place:
            e.store(copy, place * (2 * c), constant(self.code, self.dtype, 2 * c))
        with e.loop("pair", pairs) as pair:
            sources = self._pixels(pair, top, left)
            with (
                e.loop("y", rows, first_row) as y,
                e.loop("x", columns, first_column, wide=True) as x,
            ):
                for half, source in enumerate(sources):
                    value = e.load(self.data, source + (y * w.in_w + x) * c, c)
                    e.store(copy, (y * patch + x) * (2 * c) + half * c, value)
            self._change_patch(
                tile, pair, lambda y, x: e.load(copy, (y * patch + x) * (2 * c), 2 * c)
            )

    def _change_patch(self, tile: Any, pair: Any, read: Callable[[int, int], Any]) -> None:
        """Write B' d B of one patch of two blocks of channels."""
        e, c, patch, words = self.emit, self.c, self.plan.patch, self._words()
        to = e.let("to", wide((pair * self.block + tile) * c))
        columns = []
        for x in range(patch):
            values = [e.let("d", tirx.Cast(words, read(y, x))) for y in range(patch)]
            columns.append(self.change.patch(e.let, values))
        for y in range(patch):
            for x, value in enumerate(self.change.patch(e.let, [each[y] for each in columns])):
                place = to + (y * patch + x) * self.patch_step
                e.store(self.patches, place, reinterpret(value, "int32", c))

    def _change_weights(self, out_tile: Any, word: Any) -> None:
        """Write G g G' of a pair of input channels, for a tile of output channels."""
        e, c, p, patch = self.emit, self.c, self.plan, self.plan.patch
        panel = wide((out_tile * self.words + word) * (TAPS * 2 * self.width))
        source, to = e.let("source", panel), e.let("to", wide(word * self.width))
        for o in range(p.vectors):

            def read(tap: int, o: int = o) -> Any:
                stored = e.load(self.weight, source + (tap * p.vectors + o) * (2 * c), 2 * c)
                return e.let("g", tirx.Cast(self._words(), stored))

            columns = [
                self.change.window(e.let, [read(3 * y + x) for y in range(3)]) for x in range(3)
            ]
            for y in range(patch):
                row = self.change.window(e.let, [column[y] for column in columns])
                for x, value in enumerate(row):
                    place = to + ((y * patch + x) * self.weight_step + o * c)
                    e.store(self.changed, place, reinterpret(value, "int32", c))

    def _words(self) -> str:
        return vector_dtype("int16", 2 * self.c)

    def _multiply(self, position: Any, repeat: Any) -> None:
        """Write one register tile of the product of one position."""
        p, e, c = self.plan, self.emit, self.c
        count = p.register_tiles * p.vectors
        for index in range(count):
            e.store(self.acc, index, constant(0, "int32", c))
        start = e.let("start", position * self.patch_step + repeat * (p.register_tiles * c))
        panel = e.let("panel", position * self.weight_step)

        def pair_of(pair: Any, used: int) -> None:
            weights = e.let("weights", wide(panel + pair * (c * self.width)))
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
                pair_of(pair, c)
        if left:
            pair_of(full, left)
        to = e.let("to", position * self.product_step + repeat * (p.register_tiles * self.width))
        for index in range(count):
            e.store(self.products, to + index * c, e.load(self.acc, index))

    def _scatter(self, out_tile: Any, tile: Any) -> None:
        """Write y of one tile, and what follows."""
        p, e, c, patch = self.plan, self.emit, self.c, self.plan.patch
        row, column = self._place(tile)
        for o in range(p.vectors):
            with ExitStack() as stack:
                block = out_tile * p.vectors + o
                if self.out_blocks % p.vectors:
                    stack.enter_context(e.branch(block < self.out_blocks))
                source = e.let("from", wide(tile * self.width + o * c))
                columns = []
                for x in range(patch):
                    places = [source + (y * patch + x) * self.product_step for y in range(patch)]
                    m = [e.let("m", e.load(self.products, place, c)) for place in places]
                    columns.append(self.change.total(e.let, m))
                least = e.let("least", e.load(self.least, self.first_least + block * c, c))
                bias = e.let("bias", e.load(self.bias, block * c, c) + least)
                for y in range(p.out):
                    totals = self.change.total(e.let, [each[y] for each in columns])
                    rests = [self._divided(value, least, y, x) for x, value in enumerate(totals)]
                    sums = [rest + bias for rest in rests]
                    self._put(block, row + y, column, sums)

    def _divided(self, total: Any, least: Any, y: int, x: int) -> Any:
        """Return y, less the least that it can be, of k y."""
        halvings, c = self.change.halvings[y] + self.change.halvings[x], self.c
        if self.change.inverse != 1:
            total = wrapping("mul", total, constant(self.change.inverse, "int32", c))
        low = tirx.shift_left(least, constant(halvings, "int32", c))
        rest = reinterpret(wrapping("sub", total, low), "uint32", c)
        return reinterpret(tirx.shift_right(rest, constant(halvings, "uint32", c)), "int32", c)

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


def _patch_2(let: Let, d: Sequence[Any]) -> list[Any]:
    rows = (d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3])
    return [let("t", row) for row in rows]


def _window_2(let: Let, g: Sequence[Any]) -> list[Any]:
    ends = let("ends", g[0] + g[2])
    return [g[0], let("u", ends + g[1]), let("u", ends - g[1]), g[2]]


def _total_2(let: Let, m: Sequence[Any]) -> list[Any]:
    """Return twice A' m."""
    first, last = (wrapping("add", each, each) for each in (m[0], m[3]))
    return [
        let("s", wrapping("add", first, wrapping("add", m[1], m[2]))),
        let("s", wrapping("sub", wrapping("sub", m[1], m[2]), last)),
    ]


def _patch_4(let: Let, d: Sequence[Any]) -> list[Any]:
    four = [let("four", _times(4, each)) for each in d[:4]]
    even, odd = let("even", d[4] - four[2]), let("odd", d[3] - four[1])
    near, twice = let("near", d[4] - d[2]), let("twice", _times(2, d[3] - d[1]))
    rows = (
        four[0] + (even - d[2]),
        even + odd,
        even - odd,
        near + twice,
        near - twice,
        four[1] - d[3] - four[3] + d[5],
    )
    return [let("t", row) for row in rows]


def _window_4(let: Let, g: Sequence[Any]) -> list[Any]:
    ends, far = let("ends", g[0] + g[2]), let("far", g[0] + _times(4, g[2]))
    twice = let("twice", _times(2, g[1]))
    rows = (ends + g[1], ends - g[1], far + twice, far - twice)
    return [g[0], *(let("u", row) for row in rows), g[2]]


def _total_4(let: Let, m: Sequence[Any]) -> list[Any]:
    """Return 24, 12, 6 and 6 times A' m."""

    def plus(left: Any, right: Any) -> Any:
        return let("sum", wrapping("add", left, right))

    def minus(left: Any, right: Any) -> Any:
        return let("difference", wrapping("sub", left, right))

    def times(number: int, value: Any) -> Any:
        return wrapping("mul", value, constant(number, "int32", lanes_of(value)))

    sums = plus(m[1], m[2]), plus(m[3], m[4])
    differences = minus(m[1], m[2]), minus(m[3], m[4])
    return [
        plus(minus(sums[1], times(4, sums[0])), times(6, m[0])),
        minus(differences[1], times(2, differences[0])),
        minus(sums[1], sums[0]),
        plus(minus(times(2, differences[1]), differences[0]), times(6, m[5])),
    ]


def _times(number: int, value: Any) -> Any:
    return value * constant(number, "int16", lanes_of(value))


CHANGES = {
    2: ChangeOfBasis(_patch_2, _window_2, _total_2, (1, 1)),
    # 9 * 954437177 = 2 * 2**32 + 1
    4: ChangeOfBasis(_patch_4, _window_4, _total_4, (3, 2, 1, 1), 954437177),
}
"""By rows of output pixels in a tile."""
