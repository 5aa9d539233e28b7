"""Describe what the two ways to compute a depthwise convolution of quantized values share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import tirx

from edgec.compiler.kernels.conv.workload import ConvWorkload, QuantizedConvWorkload
from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.epilogue import (
    Places,
    apply,
    declare_operands,
    operand_loader,
    output_dtype,
)
from edgec.compiler.kernels.emit.quantized_values import store_values
from edgec.compiler.kernels.emit.requantize import requantizes, store_requantized
from edgec.compiler.kernels.isa import Dot, dot_of
from edgec.compiler.kernels.vectors import constant, shuffle, vector_dtype
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.targets.target import Target

# The rewritten lines of a window are to stay in the first-level cache, and are on the stack.
RING_BYTES = 32 * 1024

# To hand a task out.
TASK_CYCLES = 1000


@dataclass(frozen=True)
class IntegerDepthwiseWorkload(QuantizedConvWorkload):
    """An integer depthwise workload describes a depthwise convolution of quantized values.

    Attributes:
        conv: as many groups as channels.
        together: groups of taps, side by side, whose products fit the int16 accumulators of
            `pair_sums`.
        sums: which products of pairs of taps are added in int16, see `pair_sums.wrapped_sums`;
            empty: the target has better.
    """

    conv: ConvWorkload
    together: int = field(default=1, metadata={"omit_if_default": True})
    sums: tuple[tuple[int, ...], ...] = field(default=(), metadata={"omit_if_default": True})

    @property
    def tap_groups(self) -> int:
        """Return groups of taps in a row of the window."""
        return math.ceil(self.conv.kernel[1] / DOT_WIDTH)

    @property
    def spread(self) -> int:
        """Return columns from one group of taps to the next, in windows."""
        return DOT_WIDTH // self.conv.stride[1]

    @property
    def columns(self) -> int:
        """Return rewritten columns of a line."""
        return self.conv.out_w + (self.tap_groups - 1) * self.spread

    @property
    def line(self) -> int:
        """Return columns of a line that are read, padding included."""
        return (self.columns - 1) * self.conv.stride[1] + DOT_WIDTH

    @property
    def has_rows(self) -> bool:
        """Return whether rows of the window can be outside, and count."""
        conv = self.conv
        lowest = (conv.out_h - 1) * conv.stride[0] + conv.kernel[0] - conv.padding[0]
        return self.border != 0 and (conv.padding[0] > 0 or lowest > conv.in_h)

    def suits(self, lanes: int) -> bool:
        """Return whether groups of taps begin at windows and the lines fit their place."""
        conv = self.conv
        whole = DOT_WIDTH % conv.stride[1] == 0 and conv.dilation == (1, 1)
        return whole and conv.kernel[0] * self.columns * lanes * DOT_WIDTH <= RING_BYTES


@dataclass(frozen=True)
class DepthwiseDecision:
    """A depthwise decision describes how it is computed.

    Attributes:
        tile_w: pixels of a line in the register tile.
        lines: the lines of the output in one task; of tiles of more lines, the rows of tiles.
        tile_h: lines in the register tile, where windows are rewritten in registers; 0: they are
            rewritten into a ring.
        words: whether taps are multiplied one by one, in int16.
        pairs: whether taps are multiplied two by two and summed in int16.
        shifts: neighbouring pixels that share a window of four columns: the taps of each begin at
            another place of it, so there are as many packed weights of a row.
        columns: whether taps are multiplied by four of a column of the window, not of a row.
        rows: whether all lines are rewritten first, and rows of the window are written out.
    """

    tile_w: int
    lines: int
    tile_h: int = field(default=0, metadata={"omit_if_default": True})
    words: bool = field(default=False, metadata={"omit_if_default": True})
    pairs: bool = field(default=False, metadata={"omit_if_default": True})
    shifts: int = field(default=1, metadata={"omit_if_default": True})
    columns: bool = field(default=False, metadata={"omit_if_default": True})
    rows: bool = field(default=False, metadata={"omit_if_default": True})


def shares(count: int) -> list[int]:
    """Return how many of a count a task may take, where 1 to 16 tasks share it; ascending."""
    return sorted({math.ceil(count / parts) for parts in (1, 2, 3, 4, 8, 16)})


class DepthwiseWriter:
    """Declares the buffers of a kernel, and writes what does not depend on where windows are."""

    def __init__(
        self, workload: IntegerDepthwiseWorkload, decision: DepthwiseDecision, target: Target
    ) -> None:
        dot = dot_of(target)
        assert dot is not None
        self.dot: Dot = dot
        self.target = target
        self.work, self.plan, self.c = workload, decision, target.float_lanes
        conv = self.conv = workload.conv
        self.blocks = math.ceil(conv.in_channels / self.c)
        # Bytes of a rewritten column.
        self.step = DOT_WIDTH * self.c
        e, c = Emitter(target), self.c
        self.emit = e
        planes = conv.batch * self.blocks
        self.data = e.buffer("data", planes * conv.in_h * conv.in_w * c, self.dot.data)
        self.weight = self.declare_weight()
        self.bias = e.buffer("bias", self.blocks * c, "int32")
        if workload.has_rows:
            self.row_sums = e.buffer("rows", conv.kernel[0] * self.blocks * c, "int32")
        out_size = planes * conv.out_h * conv.out_w * c
        self.operands = declare_operands(
            e,
            conv.epilogue,
            {"channel": self.blocks * c, "image_channel": planes * c, "element": out_size},
        )
        self.output = e.buffer("output", out_size, output_dtype(conv.epilogue))

    def declare_weight(self) -> Any:
        """Return the parameter of packed weights."""
        rows = self.blocks * self.conv.kernel[0] * self.plan.shifts
        size = rows * self.work.tap_groups * self.c
        return self.emit.buffer("weight", size, "int32")

    def start_of(self, block: Any, valid: Sequence[bool]) -> Any:
        """Return what accumulators begin with: the bias, and the padding in rows that are not."""
        e, c = self.emit, self.c
        start = e.load(self.bias, block * c, c)
        if self.work.has_rows:
            for kh in (kh for kh, inside in enumerate(valid) if not inside):
                start = start + e.load(self.row_sums, (kh * self.blocks + block) * c, c)
        return e.let("bias", start)

    def write_borders(self, buffer: Any, lines: int = 1, line_size: int = 0) -> None:
        """Write the columns of consecutive lines of a buffer beside the image."""
        e, left_right = self.emit, self.inside()
        quantized = constant(self.work.border, self.dot.data, self.c)
        for begin, past in ((0, left_right[0]), (left_right[1], self.work.line)):
            if past > begin:
                with e.loop("line", lines) as line, e.loop("column", past - begin, begin) as column:
                    e.store(buffer, (line * line_size + column) * self.c, quantized)

    def copy_line(self, plane: Any, source: Any, buffer: Any, to: Any) -> None:
        """Copy a line of the image into a line of a buffer, where it has columns beside it."""
        w, e, c = self.conv, self.emit, self.c
        left, right = self.inside()
        first = e.let("from", (plane * w.in_h + source) * w.in_w * c)
        wide, rest = divmod(right - left, DOT_WIDTH)
        with e.loop("columns", wide) as number:
            quantized = e.load(self.data, first + number * self.step, self.step)
            e.store(buffer, to + left * c + number * self.step, quantized)
        with e.loop("column", rest) as number:
            at = wide * self.step + number * c
            e.store(buffer, to + left * c + at, e.load(self.data, first + at, c))

    def inside(self) -> tuple[int, int]:
        """Return columns of a line between which the image is."""
        left = self.conv.padding[1]
        return min(left, self.work.line), min(left + self.conv.in_w, self.work.line)

    def by_channel(self, quantized: Any) -> Any:
        """Return four columns of c channels as c channels of four columns, as `Dot` wants them."""
        c = self.c
        # Four channels of each column, then four columns of each channel.
        words = tirx.reinterpret(vector_dtype("int32", c), quantized)
        blocks = c // DOT_WIDTH
        sorted_ = shuffle(
            [words], [tap * blocks + k for k in range(blocks) for tap in range(DOT_WIDTH)]
        )
        turned = tirx.reinterpret(vector_dtype(self.dot.data, self.step), sorted_)
        by_channel = [
            (lane // DOT_WIDTH * DOT_WIDTH + tap) * DOT_WIDTH + lane % DOT_WIDTH
            for lane in range(c)
            for tap in range(DOT_WIDTH)
        ]
        order = [by_channel[place] for place in self.dot.order(range(c))]
        return tirx.reinterpret(vector_dtype("int32", c), shuffle([turned], order))

    def store_line(
        self, plane: Any, block: Any, line: Any, column: Any, accumulators: Sequence[Any]
    ) -> None:
        """Store consecutive pixels of a line of the output."""
        w, e, c = self.conv, self.emit, self.c
        to = e.let("to", ((plane * w.out_h + line) * w.out_w + column) * c)
        if requantizes(w.epilogue):
            step, operand = w.epilogue[0], self.operands[0]
            store_requantized(e, step, operand, block * c, self.output, to, accumulators)
            return
        values = []
        for x, accumulator in enumerate(accumulators):
            places: Places = {
                "channel": block * c,
                "image_channel": plane * c,
                "element": to + x * c,
            }
            loader = operand_loader(e, self.operands, places, c)
            total = tirx.Cast(vector_dtype("float32", c), accumulator)
            values.append(apply(w.epilogue, total, loader))
        store_values(e, self.output, to, values)
