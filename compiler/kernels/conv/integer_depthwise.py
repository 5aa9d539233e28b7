"""Provide depthwise convolution of quantized values: four taps of a channel in each lane.

Every line of the input is rewritten once: a column becomes, for each channel of a block, its code
and those of the three columns to the right. One such vector is then multiplied by four taps of
a row of the window at once, as `Dot` multiplies four input channels. The lines that a window covers
are kept in a ring. Padding is written into them on the left and right; rows of the window above
and below the image are left out.

Layouts, with c float32 lanes in a vector:

    activation [N, ceil(channels / c), H, W, c] quantized.
    weight      int32 [blocks, kh, ceil(kw / 4), c], each lane four taps.
    bias        int32 [blocks * c]: the bias in units of the products, less the sum of the weights
                of the channel times the zero point.
    rows        int32 [kh, blocks * c]: the sum of the weights of a row of the window times the
                zero point, put back where the row is above or below the image.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.conv.depthwise_columns import (
    DepthwiseColumns,
    columns_space,
    estimate_columns_cycles,
    pack_columns,
)
from edgec.compiler.kernels.conv.depthwise_pairs import (
    DepthwisePairs,
    estimate_pairs_cycles,
    pack_pairs,
    pairs_space,
)
from edgec.compiler.kernels.conv.depthwise_rows import (
    DepthwiseRows,
    estimate_rows_cycles,
    rows_space,
)
from edgec.compiler.kernels.conv.depthwise_tiles import (
    TiledDepthwise,
    estimate_tiled_cycles,
    pack_tiled,
    tiled_space,
)
from edgec.compiler.kernels.conv.depthwise_words import (
    DepthwiseWords,
    estimate_words_cycles,
    pack_words,
    words_space,
)
from edgec.compiler.kernels.conv.depthwise_writer import (
    TASK_CYCLES,
    DepthwiseDecision,
    DepthwiseWriter,
    IntegerDepthwiseWorkload,
    shares,
)
from edgec.compiler.kernels.conv.windows import padding_rows, valid_rows
from edgec.compiler.kernels.emit.epilogue import cost
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.machine_model import STORE_INSTRUCTIONS, imbalance_of
from edgec.compiler.kernels.isa import Dot, dot_of, isa_of
from edgec.compiler.kernels.template import INT32_BIAS, Template
from edgec.compiler.kernels.vectors import vector_dtype
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.targets.target import Target

# To start a register tile.
TILE_CYCLES = 8
# Around the products of a row of the window: addresses, loads, counting.
ROW_INSTRUCTIONS = 4
# A vector that is stored alone, not with three others.
SINGLE_STORE_CYCLES = 2
# To rewrite a column of a line.
REWRITE_CYCLES = 2


def _dot(target: Target) -> Dot:
    dot = dot_of(target)
    assert dot is not None
    return dot


def depthwise_space(workload: IntegerDepthwiseWorkload, target: Target) -> list[DepthwiseDecision]:
    """Return tiles that take half of the registers, so that rows of the window can be unrolled."""
    if _in_registers(target):
        words = isa_of(target).multiplies_int16_faster
        others = columns_space(workload, target)
        if words:
            others = words_space(workload, target)
        return [*tiled_space(workload, target), *others]
    rows = rows_space(workload, target)
    if rows:
        return [*rows, *pairs_space(workload, target)]
    conv, dot = workload.conv, _dot(target)
    room = (target.vector_registers - dot.temporaries - workload.tap_groups - 1) // 2
    widths = range(1, max(1, min(conv.out_w, room)) + 1)
    heights = shares(conv.out_h)
    return [DepthwiseDecision(w, lines) for w in widths for lines in heights]


def default_depthwise_decision(
    workload: IntegerDepthwiseWorkload, target: Target
) -> DepthwiseDecision:
    """Return the decision of the lowest estimate; ties go to the one with more pixels."""
    return min(
        depthwise_space(workload, target),
        key=lambda d: (estimate_depthwise_cycles(workload, d, target), -d.tile_w),
    )


def estimate_depthwise_cycles(
    workload: IntegerDepthwiseWorkload, decision: DepthwiseDecision, target: Target
) -> float:
    """Return cycles of products, of the epilogue, which stores four vectors at once.

    And of rewriting.
    """
    if decision.pairs:
        return estimate_pairs_cycles(workload, decision, target)
    if decision.columns:
        return estimate_columns_cycles(workload, decision, target)
    if decision.rows:
        return estimate_rows_cycles(workload, decision, target)
    if decision.words:
        return estimate_words_cycles(workload, decision, target)
    if decision.tile_h:
        return estimate_tiled_cycles(workload, decision, target)
    conv, dot = workload.conv, _dot(target)
    tile = decision.tile_w
    products = conv.kernel[0] * workload.tap_groups * tile
    multiply = max(products * dot.instructions, products + ROW_INSTRUCTIONS) / target.fma_units
    store = tile * (STORE_INSTRUCTIONS + cost(conv.epilogue)) / target.fma_units
    store += SINGLE_STORE_CYCLES * (tile % DOT_WIDTH)
    tiles = math.ceil(conv.out_w / tile)
    planes = conv.batch * math.ceil(conv.in_channels / target.float_lanes)
    parts = math.ceil(conv.out_h / decision.lines)
    # Each task begins with all rows of a window; those outside the image are not rewritten.
    rows = min(conv.kernel[0], conv.in_h)
    fresh = min(conv.in_h * parts, conv.out_h * conv.stride[0] + parts * (rows - conv.stride[0]))
    rewriting = min(fresh, conv.out_h * rows) * workload.columns * REWRITE_CYCLES
    tasks = planes * parts
    lines = conv.out_h * tiles * (multiply + store + TILE_CYCLES)
    return planes * (lines + rewriting) * imbalance_of(tasks, target) + tasks * TASK_CYCLES


def pack_integer_depthwise(
    workload: IntegerDepthwiseWorkload, target: Target, weight: NDArray[Any]
) -> NDArray[Any]:
    """Return weights int8 [channels, 1, kh, kw] as int32 groups of taps, in the kernel's order."""
    c, dot = target.float_lanes, _dot(target)
    channels, _, kh, kw = weight.shape
    padded = np.zeros((math.ceil(channels / c) * c, kh, workload.tap_groups * DOT_WIDTH), np.int8)
    padded[:channels, :, :kw] = weight[:, 0]
    groups = padded.view(np.int32).reshape(-1, c, kh, workload.tap_groups)
    return dot.arrange(np.ascontiguousarray(groups.transpose(0, 2, 3, 1)), c)


