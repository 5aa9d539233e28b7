"""Direct convolution on channel-blocked activations.

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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.conv.windows import Span, alike_taps, present_rows, tile_spans
from edgec.compiler.kernels.conv.winograd import (
    WinogradDecision,
    emit_winograd,
    estimate_winograd_cycles,
    winograd_size,
    winograd_space,
)
from edgec.compiler.kernels.conv.workload import ConvBuffers, ConvWorkload
from edgec.compiler.kernels.emit.emitter import CACHE_LINE_BYTES, Emitter, wide
from edgec.compiler.kernels.emit.epilogue import (
    Places,
    Step,
    apply,
    begins_with_bias,
    cost,
    operand_loader,
)
from edgec.compiler.kernels.emit.estimate import (
    FAR_BYTES_PER_CYCLE,
    PREFETCH_GAIN,
    load_cycles,
    multiply_cycles,
    tile_room,
)
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.quantized_values import store_values, stored_floats
from edgec.compiler.kernels.emit.requantize import requantizes, store_requantized
from edgec.compiler.kernels.vectors import broadcast, constant, vector_dtype
from edgec.targets.target import Target


@dataclass(frozen=True)
class ConvDecision:
    """How a convolution is computed.

    Attributes:
        tile_h: lines in the register tile; above 1 only where a tile spans whole lines.
        tile_w: pixels of a line in the register tile.
        tile_o: blocks of output channels in the register tile.
        rows_first: consecutive tasks share weights (true) or input lines (false).
        segment: register tiles of a line in one task, where a 1x1 convolution makes one long
            line of the image; 0 is the whole line.
    """

    tile_h: int
    tile_w: int
    tile_o: int
    rows_first: bool = True
    segment: int = 0


def flattened(workload: ConvWorkload) -> ConvWorkload:
    """A 1x1 convolution without stride sees one long line."""
    whole = workload.out_extent == (workload.out_h, workload.out_w)
    same = (workload.in_h, workload.in_w) == (workload.out_h, workload.out_w)
    if workload.kernel != (1, 1) or workload.stride != (1, 1) or not whole or not same:
        return workload
    pixels = workload.in_h * workload.in_w
    return replace(
        workload, in_h=1, in_w=pixels, out_h=1, out_w=pixels, full_out=(0, 0), padding=(0, 0)
    )


def block_size(workload: ConvWorkload, c: int) -> int:
    """Channels in a block of the input."""
    return 1 if workload.plain_input else c


@dataclass(frozen=True)
class _Channels:
    """Which input blocks each tile of output channels reads.

    Attributes:
        blocks: number of input blocks that a tile reads, the same for all.
        last: channels used of the last of them.
        starts: first input block by tile.
    """

    blocks: int
    last: int
    starts: tuple[int, ...]


def _channels(workload: ConvWorkload, tile_o: int, c: int, size: int) -> _Channels:
    total = math.ceil(workload.in_channels / size)
    tiles = math.ceil(math.ceil(workload.out_channels / c) / tile_o)
    if workload.groups == 1:
        return _Channels(total, workload.in_channels - (total - 1) * size, (0,) * tiles)
    out_group = workload.out_channels // workload.groups
    in_group = workload.in_channels // workload.groups
    spans = []
    for tile in range(tiles):
        first = tile * tile_o * c // out_group
        past = min(workload.out_channels, (tile + 1) * tile_o * c)
        final = (past - 1) // out_group
        spans.append((first * in_group // size, math.ceil((final + 1) * in_group / size)))
    blocks = max(end - start for start, end in spans)
    starts = tuple(min(start, total - blocks) for start, _ in spans)
    return _Channels(blocks, size, starts)


def pack_weight(
    workload: ConvWorkload, decision: ConvDecision, weight: NDArray[Any], c: int, size: int
) -> NDArray[Any]:
    """Weights in the order in which the kernel reads them.

    Args:
        workload: the convolution.
        decision: its register tile.
        weight: [out_channels, in_channels / groups, kh, kw].
        c: lanes.
        size: channels in a block of the input.

    Returns:
        [tiles, rows, tile_o * c], zero where an output channel does not exist or belongs to
        another group than the input channel.
    """
    channels = _channels(workload, decision.tile_o, c, size)
    kh, kw = workload.kernel
    width = decision.tile_o * c
    in_group = workload.in_channels // workload.groups
    out_group = workload.out_channels // workload.groups
    tiles = []
    for tile, start in enumerate(channels.starts):
        block = np.zeros((channels.blocks * size, kh, kw, width), weight.dtype)
        for lane in range(width):
            out = tile * width + lane
            if out >= workload.out_channels:
                break
            first = (out // out_group) * in_group - start * size
            block[first : first + in_group, :, :, lane] = weight[out]
        rows = []
        for index in range(channels.blocks):
            used = channels.last if index == channels.blocks - 1 else size
            part = block[index * size : index * size + used]
            rows.append(part.transpose(1, 2, 0, 3).reshape(-1, width))
        tiles.append(np.concatenate(rows))
    return np.stack(tiles)


def conv_space(workload: ConvWorkload, target: Target) -> list[ConvDecision | WinogradDecision]:
    """Every decision that makes sense, direct or by Winograd's algorithm."""
    return [*direct_space(workload, target), *winograd_space(workload, target)]


