"""Provide direct convolution of quantized values.

The register tiles of `conv`, four input channels at a time.

Layouts, with c float32 lanes in a vector:

    activation [N, ceil(channels / c), H, W, c] quantized; to this kernel a line of groups of four
                channels, 32 bits each.
    weight      int8 as the rows of `weights.pack_weight`, each lane one group.
    bias        int32 [blocks * c]: the bias in units of the products, less the sum of all weights
                of the channel times the zero point.
    rows        int32 [kh, blocks * c]: the sum of the weights of a row of the window times the
                zero point, put back where the row is above or below the image.

Padding stands for zero, so its code is the zero point: in columns outside the image that code is
multiplied like any other. The epilogue begins with the accumulator as float32.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.conv.cost import code_bytes, estimate_cycles
from edgec.compiler.kernels.conv.decision import ConvDecision, direct_space, flattened
from edgec.compiler.kernels.conv.direct import DirectConv, Mask
from edgec.compiler.kernels.conv.weights import groups_of, pack_weight, packed_size
from edgec.compiler.kernels.conv.windows import padding_rows
from edgec.compiler.kernels.conv.workload import ConvBuffers, ConvWorkload, QuantizedConvWorkload
from edgec.compiler.kernels.emit.emitter import Emitter, wide
from edgec.compiler.kernels.emit.epilogue import declare_operands, output_dtype
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.machine_model import ISSUE_WIDTH
from edgec.compiler.kernels.isa import Dot, dot_of
from edgec.compiler.kernels.vectors import vector_dtype
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.targets.target import Target

# How fast code that a run reads once comes from beyond the first level.
CODE_BYTES_PER_CYCLE = 2.0

# Instructions that load what requantizes accumulators, for a vector of channels, with what that
# pushes out of registers: counted in tiles of two and of five vectors.
_SCALES = 18

# Around the products of a row of the window: addresses and counting.
_ROW_INSTRUCTIONS = 8

# Groups of channels in a turn of the loop over them, where a window has one tap.
_BLOCKS_TOGETHER = 4

# Taps of a row that are multiplied with a value while it is in all lanes.
_TAPS_TOGETHER = 3

# Groups of weights, 16 KiB, that are not asked for ahead.
_NEAR_GROUPS = 4096


@dataclass(frozen=True)
class IntegerConvWorkload(QuantizedConvWorkload):
    """An integer conv workload describes a convolution of quantized values, of one group.

    Attributes:
        together: groups of channels, side by side, whose products fit the int16 accumulators of
            `pair_sums`.
        wide: whether the weights would saturate the target's int16 accumulators.
    """

    conv: ConvWorkload
    together: int = field(default=1, metadata={"omit_if_default": True})
    wide: bool = field(default=False, metadata={"omit_if_default": True})

    @property
    def grouped(self) -> ConvWorkload:
        """Return it as a convolution whose channels are groups of channels."""
        return _grouped(self.conv)


@lru_cache(maxsize=256)
def _grouped(conv: ConvWorkload) -> ConvWorkload:
    return flattened(replace(conv, in_channels=math.ceil(conv.in_channels / DOT_WIDTH)))


def _dot(workload: IntegerConvWorkload, target: Target) -> Dot:
    dot = dot_of(target)
    if dot is not None and workload.wide:
        dot = dot.exact_fallback
    assert dot is not None
    return dot


def _block(target: Target) -> int:
    return target.float_lanes // DOT_WIDTH


def _narrowed(workload: IntegerConvWorkload, target: Target) -> Target:
    """Return the target with the registers that are left for a register tile."""
    left = target.vector_registers - _dot(workload, target).temporaries
    return target.model_copy(update={"vector_registers": left})


def integer_space(workload: IntegerConvWorkload, target: Target) -> list[ConvDecision]:
    """Return decisions whose register tile fits the registers."""
    work = workload.grouped
    if _block(target) > 1:
        return direct_space(work, _narrowed(workload, target))
    dot = _dot(workload, target)

    def room_of(vectors: int) -> int:
        free = target.vector_registers - dot.temporaries
        widths = range(1, free // vectors + 1)
        return max((w for w in widths if _row_registers(work, w, vectors, dot) <= free), default=0)

    space = direct_space(work, target, room_of)
    # Four groups are read, and four vectors of quantized values stored, at once.
    whole = [d for d in space if d.tile_w % DOT_WIDTH == 0]
    return whole or space


def _row_registers(work: ConvWorkload, pixels: int, vectors: int, dot: Dot) -> int:
    """Return registers of a tile where a row of the window is accumulated at once."""
    taps = 1 if dot.by_lane else min(work.kernel[1], _TAPS_TOGETHER)
    data = math.ceil(_row_groups(work, pixels) / DOT_WIDTH)
    return pixels * vectors + taps * vectors + max(1, min(data, 4))


def _row_groups(work: ConvWorkload, pixels: int) -> int:
    """Return groups of channels of a line that a row of the window reads for some pixels."""
    taps, stride = work.kernel[1], work.stride[1]
    return (pixels - 1) * min(stride, taps) + taps


def estimate_integer_cycles(
    workload: IntegerConvWorkload, decision: ConvDecision, target: Target
) -> float:
    """Return how long it computes, and fetching its code once."""
    return _computing(workload, decision, target) + _fetching(workload, decision, target)


def _fetching(workload: IntegerConvWorkload, decision: ConvDecision, target: Target) -> float:
    """Return how long its code takes to come, once."""
    dot, block = _dot(workload, target), _block(target)
    code = code_bytes(workload.grouped, decision, target, block, dot.instructions)
    return code / CODE_BYTES_PER_CYCLE


def _computing(workload: IntegerConvWorkload, decision: ConvDecision, target: Target) -> float:
    """Return the cycles by the model of the direct convolution and what it does not know.

    Each vector of a tile loads its scales.
    """
    dot, work = _dot(workload, target), workload.grouped
    step = _row_step(work, decision, dot, target) if _block(target) == 1 else None
    cycles = estimate_cycles(work, decision, target, _block(target), dot.instructions, step)
    pixels, vectors = decision.tile_h * decision.tile_w, decision.tile_o
    blocks = math.ceil(work.out_channels / target.float_lanes)
    tiles = math.ceil(work.out_h * work.out_w / pixels) * math.ceil(blocks / vectors)
    more = vectors * _SCALES
    return cycles + work.batch * tiles * more / target.fma_units


def _row_step(work: ConvWorkload, decision: ConvDecision, dot: Dot, target: Target) -> float:
    """Return cycles of a tap of a register tile where a row of the window is one step.

    All instructions count, whether they wait for units of vectors or to be issued.
    """
    taps, vectors = work.kernel[1], decision.tile_o
    groups = decision.tile_h * _row_groups(work, decision.tile_w)
    products = decision.tile_h * decision.tile_w * vectors * taps * dot.instructions
    spread = 0 if dot.by_lane else groups
    loads = groups / (2 * DOT_WIDTH) + vectors * taps / 2
    together = _BLOCKS_TOGETHER if math.prod(work.kernel) == 1 else 1
    counting = _ROW_INSTRUCTIONS / together
    units = (products + spread) / target.fma_units
    return (units + (products + spread + loads + counting) / ISSUE_WIDTH) / taps


def default_integer_decision(workload: IntegerConvWorkload, target: Target) -> ConvDecision:
    """Return the decision of the lowest estimate.

    Of those that compute as long, that of most pixels.
    """
    computing = {d: _computing(workload, d, target) for d in integer_space(workload, target)}
    best = min(computing, key=lambda d: computing[d] + _fetching(workload, d, target))
    equals = [d for d, cycles in computing.items() if cycles == computing[best]]
    return max(equals, key=lambda d: d.tile_h * d.tile_w)


def integer_weight_size(
    workload: IntegerConvWorkload, decision: ConvDecision, target: Target
) -> int:
    """Return values in a packed weight."""
    return packed_size(workload.grouped, decision, target, _block(target))


def pack_integer_weight(
    workload: IntegerConvWorkload, decision: ConvDecision, target: Target, weight: NDArray[Any]
) -> NDArray[Any]:
    """Return weights int8 [out_channels, in_channels, kh, kw] as int32 groups.

    In the kernel's order.
    """
    c = target.float_lanes
    packed = pack_weight(workload.grouped, decision, groups_of(weight), c, _block(target))
    return _dot(workload, target).arrange(packed, c)


def emit_integer_conv(
    workload: IntegerConvWorkload, decision: ConvDecision, target: Target, name: str
) -> Kernel:
    """Write the kernel.

    Its buffers are data, packed weight, bias, rows (if there are any), the operands of the
    epilogue, and output.
    """
    return emit_phases([(workload, decision)], target, name)


def emit_phases(
    phases: Sequence[tuple[IntegerConvWorkload, ConvDecision]], target: Target, name: str
) -> Kernel:
    """Write several convolutions of the same data into one output.

    Buffers are those of `emit_integer_conv`; weights, bias and rows of one phase follow those of
    the phase before it.
    """
    workload = phases[0][0]
    e, work, c, dot = Emitter(target), workload.grouped, target.float_lanes, _dot(workload, target)
    sizes = [integer_weight_size(phase, decision, target) for phase, decision in phases]
    taps = [phase.conv.kernel[0] for phase, _ in phases]
    blocks_in = math.ceil(workload.conv.in_channels / c)
    channels = math.ceil(work.out_channels / c) * c
    groups = work.batch * blocks_in * _block(target) * work.in_h * work.in_w
    data = e.buffer("data", groups, "int32")
    weight = e.buffer("weight", sum(sizes), "int32")
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
            conv = _IntegerConv(phase, decision, dot, e, buffers, bias, rows, c, bases)
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


class _IntegerConv(DirectConv):
    """Writes one convolution of quantized values into an emitter."""

    dtype = "int32"

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
        self.present: tuple[Any, Any] = (0, workload.conv.kernel[0])
        super().__init__(workload.grouped, decision, c, emit, buffers, bases.weight)

    def input_block(self) -> int:
        return self.c // DOT_WIDTH

    def takes_bias(self) -> bool:
        return False

    def start(self, o: int) -> Any:
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
        return tirx.Cast(vector_dtype("float32", self.c), accumulator)

    def read(self, at: Any) -> Any:
        return self.dot.read(self.emit, self.data, at, self.c)

    def accumulate_taps(self, column: Any, valid: Sequence[Sequence[bool]], window: Any) -> None:
        together = self._blocks_together()
        if together == 1:
            super().accumulate_taps(column, valid, window)
            return
        turns, left = divmod(self.channels.blocks, together)
        with self.emit.loop("block", self.hide_from_llvm(turns)) as turn:
            for number in range(together):
                self._block(turn * together + number, 1, column, valid, window)
        for number in range(left):
            self._block(turns * together + number, 1, column, valid, window)

    def turns(self, blocks: int) -> Any:
        return self.hide_from_llvm(blocks) if self.block == 1 else blocks

    def _blocks_together(self) -> int:
        """Return blocks of input channels in a turn, where a tap of one is too little for it."""
        if self.block > 1 or math.prod(self.work.kernel) > 1:
            return 1
        # Without a loop LLVM would keep products, and spill them.
        most = self.channels.blocks // (1 if self.dot.by_lane else 2)
        return max(1, min(_BLOCKS_TOGETHER, most))

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
        at = e.let("at", wide(base))
        self._prefetch(weights, taps)
        values: dict[int, Any] = {}
        for line in range(self.plan.tile_h):
            places = {self._place(line, x, tap) for x, tap in self._read(line, valid, lines)}
            if places:
                values |= self._near(at, sorted(places))
        step = taps if self.dot.by_lane else _TAPS_TOGETHER
        for first in range(0, taps, step):
            self._add_taps(at, weights, range(first, min(first + step, taps)), values, valid, lines)

    def _place(self, line: int, x: int, tap: int) -> int:
        """Return where a value is, in groups of channels from the first of the tile."""
        w = self.work
        return line * w.stride[0] * w.in_w + x * w.stride[1] + tap * w.dilation[1]

    def _read(self, line: int, valid: Sequence[Mask], lines: Mask) -> Iterator[tuple[int, int]]:
        """Yield pixel and tap of what is read of the image in a line of the tile."""
        if lines[line if len(lines) > 1 else 0]:
            for x, pixel in enumerate(valid):
                yield from ((x, tap) for tap, inside in enumerate(pixel) if inside)

    def _add_taps(
        self,
        at: Any,
        weights: Any,
        taps: range,
        values: dict[int, Any],
        valid: Sequence[Mask],
        lines: Mask,
    ) -> None:
        """Add the products of some taps of a row.

        A value that takes instructions to copy to all lanes is multiplied by all of them at once.
        """
        e, p, c = self.emit, self.plan, self.c
        products = []
        for line in range(p.tile_h):
            inside = set(self._read(line, valid, lines))
            for x in range(p.tile_w):
                for tap in taps:
                    place = self._place(line, x, tap) if (x, tap) in inside else None
                    if place is not None or self.border:
                        products.append((place, tap, line * p.tile_w + x))
        if self.dot.by_lane:
            products.sort(key=lambda product: product[1])
        else:
            products.sort(key=lambda product: -1 if product[0] is None else product[0])
        vectors: dict[int, list[Any]] = {}
        last, value = None, self.outside() if self.border else None
        for place, tap, pixel in products:
            if tap not in vectors:
                row = [weights + (tap * self.width + o * c) for o in range(p.tile_o)]
                vectors[tap] = [e.let("w", self.weights_at(each)) for each in row]
            if place is None:
                value = self.outside()
            elif place != last:
                value = values[place] if place in values else self.read(at + place)
                value = value if self.dot.by_lane else e.let("x", value)
            last = place
            for o, vector in enumerate(vectors[tap]):
                position = pixel * p.tile_o + o
                total = self.add(e.load(self.acc, position), [value], [vector])
                e.store(self.acc, position, total)

    def _near(self, base: Any, groups: Sequence[int]) -> dict[int, Any]:
        """Return groups of a line in every lane, by their place: four are loaded at once."""
        found: dict[int, Any] = {}
        e = self.emit
        while len(found) < len(groups) and groups[-1] - groups[0] >= DOT_WIDTH - 1:
            first = min(groups[len(found)], groups[-1] - DOT_WIDTH + 1)
            four = e.let("four", e.load(self.data, base + first, DOT_WIDTH))
            for place in groups[len(found) :]:
                if place >= first + DOT_WIDTH:
                    break
                found[place] = self.dot.spread(four, place - first, self.c)
        return found

    def _prefetch(self, weights: Any, used: int) -> None:
        # What stays in the first level comes by itself.
        if int(self.weight.shape[0]) > _NEAR_GROUPS:
            super()._prefetch(weights, used)

    def outside(self) -> Any:
        return self.dot.repeated(self.code, self.c)

    def accumulate(
        self, base: Any, weights: Any, count: Any, inside: Sequence[bool], lines: Sequence[bool]
    ) -> None:
        turns, left = divmod(count, self.together)
        for first, number, size in ((0, turns, self.together), (turns * self.together, left, 1)):
            if number == 0:
                continue
            # Turns share no values, so LLVM's unrolling of this loop would gain nothing.
            with self.emit.loop("channel", number, wide=True, step=self.hidden_one()) as turn:
                channels = [first + turn * size + each for each in range(size)]
                self.add_products(base, weights, channels, inside, lines)

    def add(self, accumulator: Any, values: Sequence[Any], weights: Sequence[Any]) -> Any:
        return self.dot.add(accumulator, values, weights)