def emit_integer_depthwise(
    workload: IntegerDepthwiseWorkload, decision: DepthwiseDecision, target: Target, name: str
) -> Kernel:
    """Write the kernel.

    Its buffers are data, weight, bias, rows (if there are any), the operands of the epilogue, and
    output.
    """
    if decision.pairs:
        return DepthwisePairs(workload, decision, target).kernel(name)
    if decision.columns:
        return DepthwiseColumns(workload, decision, target).kernel(name)
    if decision.rows:
        return DepthwiseRows(workload, decision, target).kernel(name)
    if decision.words:
        return DepthwiseWords(workload, decision, target).kernel(name)
    if decision.tile_h:
        return TiledDepthwise(workload, decision, target).kernel(name)
    return _IntegerDepthwise(workload, decision, target).kernel(name)


def _in_registers(target: Target) -> bool:
    """Return whether a window is one vector, rearranged by one instruction."""
    return target.float_lanes == DOT_WIDTH


class _IntegerDepthwise(DepthwiseWriter):
    """Rewrites lines into a ring."""

    def kernel(self, name: str) -> Kernel:
        """Return the finished kernel."""
        w, e, c = self.conv, self.emit, self.c
        parts = math.ceil(w.out_h / self.plan.lines)
        rows = w.kernel[0]
        with e.tasks() as task:
            part = e.let("part", tirx.floormod(task, parts))
            plane = e.let("plane", tirx.floordiv(task, parts))
            block = e.let("block", tirx.floormod(plane, self.blocks))
            self.ring = e.scratch("ring", rows * self.work.columns * c, "int32")
            self.row = e.scratch("row", self.work.line * c, self.dot.data)
            self.acc = e.local("acc", self.plan.tile_w, vector_dtype("int32", c))
            self.write_borders(self.row)
            first = e.let("first_line", part * self.plan.lines)
            count = tirx.min(tirx.IntImm("int32", self.plan.lines), w.out_h - first)
            with e.loop("line_offset", e.let("lines", count)) as offset:
                line = e.let("line", first + offset)
                fresh = max(0, rows - w.stride[0])
                begin = e.let("begin", tirx.Select(offset == 0, 0, fresh)) if fresh else 0
                with e.loop("fresh", rows - begin, begin) as kh:
                    self._rewrite(plane, line, kh)
                self._line(plane, block, line)
        return Kernel(e.function(name), w.batch * self.blocks * parts)

    def _rewrite(self, plane: Any, line: Any, kh: Any) -> None:
        """Write a line of the input into the ring."""
        w, e, c = self.conv, self.emit, self.c
        place = e.let("place", line * w.stride[0] + kh)
        source = e.let("source", place - w.padding[0])
        slot = tirx.floormod(place, tirx.IntImm("int32", w.kernel[0]))
        to = e.let("to", slot * self.work.columns)
        with e.branch(tirx.all(source >= 0, source < w.in_h)):
            self.copy_line(plane, source, self.row, 0)
            with e.loop("column", self.work.columns) as column:
                quantized = e.load(self.row, column * (w.stride[1] * c), self.step)
                e.store(self.ring, (to + column) * c, self.by_channel(quantized))

    def _line(self, plane: Any, block: Any, line: Any) -> None:
        w, e = self.conv, self.emit
        rows = w.kernel[0]
        top = e.let("top", line * w.stride[0] - w.padding[0])
        first, count = valid_rows(e, top, w.window(0))
        if isinstance(count, int):
            self._tiles(plane, block, line, first, count)
            return
        # A number of rows that is known is unrolled.
        with e.branch(count == rows):
            self._tiles(plane, block, line, 0, rows)
        with e.branch(count < rows):
            self._tiles(plane, block, line, first, count)

    def _start(self, block: Any, first: Any, count: Any) -> Any:
        """Return what accumulators begin with: the bias.

        And the padding in rows outside the image.
        """
        e, c, rows = self.emit, self.c, self.conv.kernel[0]
        bias = e.load(self.bias, block * c, c)
        if isinstance(count, int) or not self.work.has_rows:
            return e.let("bias", bias)
        start = e.local("start", 1, vector_dtype("int32", c))
        e.store(start, 0, bias)
        for begin, past in padding_rows(e, first, count, rows):
            with e.loop("absent", past - begin, begin) as kh:
                row = e.load(self.row_sums, (kh * self.blocks + block) * c, c)
                e.store(start, 0, e.load(start, 0) + row)
        return e.let("bias", e.load(start, 0))

    def _tiles(self, plane: Any, block: Any, line: Any, first: Any, count: Any) -> None:
        w, e, tile = self.conv, self.emit, self.plan.tile_w
        start = self._start(block, first, count)
        with e.loop("tile", math.ceil(w.out_w / tile)) as number:
            column = number * tile
            if w.out_w % tile:
                column = tirx.min(column, tirx.IntImm("int32", w.out_w - tile))
            column = e.let("column", column)
            for x in range(tile):
                e.store(self.acc, x, start)
            with e.loop("kh", count, first) as kh:
                self._row(block, line, column, kh)
            accumulators = [e.load(self.acc, x) for x in range(tile)]
            self.store_line(plane, block, line, column, accumulators)

    def _row(self, block: Any, line: Any, column: Any, kh: Any) -> None:
        """Write products of one row of the window, `together` groups of taps at a time."""
        w, e, c = self.conv, self.emit, self.c
        tap_groups, together = self.work.tap_groups, self.work.together
        slot = tirx.floormod(line * w.stride[0] + kh, tirx.IntImm("int32", w.kernel[0]))
        base = e.let("base", slot * self.work.columns + column)
        at = e.let("weights", (block * w.kernel[0] + kh) * (tap_groups * c))
        for first in range(0, tap_groups, together):
            taken = range(first, min(first + together, tap_groups))
            weights = [
                e.let("w", e.load(self.weight, at + tap_group * c, c)) for tap_group in taken
            ]
            for x in range(self.plan.tile_w):
                values = []
                for tap_group in taken:
                    place = base + (x + tap_group * self.work.spread)
                    values.append(e.load(self.ring, place * c, c))
                e.store(self.acc, x, self.dot.add(e.load(self.acc, x), values, weights))


def _pack(
    workload: IntegerDepthwiseWorkload,
    decision: DepthwiseDecision,
    target: Target,
    position: int,
    array: NDArray[Any],
) -> NDArray[Any]:
    if decision.pairs and position == 1:
        return pack_pairs(workload, array)
    if decision.words and position == 1:
        return pack_words(workload, target, array)
    if decision.columns and position == 1:
        return pack_columns(workload, target, array)
    if decision.tile_h and position == 1:
        return pack_tiled(workload, decision.shifts, target, array)
    return pack_integer_depthwise(workload, target, array) if position == 1 else array


TEMPLATE = Template(
    IntegerDepthwiseWorkload,
    DepthwiseDecision,
    depthwise_space,
    default_depthwise_decision,
    emit_integer_depthwise,
    _pack,
    estimate_depthwise_cycles,
    epilogue="conv",
    accumulator="int32",
    bias=INT32_BIAS,
    fixed_point=True,
    why_dense="there is no sparse kernel for depthwise convolutions",
)