def direct_space(workload: ConvWorkload, target: Target) -> list[ConvDecision]:
    """Decisions whose register tile fits the registers."""
    flat = flattened(workload)
    blocks = math.ceil(flat.out_channels / target.float_lanes)
    decisions = []
    for tile_o in range(1, min(blocks, 8) + 1):
        room = tile_room(tile_o, target)
        widths = {min(flat.out_w, width) for width in range(1, room + 1)}
        for tile_w in sorted(widths):
            heights = [1]
            if tile_w == flat.out_w:
                heights += range(2, min(flat.out_h, room // tile_w) + 1)
            for tile_h in heights:
                for segment in _segments(flat, tile_w) if tile_h == 1 else [0]:
                    for rows_first in (True, False):
                        decisions.append(ConvDecision(tile_h, tile_w, tile_o, rows_first, segment))
    return decisions


def _is_long_line(flat: ConvWorkload) -> bool:
    """Whether this is a 1x1 convolution without rows, so that a line can be cut anywhere."""
    return flat.kernel == (1, 1) and flat.out_h == 1 and flat.in_w == flat.out_w


def _segments(flat: ConvWorkload, tile_w: int) -> list[int]:
    """Ways to cut a long line: whole, in halves, quarters and so on."""
    if not _is_long_line(flat):
        return [0]
    tiles = math.ceil(flat.out_w / tile_w)
    counts = {math.ceil(tiles / 2**power) for power in range(1, tiles.bit_length())}
    return [0, *sorted(count for count in counts if 1 < count < tiles)]


def estimate_cycles(
    workload: ConvWorkload,
    decision: ConvDecision,
    target: Target,
    block: int | None = None,
    instructions: int = 1,
    together: int = 1,
) -> float:
    """Analytic model: the slower of multiplying, loading and issuing, for all tiles.

    A step of the register tile does p * o FMAs (p pixels, o vectors), loads o weights and
    broadcasts p inputs. Four instructions can start in a cycle. With fewer than
    latency * units independent accumulators, FMAs wait for each other. Weights that a tile
    streams from beyond the first level cost bandwidth, and so does what comes from beyond the
    second level: once, or once for every tile of output channels or line when it does not stay.

    Args:
        workload: the convolution.
        decision: how it is computed.
        target: where.
        block: input channels in a block; by default what the layout of floats has.
        instructions: for each multiply-add.
        together: pixels that one instruction loads.
    """
    flat = flattened(workload)
    c = target.float_lanes
    size = block or block_size(flat, c)
    channels = _channels(flat, decision.tile_o, c, size)
    taps = flat.kernel[0] * flat.kernel[1]
    depth = ((channels.blocks - 1) * size + channels.last) * taps
    pixels, vectors = decision.tile_h * decision.tile_w, decision.tile_o
    fmas = pixels * vectors
    multiply = max(multiply_cycles(fmas, target), fmas * instructions / target.fma_units)
    loads = math.ceil(pixels / together)
    load = load_cycles(loads, vectors, target)
    issue = (fmas * instructions + loads + vectors + 3) / 4
    panel_bytes = depth * vectors * c * 4
    stream = 0.0
    if panel_bytes > target.l1d_kib * 1024 // 2:
        stream = vectors * c * 4 / (32 if panel_bytes < target.l2_kib * 1024 // 2 else 8)
    step = max(multiply, load, issue, stream)
    starts_w = math.ceil(flat.out_w / decision.tile_w)
    starts_h = math.ceil(flat.out_h / decision.tile_h)
    tiles = flat.batch * len(channels.starts) * starts_w * starts_h
    overhead = 30 + fmas * (3 + cost(flat.epilogue)) / 2
    loops = depth / max(1, size) * 4
    lines = starts_h if not decision.segment else math.ceil(starts_w / decision.segment)
    tasks = flat.batch * lines * len(channels.starts)
    imbalance = math.ceil(tasks / target.cores) * target.cores / tasks
    compute = tiles * (depth * step + loops + overhead) * imbalance
    keeps = target.l2_kib * 1024 // 2
    rows_read = min(1.0, flat.kernel[0] / flat.stride[0])
    in_bytes = 4 * flat.in_channels * flat.in_h * flat.in_w * rows_read
    weight_bytes = panel_bytes * len(channels.starts)
    if decision.rows_first:
        again = len(channels.starts) if in_bytes > keeps else 1
        far = in_bytes * again + weight_bytes / PREFETCH_GAIN
    else:
        again = lines if weight_bytes > keeps else 1
        far = in_bytes + weight_bytes * again
    return compute + flat.batch * far / FAR_BYTES_PER_CYCLE


# Around the products of a tap: addresses, prefetches, counting.
LOOP_INSTRUCTIONS = 12
INSTRUCTION_BYTES = 7


def code_bytes(
    workload: ConvWorkload, decision: ConvDecision, target: Target, block: int, instructions: int
) -> float:
    """Rough size of a kernel whose loops over channels stay loops.

    Products are written once for each run of taps that are inside for the same pixels, the
    epilogue once for each kind of tile.

    Args:
        workload: the convolution.
        decision: how it is computed.
        target: where.
        block: input channels in a block.
        instructions: for each multiply-add.
    """
    w, p = flattened(workload), decision
    columns = tile_spans(
        w.out_w, p.tile_w, w.in_w, w.kernel[1], w.stride[1], w.padding[1], w.dilation[1]
    )
    lines = tile_spans(
        w.out_h, p.tile_h, w.in_h, w.kernel[0], w.stride[0], w.padding[0], w.dilation[0]
    )
    by_rows = [len(alike_taps(span.valid)) for span in lines] if p.tile_h > 1 else [1]
    by_columns = sum(len(alike_taps(span.valid)) for span in columns)
    parts = 1 if w.in_channels % block == 0 or w.in_channels < block else 2
    pixels, vectors = p.tile_h * p.tile_w, p.tile_o
    products = pixels * vectors * instructions + pixels + vectors + LOOP_INSTRUCTIONS
    stores = pixels * vectors * (3 + cost(w.epilogue)) + LOOP_INSTRUCTIONS
    tiles = len(by_rows) * len(columns)
    written = sum(by_rows) * by_columns * parts * products + tiles * stores
    return INSTRUCTION_BYTES * written


def default_direct_decision(workload: ConvWorkload, target: Target) -> ConvDecision:
    """The decision of the lowest estimate; of equals the one with more pixels."""
    return min(
        direct_space(workload, target),
        key=lambda d: (estimate_cycles(workload, d, target), -d.tile_h * d.tile_w),
    )


def default_decision(workload: ConvWorkload, target: Target) -> ConvDecision | WinogradDecision:
    """The better of the best direct decision and the best by Winograd's F(2x2, 3x3).

    F(4x4, 3x3) is left to the tuner: it costs digits, and only the tuner checks the results.
    """
    direct = default_direct_decision(workload, target)
    others = [
        (estimate_winograd_cycles(workload, decision, target), decision)
        for decision in winograd_space(workload, target)
        if decision.out == 2
    ]
    cycles, winograd = min(others, key=lambda pair: pair[0], default=(math.inf, None))
    if winograd is None or cycles >= estimate_cycles(workload, direct, target):
        return direct
    return winograd


def emit_conv(
    workload: ConvWorkload,
    decision: ConvDecision | WinogradDecision,
    target: Target,
    name: str,
) -> Kernel:
    """Write the kernel.

    Its buffers are data, packed weight, scales and groups if it has them, one for each binary
    step of the epilogue, and output. Channel operands are padded to whole
    blocks, element operands have the output's layout.
    """
    e = Emitter(target)
    if isinstance(decision, WinogradDecision):
        size = winograd_size(workload, decision, target.float_lanes)
        buffers = ConvBuffers.declare(e, workload, size, target.float_lanes)
        return emit_winograd(workload, decision, target, name, buffers, e)
    work = flattened(workload)
    size = packed_size(work, decision, target)
    width = decision.tile_o * target.float_lanes
    tiles = math.ceil(work.out_channels / width)
    rows = size // width // tiles
    scales = tiles * work.scale_groups * width
    buffers = ConvBuffers.declare(e, work, size, target.float_lanes, rows, scales)
    conv = DirectConv(work, decision, target.float_lanes, e, buffers, 0)
    with e.tasks() as task:
        conv.body(task)
    return Kernel(e.function(name), conv.tasks)


@dataclass(frozen=True)
class ConvTransposeWorkload:
    """A transposed convolution of one group, without dilation.

    Attributes:
        batch: N.
        in_channels: C.
        in_h: input rows.
        in_w: input columns.
        out_channels: O.
        out_h: output rows.
        out_w: output columns.
        kernel: window height and width, at least the stride.
        stride: vertical and horizontal.
        padding: rows and columns cut off at the top and left.
        epilogue: what happens to each value before it is stored.
    """

    batch: int
    in_channels: int
    in_h: int
    in_w: int
    out_channels: int
    out_h: int
    out_w: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    epilogue: tuple[Step, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return sum(phase.macs for phase, _ in self.phases())

    def phases(self) -> list[tuple[ConvWorkload, tuple[slice, slice]]]:
        """Ordinary convolutions, one for each residue of output positions modulo the stride.

        Output row o + s y takes from input row y + q - j the weight row r + s j, with
        r = (o + padding) mod s and q = (o + padding) div s. Read with j falling, those are the
        taps of a convolution of stride 1; the slices pick and reverse them.
        """
        rows = [self._phase(0, o, self.out_h) for o in range(self.stride[0])]
        columns = [self._phase(1, o, self.out_w) for o in range(self.stride[1])]
        phases = []
        for oy, (count_h, taps_h, pad_h, slice_h) in enumerate(rows):
            for ox, (count_w, taps_w, pad_w, slice_w) in enumerate(columns):
                if count_h == 0 or count_w == 0:
                    continue
                work = ConvWorkload(
                    self.batch,
                    self.in_channels,
                    self.in_h,
                    self.in_w,
                    self.out_channels,
                    count_h,
                    count_w,
                    (taps_h, taps_w),
                    padding=(pad_h, pad_w),
                    epilogue=self.epilogue,
                    out_step=self.stride,
                    out_origin=(oy, ox),
                    full_out=(self.out_h, self.out_w),
                )
                phases.append((work, (slice_h, slice_w)))
        return phases

    def _phase(self, axis: int, origin: int, out: int) -> tuple[int, int, int, slice]:
        """Positions, taps, padding and weight rows of one residue."""
        stride, kernel = self.stride[axis], self.kernel[axis]
        quotient, first = divmod(origin + self.padding[axis], stride)
        taps = math.ceil((kernel - first) / stride)
        last = first + (taps - 1) * stride
        rows = slice(last, first - 1 if first else None, -stride)
        return math.ceil((out - origin) / stride), taps, taps - 1 - quotient, rows


def conv_transpose_space(workload: ConvTransposeWorkload, target: Target) -> list[ConvDecision]:
    """Decisions that fit the largest phase."""
    return direct_space(_largest_phase(workload), target)


def default_conv_transpose_decision(
    workload: ConvTransposeWorkload, target: Target
) -> ConvDecision:
    """The decision that suits the largest phase."""
    return default_direct_decision(_largest_phase(workload), target)


def _largest_phase(workload: ConvTransposeWorkload) -> ConvWorkload:
    return max((phase for phase, _ in workload.phases()), key=lambda phase: phase.macs)


def fitted(decision: ConvDecision, phase: ConvWorkload) -> ConvDecision:
    """The decision for a phase that may be a pixel narrower."""
    width = min(decision.tile_w, phase.out_w)
    height = 1 if width != phase.out_w else min(decision.tile_h, phase.out_h)
    return replace(decision, tile_w=width, tile_h=height)


def pack_transposed_weight(
    workload: ConvTransposeWorkload, decision: ConvDecision, weight: NDArray[Any], c: int
) -> NDArray[Any]:
    """Weights [in_channels, out_channels, kh, kw] of all phases, one after the other."""
    parts = []
    for phase, (rows, columns) in workload.phases():
        window = weight[:, :, rows, columns].transpose(1, 0, 2, 3)
        parts.append(pack_weight(phase, fitted(decision, phase), window, c, c).reshape(-1))
    return np.concatenate(parts)


def conv_transpose_weight_size(
    workload: ConvTransposeWorkload, decision: ConvDecision, target: Target
) -> int:
    """Values in the packed weights of all phases."""
    phases = (phase for phase, _ in workload.phases())
    return sum(packed_size(phase, fitted(decision, phase), target) for phase in phases)


def estimate_conv_transpose_cycles(
    workload: ConvTransposeWorkload, decision: ConvDecision, target: Target
) -> float:
    """The sum over all phases."""
    phases = (phase for phase, _ in workload.phases())
    return sum(estimate_cycles(phase, fitted(decision, phase), target) for phase in phases)


def emit_conv_transpose(
    workload: ConvTransposeWorkload, decision: ConvDecision, target: Target, name: str
) -> Kernel:
    """Write the kernel; its buffers are those of `emit_conv`."""
    e = Emitter(target)
    c = target.float_lanes
    phases = [(phase, fitted(decision, phase)) for phase, _ in workload.phases()]
    sizes = [packed_size(phase, plan, target) for phase, plan in phases]
    buffers = ConvBuffers.declare(e, phases[0][0], sum(sizes), c)
    with e.tasks() as task:
        first = position = 0
        for (phase, plan), size in zip(phases, sizes, strict=True):
            conv = DirectConv(phase, plan, c, e, buffers, position)
            with e.branch(tirx.all(task >= first, task < first + conv.tasks)):
                conv.body(e.let("phase_task", task - first))
            first += conv.tasks
            position += size
    return Kernel(e.function(name), first)


def pack_scales(decision: ConvDecision, scales: NDArray[Any], c: int) -> NDArray[Any]:
    """Scales [out_channels, groups] as [tiles, groups, tile_o * c]."""
    width = decision.tile_o * c
    outputs, groups = scales.shape
    padded = np.pad(scales, ((0, -outputs % width), (0, 0)))
    return np.ascontiguousarray(padded.reshape(-1, width, groups).transpose(0, 2, 1))


def pack_groups(workload: ConvWorkload, groups: NDArray[Any], c: int) -> NDArray[Any]:
    """The group of each weight [1, in_channels, kh, kw], by row of the packed weights."""
    alone = replace(workload, out_channels=1)
    return pack_weight(alone, ConvDecision(1, 1, 1), groups, c, block_size(workload, c))[0, :, 0]


def packed_size(
    workload: ConvWorkload, decision: ConvDecision, target: Target, block: int | None = None
) -> int:
    """Values in a packed weight."""
    c = target.float_lanes
    size = block or block_size(workload, c)
    channels = _channels(workload, decision.tile_o, c, size)
    depth = (channels.blocks - 1) * size + channels.last
    return len(channels.starts) * depth * math.prod(workload.kernel) * decision.tile_o * c


class DirectConv:
    """Writes one convolution into an emitter.

    Attributes:
        dtype: of accumulators.
        border: whether products with the padding count.
    """

    dtype = "float32"
    border = False

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
        self.channels = _channels(workload, decision.tile_o, c, self.block)
        self.begins_with_bias = self.takes_bias()
        self.in_blocks = math.ceil(workload.in_channels / self.block)
        self.out_blocks = math.ceil(workload.out_channels / c)
        self.width = decision.tile_o * c
        taps = math.prod(workload.kernel)
        self.depth = ((self.channels.blocks - 1) * self.block + self.channels.last) * taps
        w = workload
        self.rows = tile_spans(
            w.out_h, decision.tile_h, w.in_h, w.kernel[0], w.stride[0], w.padding[0], w.dilation[0]
        )
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
        """Values in a block of input channels."""
        return block_size(self.work, self.c)

    def takes_bias(self) -> bool:
        """Whether the first step of the epilogue is where accumulators begin."""
        return begins_with_bias(self.work.epilogue)

    def total(self, accumulator: Any) -> Any:
        """What the epilogue begins with."""
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
        self._start_block(tile)
        if p.segment:
            self._segment(row)
        elif p.tile_h == 1:
            self._line(row)
        else:
            self._lines(row, self.rows)

    def _start_block(self, tile: Any) -> None:
        """First input block of this tile of output channels, in `self.first_block`."""
        starts = self.channels.starts
        if len(set(starts)) == 1:
            self.first_block: Any = starts[0]
            return
        # Groups: a chain of comparisons, once per task.
        value: Any = tirx.IntImm("int32", starts[-1])
        for index in range(len(starts) - 2, -1, -1):
            if starts[index] != starts[index + 1]:
                value = tirx.Select(tile <= index, tirx.IntImm("int32", starts[index]), value)
        self.first_block = self.emit.let("first_block", value)

    def _segment(self, number: Any) -> None:
        """Some register tiles of a long line; the last one of the line overlaps its neighbour."""
        w, p, e = self.work, self.plan, self.emit

        def window() -> Iterator[tuple[Any, Any, Sequence[bool]]]:
            yield 0, 0, (True,)

        first = e.let("first_tile", number * p.segment)
        count = e.let("tiles", tirx.min(tirx.IntImm("int32", p.segment), self.line_tiles - first))
        with e.loop("column_tile", count) as offset:
            column = (first + offset) * p.tile_w
            if w.out_w % p.tile_w:
                column = tirx.min(column, tirx.IntImm("int32", w.out_w - p.tile_w))
            self.passed = e.let("passed", (first if p.rows_first else 0) + offset)
            self._tile(0, e.let("column", column), [(True,)] * p.tile_w, window)

    def _line(self, row: Any) -> None:
        """One output line; the rows of the window that are inside are known at run time."""
        w, e = self.work, self.emit
        top = e.let("top", row * w.stride[0] - w.padding[0])
        dilation = w.dilation[0]
        first, count = present_rows(
            e, top, w.in_h, w.kernel[0], dilation, w.stride[0], w.padding[0], w.out_h
        )

        self.present = first, count

        def window() -> Iterator[tuple[Any, Any, Sequence[bool]]]:
            with e.loop("kh", count, first) as kh:
                yield kh, top + kh * dilation, (True,)

        self._columns(row, window)

    def _lines(self, row: Any, spans: Sequence[Span]) -> None:
        """Several output lines; which rows of the window are inside is known here."""
        w, e = self.work, self.emit
        position = 0
        for span in spans:
            first, position = position, position + len(span.starts)
            with ExitStack() as stack:
                if len(spans) > 1:
                    inside = tirx.all(row >= first, row < position)
                    stack.enter_context(e.branch(inside))
                start = e.let("line", (row - first) * self.plan.tile_h + span.starts[0])
                top = e.let("top", start * w.stride[0] - w.padding[0])

                def window(
                    span: Span = span, top: Any = top
                ) -> Iterator[tuple[Any, Any, Sequence[bool]]]:
                    for first, count in alike_taps(span.valid, self.border):
                        valid = tuple(pixel[first] for pixel in span.valid)
                        with e.loop("kh", self.opaque(count), first) as kh:
                            yield kh, top + kh * w.dilation[0], valid

                self._columns(start, window)

    def _columns(self, line: Any, window: Any) -> None:
        """All register tiles along a line (or along tile_h lines)."""
        w, p, e = self.work, self.plan, self.emit
        spans = tile_spans(
            w.out_w, p.tile_w, w.in_w, w.kernel[1], w.stride[1], w.padding[1], w.dilation[1]
        )
        before = 0
        for span in spans:
            with e.loop("column_tile", len(span.starts)) as number:
                self.passed = number + before
                if p.rows_first:
                    self.passed = e.let("passed", self.row * self.line_tiles + self.passed)
                column = e.let("column", number * p.tile_w + span.starts[0])
                self._tile(line, column, span.valid, window)
            before += len(span.starts)

    def _tile(self, line: Any, column: Any, valid: Sequence[Sequence[bool]], window: Any) -> None:
        e = self.emit
        starts = [self.start(o) for o in range(self.plan.tile_o)]
        for position, (_, _, o) in enumerate(self._positions()):
            e.store(self.acc, position, starts[o])
        self.sums(column, valid, window)
        self._store(line, column)

    def sums(self, column: Any, valid: Sequence[Sequence[bool]], window: Any) -> None:
        """Add all products of a register tile to the accumulators."""
        full = (
            self.channels.blocks - 1 if self.channels.last != self.block else self.channels.blocks
        )
        if full:
            with self.emit.loop("block", full) as block:
                self._block(block, self.block, column, valid, window)
        if full < self.channels.blocks:
            self._block(full, self.channels.last, column, valid, window)

    def start(self, o: int) -> Any:
        """What accumulators of a vector of output channels begin with."""
        if not self.begins_with_bias:
            return constant(0, self.dtype, self.c)
        return self.emit.load(self.operands[0], self.first_channel(o), self.c)

    def first_channel(self, o: int) -> Any:
        """Of a vector of output channels of this tile."""
        block = self.tile * self.plan.tile_o + o
        if self.out_blocks % self.plan.tile_o:
            # Blocks past the last are computed, not stored.
            block = tirx.min(block, tirx.IntImm("int32", self.out_blocks - 1))
        return block * self.c

    def _positions(self) -> list[tuple[int, int, int]]:
        """Line, pixel and vector of each accumulator."""
        p = self.plan
        return [
            (y, x, o) for y in range(p.tile_h) for x in range(p.tile_w) for o in range(p.tile_o)
        ]

    def _block(
        self, block: Any, used: int, column: Any, valid: Sequence[Sequence[bool]], window: Any
    ) -> None:
        """Accumulate one block of input channels, of which `used` exist."""
        w, e = self.work, self.emit
        taps_h, taps_w = w.kernel
        first_row = self.tile * self.depth + block * (taps_h * taps_w * self.block)
        rows = e.let("rows", first_row + self.weight_base // self.width)
        source = (self.image * self.in_blocks + self.first_block + block) * w.in_h
        left = column * w.stride[1] - w.padding[1]
        existing: Any = used
        if w.groups > 1 and w.in_channels % self.block and self.dtype == "float32":
            # Zero weights do not help against a NaN that padding channels may hold.
            past = w.in_channels - (self.first_block + block) * self.block
            existing = e.let("existing", tirx.min(tirx.IntImm("int32", used), past))
        for kh, top, lines in window():
            base = e.let("base", ((source + top) * w.in_w + left) * self.block)
            for first, count in alike_taps(valid, self.border):
                inside = [pixel[first] for pixel in valid]
                with e.loop("kw", self.opaque(count), first) as kw:
                    weights = e.let(
                        "weights", wide((rows + (kh * taps_w + kw) * used) * self.width)
                    )
                    at = e.let("at", wide(base + kw * (w.dilation[1] * self.block)))
                    self._prefetch(weights, used)
                    self.accumulate(at, weights, existing, inside, lines)

    def _prefetch(self, weights: Any, used: int) -> None:
        """Ask for this pass's share of the weights of the next tile of output channels.

        A tile of output channels passes over its weights once for each register tile of the
        image. Without this, the first pass waits for the third-level cache, the others do not.
        """
        line = CACHE_LINE_BYTES // np.dtype(str(self.weight.ty.dtype.dtype)).itemsize
        share = math.ceil(used * self.width / line / self.passes)
        following = weights + self.depth * self.width
        for number in range(share):
            place = (self.passed * share + number) * line
            self.emit.prefetch(self.weight, following + place)

    def opaque(self, count: int) -> Any:
        """The count as a value that LLVM cannot see through.

        It would unroll a loop of few turns, keep the values that neighbouring turns share in
        registers, and spill the accumulators.
        """
        if count == 1:
            return count
        return tirx.IntImm("int32", count) + self._zero()

    def opaque_one(self) -> Any:
        """The step of a loop that LLVM is not to unroll, by whatever number."""
        return tirx.IntImm("int32", 1) + self._zero()

    def _zero(self) -> Any:
        return tirx.shift_right(self.task, tirx.IntImm("int32", 30))

    def accumulate(
        self, base: Any, weights: Any, count: Any, inside: Sequence[bool], lines: Sequence[bool]
    ) -> None:
        """Products of one tap with channels of a block, `count` of them."""
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
        """Products of one tap with some channels, in all pixels of the tile."""
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
        """A vector of weights as floats."""
        stored = self.emit.load(self.weight, at, self.c)
        return stored_floats(stored, self.work.weight, self.emit.isa.converts_float16)

    def value(self, base: Any, place: int, channel: Any) -> Any:
        """One input value for all output channels, so many pixels from the first one."""
        return self.read(base + place * self.block + channel)

    def read(self, at: Any) -> Any:
        """One input value for all output channels."""
        return self.emit.let("x", broadcast(self.emit.load(self.data, at), self.c))

    def outside(self) -> Any:
        """The value of the padding, where it is not zero."""
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
                        sum_ = e.load(self.acc, position)
                        if not fixed:
                            sum_ = apply(w.epilogue[skip:], self.total(sum_), operand)
                        values.append(sum_)
                        if w.out_step[1] > 1:
                            self._put(block * c, at, values)
                            values = []
                    if values:
                        self._put(block * c, first + column * c, values)

    def _put(self, channel: Any, at: Any, values: Sequence[Any]) -> None:
        steps = self.work.epilogue
        if requantizes(steps):
            operand = self.operands[0]
            store_requantized(self.emit, steps[0], operand, channel, self.output, at, values)
        else:
            store_values(self.emit, self.output, at, values)
