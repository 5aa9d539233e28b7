"""Provide depthwise convolution and pooling on channel-blocked activations.

Both slide a window over each channel alone, so a vector of channels is computed at once. One
task is one output line of one channel block; a register tile of `tile_w` pixels is kept while
the window's rows are read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.conv.windows import (
    Span,
    Window,
    padding_rows,
    tile_spans,
    valid_rows,
    window_of,
)
from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.epilogue import (
    EpilogueStep,
    Places,
    apply,
    begins_with_bias,
    declare_operands,
    operand_loader,
    output_dtype,
)
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.quantized_values import load_as_float, store_values
from edgec.compiler.kernels.template import FLOAT_BIAS, Template
from edgec.compiler.kernels.vectors import broadcast, constant, vector_dtype
from edgec.targets.target import Target

# Around the products of a row of the window.
ROW_CYCLES = 4
READS_PER_CYCLE = 2
# Quantized values become floats in two instructions, where the multiplications are.
DECODE_INSTRUCTIONS = 2

Mode = Literal["depthwise", "max", "average", "average_padded"]


@dataclass(frozen=True)
class PoolWorkload:
    """A pool workload describes a window over every channel.

    Attributes:
        mode: depthwise convolution, largest value, or mean; `average` divides by the number of
            values inside the image, `average_padded` by the size of the window.
        batch: N.
        channels: C.
        in_h: input rows.
        in_w: input columns.
        out_h: output rows.
        out_w: output columns.
        kernel: window height and width.
        stride: vertical and horizontal.
        padding: rows above and columns left of the input.
        dilation: vertical and horizontal.
        epilogue: what happens to each value before it is stored.
        data: dtype of the input; quantized values are read without their scale, and a largest
            quantized value is stored as it is if nothing follows.
        zero_point: the zero point of its quantized values. A depthwise convolution accumulates the
            quantized values themselves and leaves the zero point to the bias; padding then counts
            as the zero point.
    """

    mode: Mode
    batch: int
    channels: int
    in_h: int
    in_w: int
    out_h: int
    out_w: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    epilogue: tuple[EpilogueStep, ...] = ()
    data: str = field(default="float32", metadata={"omit_if_default": True})
    zero_point: int = field(default=0, metadata={"omit_if_default": True})

    def window(self, axis: int) -> Window:
        """Return the sliding window along the rows (0) or the columns (1)."""
        return window_of(self, axis)

    @property
    def border(self) -> int:
        """Return code of the padding, where it is multiplied like any other."""
        return self.zero_point if self.mode == "depthwise" else 0

    @property
    def only_copies(self) -> bool:
        """Return whether quantized values go in and quantized values come out."""
        return self.mode == "max" and not self.epilogue

    @property
    def output(self) -> str:
        """Return dtype of the result."""
        return self.data if self.only_copies else output_dtype(self.epilogue)

    @property
    def macs(self) -> int:
        """Return values that are read and combined."""
        return self.batch * self.channels * self.out_h * self.out_w * math.prod(self.kernel)


@dataclass(frozen=True)
class PoolDecision:
    """A pool decision describes how a window is computed.

    Attributes:
        tile_w: pixels of a line in the register tile.
    """

    tile_w: int


def pack_depthwise(weight: NDArray[Any], c: int) -> NDArray[Any]:
    """Return weights [C, 1, kh, kw] as [ceil(C / c), kh, kw, c], zero where no channel exists."""
    channels, _, kh, kw = weight.shape
    blocks = math.ceil(channels / c)
    padded = np.zeros((blocks * c, kh, kw), weight.dtype)
    padded[:channels] = weight[:, 0]
    return np.ascontiguousarray(padded.reshape(blocks, c, kh, kw).transpose(0, 2, 3, 1))


def pool_space(workload: PoolWorkload, target: Target) -> list[PoolDecision]:
    """Return tiles that fit the registers beside one row of weights."""
    room = target.vector_registers - workload.kernel[1] - 2
    return [PoolDecision(w) for w in range(1, max(1, min(workload.out_w, room)) + 1)]


def default_pool_decision(workload: PoolWorkload, target: Target) -> PoolDecision:
    """Return the tile that computes the fewest pixels twice; of equals one near eight."""
    return min(
        pool_space(workload, target),
        key=lambda d: (estimate_pool_cycles(workload, d, target), abs(d.tile_w - 8)),
    )


def estimate_pool_cycles(workload: PoolWorkload, decision: PoolDecision, target: Target) -> float:
    """Return cycles of all rows of all windows: products, loads and the loop around them."""
    tiles = math.ceil(workload.out_w / decision.tile_w)
    reads = (decision.tile_w - 1) * workload.stride[1] + workload.kernel[1]
    work = decision.tile_w * workload.kernel[1] + (
        0 if workload.data == "float32" else DECODE_INSTRUCTIONS * reads
    )
    tile = work / target.fma_units + reads / READS_PER_CYCLE + ROW_CYCLES
    blocks = math.ceil(workload.channels / target.float_lanes)
    return workload.batch * blocks * workload.out_h * workload.kernel[0] * tiles * tile


def emit_pool(workload: PoolWorkload, decision: PoolDecision, target: Target, name: str) -> Kernel:
    """Write the kernel.

    Its buffers are data, packed weight (depthwise only), one for each binary step of the
    epilogue, and output.
    """
    return _Pool(workload, decision, target, name).kernel()


class _Pool:
    def __init__(
        self, workload: PoolWorkload, decision: PoolDecision, target: Target, name: str
    ) -> None:
        self.work = w = workload
        self.plan = decision
        self.name = name
        self.c = c = target.float_lanes
        self.blocks = math.ceil(w.channels / c)
        self.emit = e = Emitter(target)
        self.data = e.buffer("data", w.batch * self.blocks * w.in_h * w.in_w * c, w.data)
        self.dtype = w.data if w.only_copies else "float32"
        if w.mode == "depthwise":
            self.weight = e.buffer("weight", self.blocks * math.prod(w.kernel) * c, "float32")
        size = w.batch * self.blocks * w.out_h * w.out_w * c
        self.operands = declare_operands(
            e,
            w.epilogue,
            {
                "channel": self.blocks * c,
                "image_channel": w.batch * self.blocks * c,
                "element": size,
            },
        )
        self.output = e.buffer("output", size, w.output)

    def kernel(self) -> Kernel:
        w, e = self.work, self.emit
        with e.tasks() as task:
            line = e.let("line", tirx.floormod(task, w.out_h))
            plane = e.let("plane", tirx.floordiv(task, w.out_h))
            self.block = e.let("block", tirx.floormod(plane, self.blocks))
            self.acc = e.local("acc", self.plan.tile_w, vector_dtype(self.dtype, self.c))
            top = e.let("top", line * w.stride[0] - w.padding[0])
            first, count = valid_rows(e, top, w.window(0))
            for span in tile_spans(w.window(1), self.plan.tile_w):
                with e.loop("column_tile", len(span.starts)) as number:
                    column = e.let("column", number * self.plan.tile_w + span.starts[0])
                    self._tile(plane, line, top, first, count, column, span)
        return Kernel(e.function(self.name), w.batch * self.blocks * w.out_h)

    def _tile(
        self, plane: Any, line: Any, top: Any, first: Any, count: Any, column: Any, span: Span
    ) -> None:
        w, e, c = self.work, self.emit, self.c
        steps = list(w.epilogue)
        bias = w.mode == "depthwise" and begins_with_bias(steps)
        start = constant(0, "float32", c)
        if w.mode == "max":
            start = constant(_lowest(self.dtype), self.dtype, c)
        if bias:
            start = e.let("bias", e.load(self.operands[0], self.block * c, c))
        if w.border and not isinstance(count, int):
            start = self._with_padding_rows(start, first, count)
        for x in range(self.plan.tile_w):
            e.store(self.acc, x, start)
        left = column * w.stride[1] - w.padding[1]
        with e.loop("kh", count, first) as kh:
            row = (plane * w.in_h + top + kh * w.dilation[0]) * w.in_w + left
            self._row(e.let("base", row * c), kh, span.valid)
        scale = self._scale(count, span.valid)
        to = e.let("to", ((plane * w.out_h + line) * w.out_w + column) * c)
        values = []
        for x in range(self.plan.tile_w):
            places: Places = {
                "channel": self.block * c,
                "image_channel": plane * c,
                "element": to + x * c,
            }
            operand = operand_loader(e, self.operands[bias:], places, c)
            value = e.load(self.acc, x)
            value = value / scale[x] if scale else value
            values.append(apply(steps[bias:], value, operand))
        if w.only_copies:
            for x, value in enumerate(values):
                e.store(self.output, to + x * c, value)
        else:
            store_values(e, self.output, to, values)

    def _with_padding_rows(self, start: Any, first: Any, count: Any) -> Any:
        """Return the sum with what rows of the window above and below the image give: padding."""
        w, e, c = self.work, self.emit, self.c
        rows, taps = w.kernel
        total = e.local("start", 1, vector_dtype("float32", c))
        e.store(total, 0, start)
        for begin, past in padding_rows(e, first, count, rows):
            with e.loop("absent", past - begin, begin) as kh:
                at = (self.block * rows + kh) * (taps * c)
                for tap in range(taps):
                    weight = e.load(self.weight, at + tap * c, c)
                    padding = weight * constant(w.border, "float32", c)
                    e.store(total, 0, e.load(total, 0) + padding)
        return e.let("start", e.load(total, 0))

    def _row(self, base: Any, kh: Any, valid: Sequence[Sequence[bool]]) -> None:
        w, e, c = self.work, self.emit, self.c
        taps = w.kernel[1]
        weights: list[Any] = []
        if w.mode == "depthwise":
            at = e.let("weights", (self.block * w.kernel[0] + kh) * (taps * c))
            weights = [e.let("w", e.load(self.weight, at + tap * c, c)) for tap in range(taps)]
        if w.data == "float32":
            for x in range(self.plan.tile_w):
                value = e.load(self.acc, x)
                for tap in range(taps):
                    if valid[x][tap]:
                        read = self._read(base + self._offset(x, tap))
                        value = self._combined(value, read, weights[tap] if weights else None)
                e.store(self.acc, x, value)
            return
        # Quantized values are converted once for all pixels that read them.
        users: dict[int, list[tuple[int, int]]] = {}
        for x in range(self.plan.tile_w):
            for tap in range(taps):
                if valid[x][tap]:
                    users.setdefault(self._offset(x, tap), []).append((x, tap))
                elif w.border:
                    padding = weights[tap] * constant(w.border, "float32", c)
                    e.store(self.acc, x, e.load(self.acc, x) + padding)
        for offset in sorted(users):
            read = e.let("x", self._read(base + offset))
            for x, tap in users[offset]:
                weight = weights[tap] if weights else None
                e.store(self.acc, x, self._combined(e.load(self.acc, x), read, weight))

    def _offset(self, x: int, tap: int) -> int:
        return (x * self.work.stride[1] + tap * self.work.dilation[1]) * self.c

    def _combined(self, value: Any, read: Any, weight: Any) -> Any:
        """Return the combination of a window and one more value."""
        if weight is not None:
            return value + read * weight
        return tirx.max(value, read) if self.work.mode == "max" else value + read

    def _read(self, at: Any) -> Any:
        if self.work.only_copies:
            return self.emit.load(self.data, at, self.c)
        zero_point = 0 if self.work.border else self.work.zero_point
        return load_as_float(self.emit, self.data, at, self.c, zero_point)

    def _scale(self, rows: Any, valid: Sequence[Sequence[bool]]) -> list[Any]:
        """Return what each pixel's sum is divided by to become a mean.

        A product with the reciprocal would be off by a unit in the last place.
        """
        w, e = self.work, self.emit
        if w.mode == "average_padded":
            return [constant(math.prod(w.kernel), "float32", self.c)] * self.plan.tile_w
        if w.mode != "average":
            return []
        count = tirx.Cast("float32", rows) if not isinstance(rows, int) else None
        scales = []
        for x in range(self.plan.tile_w):
            columns = float(sum(valid[x]))
            if count is None:
                scales.append(constant(rows * columns, "float32", self.c))
            else:
                total = count * tirx.const(columns, "float32")
                scales.append(e.let("scale", broadcast(total, self.c)))
        return scales


def _lowest(dtype: str) -> float:
    """Return what every value is at least."""
    return float("-inf") if dtype == "float32" else int(np.iinfo(dtype).min)


def _pack(
    workload: PoolWorkload,
    _decision: PoolDecision,
    target: Target,
    position: int,
    array: NDArray[Any],
) -> NDArray[Any]:
    if position != 1 or workload.mode != "depthwise":
        return array
    return pack_depthwise(array, target.float_lanes)


TEMPLATE = Template(
    PoolWorkload,
    PoolDecision,
    pool_space,
    default_pool_decision,
    emit_pool,
    _pack,
    estimate_pool_cycles,
    epilogue="epilogue",
    bias=FLOAT_BIAS,
    why_dense="there is no sparse kernel for depthwise convolutions",
)
