"""Write direct convolution of quantized values: the kernel of `integer.py`."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from edgec.compiler.kernels.conv.decision import ConvDecision
from edgec.compiler.kernels.conv.direct import DirectConv, Mask
from edgec.compiler.kernels.conv.integer import (
    TAPS_TOGETHER,
    IntegerConvWorkload,
    blocks_in_a_turn,
    groups_in_block,
    integer_weight_size,
    product_of,
    weights_first,
)
from edgec.compiler.kernels.conv.windows import padding_rows
from edgec.compiler.kernels.conv.workload import ConvBuffers
from edgec.compiler.kernels.emit.emitter import CACHE_LINE_BYTES, Emitter, hidden, wide
from edgec.compiler.kernels.emit.epilogue import declare_operands, output_dtype
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.machine_model import FEW_TILES, half_l1
from edgec.compiler.kernels.isa import Dot
from edgec.compiler.kernels.vectors import vector_dtype
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.targets.target import Target

# So many rows of a window may come before one that asks for weights ahead.
_MOST_UNASKED = 2**20

# Rows of a window that are written out.
ROWS_WRITTEN = 3

WeightSize = Callable[[IntegerConvWorkload, Any, Target], int]
"""Gives the values in a packed weight, by the decision that a writer takes."""


def emit_integer_conv(
    workload: IntegerConvWorkload, decision: ConvDecision, target: Target, name: str
) -> Kernel:
    """Write the kernel.

    Its buffers are data, packed weight, bias, rows (if there are any), the operands of the
    epilogue, and output.
    """
    return emit_phases([(workload, decision)], target, name)


def emit_phases(
    phases: Sequence[tuple[IntegerConvWorkload, Any]],
    target: Target,
    name: str,
    writer: "type[IntegerConv] | None" = None,
    size: WeightSize = integer_weight_size,
) -> Kernel:
    """Write several convolutions of the same data into one output.

    Buffers are those of `emit_integer_conv`; weights, bias and rows of one phase follow those of
    the phase before it.

    Args:
        phases: each with its decision, as the writer takes it.
        target: where.
        name: of the function.
        writer: what multiplies.
        size: gives the values of its packed weights.
    """
    writer = writer or IntegerConv
    workload = phases[0][0]
    e, work, c, dot = (
        Emitter(target),
        workload.grouped,
        target.float_lanes,
        product_of(workload, target),
    )
    sizes = [size(phase, decision, target) for phase, decision in phases]
    taps = [phase.conv.kernel[0] for phase, _ in phases]
    blocks_in = math.ceil(workload.conv.in_channels / c)
    channels = math.ceil(work.out_channels / c) * c
    groups = work.batch * blocks_in * groups_in_block(target) * work.in_h * work.in_w
    data = e.buffer("data", groups, "int32")
    weight = e.buffer("weight", sum(sizes), writer.weight_dtype)
    bias = e.buffer("bias", len(phases) * channels, "int32")
    rows = e.buffer("rows", sum(taps) * channels, "int32") if workload.has_rows else None
    out_size = work.batch * channels * math.prod(work.out_extent)
    lengths = {"channel": channels, "image_channel": work.batch * channels, "element": out_size}
    operands = declare_operands(e, work.epilogue, lengths)  # type: ignore[arg-type]
    output = e.buffer("output", out_size, output_dtype(work.epilogue))
    buffers = ConvBuffers(data, weight, operands, output)
    with e.tasks() as task:
        first = 0
        for number, (phase, decision) in enumerate(phases):
            bases = _Bases(sum(sizes[:number]), number * channels, sum(taps[:number]) * channels)
            conv = writer(phase, decision, dot, e, buffers, bias, rows, c, bases)
            with ExitStack() as stack:
                own = task
                if len(phases) > 1:
                    inside = tirx.all(task >= first, task < first + conv.tasks)
                    stack.enter_context(e.branch(inside))
                    own = e.let("phase_task", task - first)
                conv.body(own)
            first += conv.tasks
    return Kernel(e.function(name), first)


@dataclass(frozen=True)
class _Bases:
    """Bases describe where in its buffers the constants of a convolution begin."""

    weight: int
    bias: int
    rows: int


class IntegerConv(DirectConv):
    """Writes one convolution of quantized values into an emitter.

    Attributes:
        weight_dtype: the dtype of packed weights.
    """

    dtype = "int32"
    weight_dtype = "int32"
    # What accumulators of all tiles of a line begin with, where it is in memory.
    written: Any = None

    def __init__(
        self,
        workload: IntegerConvWorkload,
        decision: ConvDecision,
        dot: Dot,
        emit: Emitter,
        buffers: ConvBuffers,
        bias: Any,
        rows: Any,
        c: int,
        bases: _Bases,
    ) -> None:
        self.dot, self.bias, self.row_sums, self.bases = dot, bias, rows, bases
        self.border = workload.border != 0
        self.code = workload.border
        self.together = workload.together
        # Rows of windows since the last one that asked for weights ahead.
        self.unasked = 0
        # Blocks of input channels whose products are added in int16, in what is being written.
        self.added = 1
        self.present: tuple[Any, Any] = (0, workload.conv.kernel[0])
        super().__init__(workload.grouped, decision, c, emit, buffers, bases.weight)
        small = 1 < self.work.kernel[0] <= ROWS_WRITTEN
        self.writes_rows = small and (dot.by_lane or self.weight_dtype == "int16")

    def input_block(self) -> int:
        """Return groups of four channels in a block of the input."""
        return self.c // DOT_WIDTH

    def takes_bias(self) -> bool:
        """Return that accumulators begin with the bias of the operands here."""
        return False

    def write_line(self, row: Any, window: Any, count: Any, top: Any) -> None:
        """Write it; rows of the window are written out where all of them are inside."""
        e, rows, dilation = self.emit, self.work.kernel[0], self.work.dilation[0]
        if not self.writes_rows:
            super().write_line(row, window, count, top)
            return

        def whole() -> Iterator[tuple[Any, Any, Sequence[bool]]]:
            for kh in range(rows):
                yield kh, top + kh * dilation, (True,)

        if isinstance(count, int):
            self.write_columns(row, whole if count == rows else window)
            return
        present = self.present
        with e.branch(count == rows):
            self.present = (0, rows)
            self.write_columns(row, whole)
        with e.branch(count < rows):
            self.present = present
            self.write_columns(row, window)

    def begin_tiles(self) -> None:
        """Write down what accumulators begin with: two are loaded as fast as one is copied."""
        e, p = self.emit, self.plan
        self.written = None
        if not self.dot.by_lane or (p.segment or self.line_tiles) < FEW_TILES:
            return
        pixels = p.tile_h * p.tile_w
        written = e.local("starts", pixels * p.tile_o, vector_dtype("int32", self.c))
        for o in range(p.tile_o):
            start = self.start(o)
            for pixel in range(pixels):
                e.store(written, pixel * p.tile_o + o, start)
        self.written = written

    def start_tile(self) -> None:
        """Load it, from a place that LLVM does not know."""
        if self.written is None:
            super().start_tile()
            return
        e = self.emit
        zero = e.let("zero", hidden(0, self.passed + e.end))
        for position in range(self.plan.tile_h * self.plan.tile_w * self.plan.tile_o):
            e.store(self.acc, position, e.load(self.written, zero + position))

    def start(self, o: int) -> Any:
        """Return the bias, and the padding in rows outside the image."""
        e, taps, c = self.emit, self.work.kernel[0], self.c
        channel = self.first_channel(o)
        first, count = self.present
        bias = e.load(self.bias, channel + self.bases.bias, c)
        if isinstance(count, int) or self.row_sums is None:
            return e.let("bias", bias)
        accumulator = e.local("start", 1, vector_dtype("int32", c))
        e.store(accumulator, 0, bias)
        for begin, past in padding_rows(e, first, count, taps):
            with e.loop("absent", past - begin, begin) as kh:
                at = kh * (self.out_blocks * c) + channel + self.bases.rows
                row = e.load(self.row_sums, at, c)
                e.store(accumulator, 0, e.load(accumulator, 0) + row)
        return e.let("bias", e.load(accumulator, 0))

    def total(self, accumulator: Any) -> Any:
        """Return it as floats."""
        return tirx.Cast(vector_dtype("float32", self.c), accumulator)

    def read(self, at: Any) -> Any:
        """Return a group of values for all output channels."""
        return self.dot.read(self.emit, self.data, at, self.c)

    def accumulate_taps(self, column: Any, valid: Sequence[Sequence[bool]], window: Any) -> None:
        """Add all products; several blocks in a turn where a window has one tap."""
        self.unasked = _MOST_UNASKED
        if self.block > 1:
            super().accumulate_taps(column, valid, window)
            return
        blocks = self.channels.blocks
        size = blocks_in_a_turn(self.work, self.dot, blocks, self.together)
        turns = blocks // size
        if turns:
            # Sums in int16 would be kept, and spilled, beside what follows them without a loop.
            known = turns == 1 and self.together == 1
            with self.emit.loop("block", 1 if known else hidden(turns, self.task)) as turn:
                self._blocks(turn * size, size, column, valid, window)
        self._blocks(turns * size, blocks - turns * size, column, valid, window)

    def turns(self, blocks: int) -> Any:
        """Return them, hidden where all groups of a block are multiplied at once.

        LLVM would unroll so little, load the data of all turns first, and spill it.
        """
        once = math.prod(self.work.kernel) == 1 and self.block <= self.together
        return self.hide_from_llvm(blocks) if once else blocks

    def _blocks(
        self, first: Any, count: int, column: Any, valid: Sequence[Mask], window: Any
    ) -> None:
        """Accumulate some blocks of input channels, as many at once as int16 holds products of."""
        number = 0
        while number < count:
            self.added = self.together if number + self.together <= count else 1
            self._block(first + number, 1, column, valid, window)
            number += self.added

    def window_row(
        self, base: Any, rows: Any, used: Any, valid: Sequence[Mask], lines: Mask
    ) -> None:
        """Accumulate it; what the taps of a row share of a group of channels is read once."""
        w, e = self.work, self.emit
        if self.block > 1:
            super().window_row(base, rows, used, valid, lines)
            return
        taps = w.kernel[1]
        weights = e.let("weights", wide(rows * self.width))
        block = w.in_h * w.in_w
        at = [e.let("at", wide(base + number * block)) for number in range(self.added)]
        self._prefetch(weights, taps)
        values: list[dict[int, Any]] = [{} for _ in at]
        for line in range(self.plan.tile_h):
            places = {self.place(line, x, tap) for x, tap in self.read_of(line, valid, lines)}
            if places:
                for near, start in zip(values, at, strict=True):
                    near |= self._near(start, sorted(places))
        step = taps if self.dot.by_lane else TAPS_TOGETHER
        for first in range(0, taps, step):
            self._add_taps(at, weights, range(first, min(first + step, taps)), values, valid, lines)

    def place(self, line: int, x: int, tap: int) -> int:
        """Return where a value is, in groups of channels from the first of the tile."""
        w = self.work
        return line * w.stride[0] * w.in_w + x * w.stride[1] + tap * w.dilation[1]

    def hidden_one(self) -> Any:
        """Return the step of a loop that LLVM is not to unroll, by whatever number."""
        return hidden(1, self.task)

    def read_of(self, line: int, valid: Sequence[Mask], lines: Mask) -> Iterator[tuple[int, int]]:
        """Yield pixel and tap of what is read of the image in a line of the tile."""
        if lines[line if len(lines) > 1 else 0]:
            for x, pixel in enumerate(valid):
                yield from ((x, tap) for tap, inside in enumerate(pixel) if inside)

    def _add_taps(
        self,
        at: Sequence[Any],
        weights: Any,
        taps: range,
        values: Sequence[dict[int, Any]],
        valid: Sequence[Mask],
        lines: Mask,
    ) -> None:
        """Add the products of some taps of a row.

        A value that takes instructions to copy to all lanes is multiplied by all of them at once.
        """
        e, p, c = self.emit, self.plan, self.c
        products = []
        for line in range(p.tile_h):
            inside = set(self.read_of(line, valid, lines))
            for x in range(p.tile_w):
                for tap in taps:
                    place = self.place(line, x, tap) if (x, tap) in inside else None
                    if place is not None or self.border:
                        products.append((place, tap, line * p.tile_w + x))
        if self.dot.by_lane:
            products.sort(key=lambda product: product[1])
        else:
            products.sort(key=lambda product: -1 if product[0] is None else product[0])
        found: dict[tuple[Any, ...], Any] = {}

        def value(group: int, place: int | None) -> Any:
            if place is None:
                return self.outside()
            if (group, place) not in found:
                near = values[group]
                one = near[place] if place in near else self.read(at[group] + place)
                found[group, place] = one if self.dot.by_lane else e.let("x", one)
            return found[group, place]

        def vector(group: int, tap: int, o: int) -> Any:
            if (group, tap, o) not in found:
                row = weights + (tap + group * math.prod(self.work.kernel)) * self.width
                found[group, tap, o] = e.let("w", self.weights_at(row + o * c))
            return found[group, tap, o]

        groups, outer = range(self.added), [range(p.tile_o)]
        pixels, one = p.tile_h * p.tile_w, math.prod(self.work.kernel) == 1
        if self.added > 1 and one and weights_first(pixels, p.tile_o):
            outer = [range(o, o + 1) for o in range(p.tile_o)]
        for vectors in outer:
            for place, tap, pixel in products:
                for o in vectors:
                    position = pixel * p.tile_o + o
                    xs = [value(group, place) for group in groups]
                    ws = [vector(group, tap, o) for group in groups]
                    e.store(self.acc, position, self.add(e.load(self.acc, position), xs, ws))

    def _near(self, base: Any, groups: Sequence[int]) -> dict[int, Any]:
        """Return groups of a line in every lane, by their place: four are loaded at once."""
        found: dict[int, Any] = {}
        e, count = self.emit, len(groups) // DOT_WIDTH
        if self.dot.by_lane and list(groups) == list(range(len(groups))) and count > 1:
            vectors = e.load_vectors(self.data, base, count)
            for place in range(count * DOT_WIDTH):
                four = vectors[place // DOT_WIDTH]
                found[place] = self.dot.spread(four, place % DOT_WIDTH, self.c)
        while len(found) < len(groups) and groups[-1] - groups[0] >= DOT_WIDTH - 1:
            first = min(groups[len(found)], groups[-1] - DOT_WIDTH + 1)
            four = e.let("four", e.load(self.data, base + first, DOT_WIDTH))
            for place in groups[len(found) :]:
                if place >= first + DOT_WIDTH:
                    break
                found[place] = self.dot.spread(four, place - first, self.c)
        return found

    def _prefetch(self, weights: Any, used: int) -> None:
        # What stays in the first level comes by itself. Where a pass asks for little, one of
        # several blocks and rows that are written one after the other asks for all.
        if DOT_WIDTH * int(self.weight.shape[0]) <= half_l1(self.emit.target):
            return
        lines = used * self.width * DOT_WIDTH / CACHE_LINE_BYTES / self.passes
        if self.unasked * lines < 1:
            self.unasked += 1
            return
        self.unasked = 1
        super()._prefetch(weights, used)

    def outside(self) -> Any:
        """Return the zero point in place of a group."""
        return self.dot.repeated(self.code, self.c)

    def accumulate(
        self, base: Any, weights: Any, count: Any, inside: Sequence[bool], lines: Sequence[bool]
    ) -> None:
        """Add the products of a tap, groups that int16 holds together."""
        turns, left = divmod(count, self.together)
        for first, number, size in ((0, turns, self.together), (turns * self.together, left, 1)):
            if number == 0:
                continue
            # Turns share no values, so LLVM's unrolling of this loop would gain nothing.
            with self.emit.loop("channel", number, wide=True, step=self.hidden_one()) as turn:
                channels = [first + turn * size + each for each in range(size)]
                self.add_products(base, weights, channels, inside, lines)

    def add(self, accumulator: Any, values: Sequence[Any], weights: Sequence[Any]) -> Any:
        """Accumulate the products of groups."""
        return self.dot.add(accumulator, values, weights)
