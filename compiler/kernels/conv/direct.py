"""Provide direct convolution on channel-blocked activations.

Layouts, with c lanes in a vector, B = ceil(channels / c):

    activation  [N, B, H, W, c]; channels past the last are padding and hold anything.
                A network's input may stay [N, C, H, W] (`plain_input`).
    weight      for each tile of output channels: one row of (tile_o * c) values for every
                (input block, kh, kw, channel in the block); `pack_weight` makes it.

One task computes one line tile (or `tile_h` lines of a small image) for `tile_o` blocks of
output channels. Inside, a register tile of tile_h x tile_w pixels x tile_o vectors is
accumulated over the whole window and all input channels; each step broadcasts one input value
per pixel and multiplies it with tile_o weight vectors. Border pixels are handled when the code
is written: a tile at the left or right edge simply lacks the products that would read outside,
the rows of a window that are outside are skipped. The last tile of a line overlaps its
neighbour instead of being shorter.

The innermost loop is over input channels and not over the window: LLVM would otherwise keep
input values of one window column for the next, and spill accumulators for it.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from tvm import tirx

from edgec.compiler.kernels.conv.decision import ConvDecision
from edgec.compiler.kernels.conv.weights import block_size, input_channels
from edgec.compiler.kernels.conv.windows import (
    Span,
    each_span,
    tile_spans,
    valid_rows,
    valid_tap_runs,
)
from edgec.compiler.kernels.conv.workload import ChannelRun, ConvBuffers, ConvWorkload
from edgec.compiler.kernels.emit.emitter import CACHE_LINE_BYTES, Emitter, hidden, wide
from edgec.compiler.kernels.emit.epilogue import (
    EpilogueStep,
    Places,
    apply,
    begins_with_bias,
    operand_loader,
)
from edgec.compiler.kernels.emit.quantized_values import store_values, weight_to_float
from edgec.compiler.kernels.emit.requantize import requantizes, store_requantized_rows
from edgec.compiler.kernels.vectors import broadcast, constant, vector_dtype

Mask = Sequence[bool]
"""Says for each pixel, or each line, whether its input exists."""


def _chosen(tile: Any, numbers: Sequence[int]) -> Any:
    """Return the number of a tile, by a chain of comparisons: once for each task."""
    value: Any = tirx.IntImm("int32", numbers[-1])
    for index in range(len(numbers) - 2, -1, -1):
        if numbers[index] != numbers[index + 1]:
            value = tirx.Select(tile <= index, tirx.IntImm("int32", numbers[index]), value)
    return value


def _positions(plan: ConvDecision) -> list[tuple[int, int, int]]:
    """Return line, pixel and vector of each accumulator."""
    lines, pixels, vectors = map(range, (plan.tile_h, plan.tile_w, plan.tile_o))
    return [(y, x, o) for y in lines for x in pixels for o in vectors]


def _store_rows(
    e: Emitter,
    steps: Sequence[EpilogueStep],
    operands: Sequence[Any],
    output: Any,
    rows: Sequence[tuple[Any, Any, Sequence[Any]]],
) -> None:
    """Store rows of results: the channel of each, where it goes, and its vectors."""
    if rows and requantizes(steps):
        store_requantized_rows(e, steps[0], operands[0], output, rows)
        return
    for _, at, values in rows:
        store_values(e, output, at, values)


class DirectConv:
    """Writes one convolution into an emitter.

    Attributes:
        dtype: the dtype of accumulators.
        border: whether products with the padding count.
        writes_rows: whether known rows of the window are written out, not a loop.
    """

    dtype = "float32"
    border = writes_rows = False

    def __init__(
        self,
        workload: ConvWorkload,
        decision: ConvDecision,
        c: int,
        emit: Emitter,
        buffers: ConvBuffers,
        weight_base: int,
    ) -> None:
        self.work = workload
        self.plan = decision
        self.c = c
        self.emit = emit
        self.data, self.weight = buffers.data, buffers.weight
        self.operands, self.output = buffers.operands, buffers.output
        self.scales, self.groups = buffers.scales, buffers.groups
        self.weight_base = weight_base
        self.block = self.input_block()
        self.channels = input_channels(workload, decision.tile_o, c, self.block)
        self.begins_with_bias = self.takes_bias()
        self.in_blocks = math.ceil(workload.in_channels / self.block)
        self.out_blocks = math.ceil(workload.out_channels / c)
        self.width = decision.tile_o * c
        taps = math.prod(workload.kernel)
        self.depth = ((self.channels.blocks - 1) * self.block + self.channels.last) * taps
        w = workload
        self.rows = tile_spans(w.window(0), decision.tile_h)
        self.row_tiles = sum(len(span.starts) for span in self.rows)
        self.line_tiles = math.ceil(w.out_w / decision.tile_w)
        if decision.segment:
            self.row_tiles = math.ceil(self.line_tiles / decision.segment)
        # How often the weights of a tile are read before those of the next one are.
        self.passes = decision.segment or self.line_tiles
        if decision.rows_first:
            self.passes = self.line_tiles * (1 if decision.segment else self.row_tiles)
        self.tasks = w.batch * self.row_tiles * len(self.channels.starts)

    def input_block(self) -> int:
        """Return values in a block of input channels."""
        return block_size(self.work, self.c)

    def takes_bias(self) -> bool:
        """Return whether the first step of the epilogue is where accumulators begin."""
        return begins_with_bias(self.work.epilogue)

    def total(self, accumulator: Any) -> Any:
        """Return what the epilogue begins with."""
        return accumulator

    def body(self, task: Any) -> None:
        """Compute one task."""
        p, e = self.plan, self.emit
        out_tiles = len(self.channels.starts)
        if p.rows_first:
            row = e.let("row", tirx.floormod(task, self.row_tiles))
            rest = e.let("rest", tirx.floordiv(task, self.row_tiles))
            tile = e.let("tile", tirx.floormod(rest, out_tiles))
            image = e.let("image", tirx.floordiv(rest, out_tiles))
        else:
            tile = e.let("tile", tirx.floormod(task, out_tiles))
            rest = e.let("rest", tirx.floordiv(task, out_tiles))
            row = e.let("row", tirx.floormod(rest, self.row_tiles))
            image = e.let("image", tirx.floordiv(rest, self.row_tiles))
        count = p.tile_h * p.tile_w * p.tile_o
        self.acc = e.local("acc", count, vector_dtype(self.dtype, self.c))
        self.image, self.tile, self.task, self.row = image, tile, task, row
        self.start_block(tile)
        if p.segment:
            self._segment(row)
        elif p.tile_h == 1:
            self._line(row)
        else:
            self._lines(row, self.rows)

    def start_block(self, tile: Any) -> None:
        """Write first input block of this tile of output channels, in `self.first_block`."""
        self.first_block = self.emit.let("first_block", _chosen(tile, self.channels.starts))

    def _segment(self, number: Any) -> None:
        """Write some register tiles of a long line.

        The last one of the line overlaps its neighbour.
        """
        w, p, e = self.work, self.plan, self.emit

        def window() -> Iterator[tuple[Any, Any, Sequence[bool]]]:
            yield 0, 0, (True,)

        self.begin_tiles()
        first = e.let("first_tile", number * p.segment)
        count = e.let("tiles", tirx.min(tirx.IntImm("int32", p.segment), self.line_tiles - first))
        with e.loop("column_tile", count) as offset:
            column = (first + offset) * p.tile_w
            if w.out_w % p.tile_w:
                column = tirx.min(column, tirx.IntImm("int32", w.out_w - p.tile_w))
            self.passed = e.let("passed", (first if p.rows_first else 0) + offset)
            self._tile(0, e.let("column", column), [(True,)] * p.tile_w, window)

    def _line(self, row: Any) -> None:
        """Write one output line; the rows of the window that are inside are known at run time."""
        w, e = self.work, self.emit
        top = e.let("top", row * w.stride[0] - w.padding[0])
        first, count = self.present = valid_rows(e, top, w.window(0))

        def window() -> Iterator[tuple[Any, Any, Sequence[bool]]]:
            with e.loop("kh", count, first) as kh:
                yield kh, top + kh * w.dilation[0], (True,)

        self.write_line(row, window, count, top)

    def write_line(self, row: Any, window: Any, _count: Any, _top: Any) -> None:
        """Write one output line of which so many rows of the window are inside."""
        self.write_columns(row, window)

    def _lines(self, row: Any, spans: Sequence[Span]) -> None:
        """Write several output lines; which rows of the window are inside is known here."""
        w, e = self.work, self.emit
        for span, start in each_span(e, row, spans, self.plan.tile_h):
            top = e.let("top", start * w.stride[0] - w.padding[0])

            def window(
                span: Span = span, top: Any = top
            ) -> Iterator[tuple[Any, Any, Sequence[bool]]]:
                for first, count in valid_tap_runs(span.valid, self.border):
                    valid = tuple(pixel[first] for pixel in span.valid)
                    if self.writes_rows:
                        rows = range(first, first + count)
                        yield from ((row, top + row * w.dilation[0], valid) for row in rows)
                        continue
                    with e.loop("kh", self.hide_from_llvm(count), first) as kh:
                        yield kh, top + kh * w.dilation[0], valid

            self.write_columns(start, window)

    def write_columns(self, line: Any, window: Any) -> None:
        """Write all register tiles along a line (or along tile_h lines)."""
        w, p, e = self.work, self.plan, self.emit
        before = 0
        self.begin_tiles()
        for span in tile_spans(w.window(1), p.tile_w):
            with e.loop("column_tile", len(span.starts)) as number:
                self.passed = number + before
                if p.rows_first:
                    self.passed = e.let("passed", self.row * self.line_tiles + self.passed)
                column = e.let("column", number * p.tile_w + span.starts[0])
                self._tile(line, column, span.valid, window)
            before += len(span.starts)

    def _tile(self, line: Any, column: Any, valid: Sequence[Sequence[bool]], window: Any) -> None:
        self.start_tile()
        self.accumulate_taps(column, valid, window)
        self._store(line, column)

    def begin_tiles(self) -> None:
        """Prepare what all register tiles of some lines begin with."""

    def start_tile(self) -> None:
        """Write what the accumulators begin with."""
        starts = [self.start(o) for o in range(self.plan.tile_o)]
        for position, (_, _, o) in enumerate(_positions(self.plan)):
            self.emit.store(self.acc, position, starts[o])

    def accumulate_taps(self, column: Any, valid: Sequence[Sequence[bool]], window: Any) -> None:
        """Add all products of a register tile to the accumulators."""
        full = (
            self.channels.blocks - 1 if self.channels.last != self.block else self.channels.blocks
        )
        if full:
            with self.emit.loop("block", self.turns(full)) as block:
                self._block(block, self.block, column, valid, window)
        if full < self.channels.blocks:
            self._block(full, self.channels.last, column, valid, window)

    def turns(self, blocks: int) -> Any:
        """Return how often the loop over blocks of input channels turns."""
        return blocks

    def start(self, o: int) -> Any:
        """Return what accumulators of a vector of output channels begin with."""
        if not self.begins_with_bias:
            return constant(0, self.dtype, self.c)
        return self.emit.load(self.operands[0], self.first_channel(o), self.c)

    def first_channel(self, o: int) -> Any:
        """Return the first channel of a vector of output channels of this tile."""
        block = self.tile * self.plan.tile_o + o
        if self.out_blocks % self.plan.tile_o:
            # Blocks past the last are computed, not stored.
            block = tirx.min(block, tirx.IntImm("int32", self.out_blocks - 1))
        return block * self.c

    def _block(
        self, block: Any, used: int, column: Any, valid: Sequence[Sequence[bool]], window: Any
    ) -> None:
        """Accumulate one block of input channels, of which `used` exist."""
        w, e = self.work, self.emit
        taps_h, taps_w = w.kernel
        first_row = self.tile * self.depth + block * (taps_h * taps_w * self.block)
        rows = e.let("rows", first_row + self.weight_base // self.width)
        source = (self.image * self.in_blocks + self.first_block + block) * w.in_h
        self.add_channels(ChannelRun(rows, source, used), column, valid, window)

    def add_channels(
        self, run: ChannelRun, column: Any, valid: Sequence[Sequence[bool]], window: Any
    ) -> None:
        """Add the products of some channels of a block of input channels."""
        w, e, taps_w = self.work, self.emit, self.work.kernel[1]
        left = column * w.stride[1] - w.padding[1]
        for kh, top, lines in window():
            first_pixel = ((run.source + top) * w.in_w + left) * self.block
            base = e.let("base", first_pixel + run.skipped)
            rows = run.rows + kh * (taps_w * run.used)
            self.window_row(base, rows, run.used, valid, lines)

    def window_row(
        self, base: Any, rows: Any, used: Any, valid: Sequence[Mask], lines: Mask
    ) -> None:
        """Accumulate one row of the window.

        Args:
            base: where the input of the first pixel, tap and channel is.
            rows: the row of the packed weight for the first tap and channel.
            used: channels of the block.
            valid: by pixel of a line and tap, whether its input exists.
            lines: by line, whether its input exists; one holds for all.
        """
        w, e = self.work, self.emit
        for first, count in valid_tap_runs(valid, self.border):
            inside = [pixel[first] for pixel in valid]
            with e.loop("kw", self.hide_from_llvm(count), first) as kw:
                weights = e.let("weights", wide((rows + kw * used) * self.width))
                at = e.let("at", wide(base + kw * (w.dilation[1] * self.block)))
                self._prefetch(weights, used)
                self.accumulate(at, weights, used, inside, lines)

    def _prefetch(self, weights: Any, used: Any) -> None:
        """Ask for this pass's share of the weights of the next tile of output channels.

        A tile of output channels passes over its weights once for each register tile of the
        image. Without this, the first pass waits for the third-level cache, the others do not.
        """
        line = CACHE_LINE_BYTES // np.dtype(str(self.weight.ty.dtype.dtype)).itemsize
        most = used if isinstance(used, int) else self.block
        share = math.ceil(most * self.width / line / self.passes)
        following = weights + self.depth * self.width
        for number in range(share):
            place = (self.passed * share + number) * line
            self.emit.prefetch(self.weight, following + place)

    def hide_from_llvm(self, count: int) -> Any:
        """Return the count as a value that LLVM cannot see through.

        It would unroll a loop of few turns, keep the values that neighbouring turns share in
        registers, and spill the accumulators.
        """
        if count == 1:
            return count
        return hidden(count, self.task)

    def accumulate(
        self, base: Any, weights: Any, count: Any, inside: Sequence[bool], lines: Sequence[bool]
    ) -> None:
        """Write products of one tap with channels of a block, `count` of them."""
        with self.emit.loop("channel", count, wide=True) as channel:
            self.add_products(base, weights, [channel], inside, lines)

    def add_products(
        self,
        base: Any,
        weights: Any,
        channels: Sequence[Any],
        inside: Sequence[bool],
        lines: Sequence[bool],
    ) -> None:
        """Write products of one tap with some channels, in all pixels of the tile."""
        w, p, e, c = self.work, self.plan, self.emit, self.c
        vectors = [
            [
                e.let("w", self.weights_at(weights + channel * self.width + o * c))
                for channel in channels
            ]
            for o in range(p.tile_o)
        ]
        if self.scales is not None:
            (channel,) = channels
            row = tirx.floordiv(weights, self.width) - wide(self.tile * self.depth) + channel
            group = self.tile * w.scale_groups + e.load(self.groups, row)
            scales = e.let("scales", wide(group * self.width))
            vectors = [
                [e.let("w", vector * e.load(self.scales, scales + o * c, c))]
                for o, (vector,) in enumerate(vectors)
            ]
        self.multiply(vectors, base, channels, inside, lines)

    def multiply(
        self,
        vectors: Sequence[Sequence[Any]],
        base: Any,
        channels: Sequence[Any],
        inside: Sequence[bool],
        lines: Sequence[bool],
    ) -> None:
        """Add the products of vectors of weights with the values of each pixel.

        Args:
            vectors: for each block of output channels one for each input channel.
            base: where the input of the first pixel and channel is.
            channels: how far from the first channel each is.
            inside: by pixel of a line, whether its input exists.
            lines: likewise by line; one holds for all.
        """
        w, p, e = self.work, self.plan, self.emit
        for y in range(p.tile_h):
            for x in range(p.tile_w):
                if lines[y if len(lines) > 1 else 0] and inside[x]:
                    place = y * w.stride[0] * w.in_w + x * w.stride[1]
                    values = [self.value(base, place, channel) for channel in channels]
                elif self.border:
                    values = [self.outside()] * len(channels)
                else:
                    continue
                for o, vector in enumerate(vectors):
                    position = (y * p.tile_w + x) * p.tile_o + o
                    total = self.add(e.load(self.acc, position), values, vector)
                    e.store(self.acc, position, total)

    def weights_at(self, at: Any) -> Any:
        """Return a vector of weights as floats."""
        stored = self.emit.load(self.weight, at, self.c)
        return weight_to_float(stored, self.work.weight, self.emit.isa.converts_float16)

    def value(self, base: Any, place: int, channel: Any) -> Any:
        """Return one input value for all output channels, so many pixels from the first one."""
        return self.read(base + place * self.block + channel)

    def read(self, at: Any) -> Any:
        """Return one input value for all output channels."""
        return self.emit.let("x", broadcast(self.emit.load(self.data, at), self.c))

    def outside(self) -> Any:
        """Return the value of the padding, where it is not zero."""
        raise NotImplementedError

    def add(self, accumulator: Any, values: Sequence[Any], weights: Sequence[Any]) -> Any:
        """Accumulate a product for each channel."""
        for value, weight in zip(values, weights, strict=True):
            accumulator = accumulator + value * weight
        return accumulator

    def _store(self, line: Any, column: Any) -> None:
        w, p, e, c = self.work, self.plan, self.emit, self.c
        skip, fixed = int(self.begins_with_bias), requantizes(w.epilogue)
        height, width = w.out_extent
        rows: list[tuple[Any, Any, Sequence[Any]]] = []
        for o in range(p.tile_o):
            with ExitStack() as stack:
                block = self.tile * p.tile_o + o
                if self.out_blocks % p.tile_o:
                    stack.enter_context(e.branch(block < self.out_blocks))
                plane = e.let("plane", (self.image * self.out_blocks + block) * height)
                for y in range(p.tile_h):
                    row = (line + y) * w.out_step[0] + w.out_origin[0]
                    first = e.let("to", ((plane + row) * width + w.out_origin[1]) * c)
                    values: list[Any] = []
                    for x in range(p.tile_w):
                        at = first + (column + x) * (w.out_step[1] * c)
                        places: Places = {
                            "channel": block * c,
                            "image_channel": (self.image * self.out_blocks + block) * c,
                            "element": at,
                        }
                        operand = operand_loader(e, self.operands[skip:], places, c)
                        position = (y * p.tile_w + x) * p.tile_o + o
                        accumulator = e.load(self.acc, position)
                        if not fixed:
                            accumulator = apply(w.epilogue[skip:], self.total(accumulator), operand)
                        values.append(accumulator)
                        if w.out_step[1] > 1:
                            rows.append((block * c, at, values))
                            values = []
                    if values:
                        rows.append((block * c, first + column * c, values))
                if self.out_blocks % p.tile_o:
                    _store_rows(e, w.epilogue, self.operands, self.output, rows)
                    rows = []
        _store_rows(e, w.epilogue, self.operands, self.output, rows)
