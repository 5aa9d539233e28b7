"""Resize images by tables of source positions and weights, on channel-blocked activations.

Interpolation is separable: each output row mixes a few input rows, each output column a few
input columns. Which ones and how much is decided when compiling, in tables, so every mode and
coordinate convention is the same kernel.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.emit.emitter import Emitter, wide
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.template import undecided
from edgec.compiler.kernels.vectors import broadcast, shuffle
from edgec.targets.target import Target

# Columns in a turn of the loop, where each is a copy.
_COLUMNS_TOGETHER = 4
_MOST_REPEATS = 8


@dataclass(frozen=True)
class ResizeWorkload:
    """A resize workload describes a resize of every channel.

    Attributes:
        batch: N.
        channels: C.
        in_h: input rows.
        in_w: input columns.
        out_h: output rows.
        out_w: output columns.
        taps: input rows mixed into an output row, and input columns into a column; 1 is nearest.
        dtype: the dtype of the values; quantized values only if the nearest is taken.
        repeats: how often each input column comes, one after the other, where that is all that
            the table of columns says of quantized values; else 1.
    """

    batch: int
    channels: int
    in_h: int
    in_w: int
    out_h: int
    out_w: int
    taps: tuple[int, int]
    dtype: str = "float32"
    repeats: int = field(default=1, metadata={"omit_if_default": True})

    @property
    def macs(self) -> int:
        """Return values read and weighted."""
        return self.batch * self.channels * self.out_h * self.out_w * math.prod(self.taps)


def emit_resize(workload: ResizeWorkload, target: Target, name: str) -> Kernel:
    """Write the kernel.

    Its buffers are data, source rows [out_h, taps_h] int32, their weights float32, source columns
    [out_w, taps_w] int32, their weights, and output. One task is one output line of one block.
    """
    w, c = workload, target.float_lanes
    blocks = math.ceil(w.channels / c)
    taps_h, taps_w = w.taps
    e = Emitter(target)
    data = e.buffer("data", w.batch * blocks * w.in_h * w.in_w * c, w.dtype)
    rows = e.buffer("rows", w.out_h * taps_h, "int32")
    row_weights = e.buffer("row_weights", w.out_h * taps_h, "float32")
    columns = e.buffer("columns", w.out_w * taps_w, "int32")
    column_weights = e.buffer("column_weights", w.out_w * taps_w, "float32")
    output = e.buffer("output", w.batch * blocks * w.out_h * w.out_w * c, w.dtype)
    with e.tasks() as task:
        line = e.let("line", tirx.floormod(task, w.out_h))
        plane = e.let("plane", tirx.floordiv(task, w.out_h))
        sources = []
        for tap in range(taps_h):
            row = e.load(rows, line * taps_h + tap)
            sources.append(e.let("source", (plane * w.in_h + row) * w.in_w))
        scales = [
            e.let("scale", broadcast(e.load(row_weights, line * taps_h + tap), c))
            for tap in range(taps_h if taps_h > 1 else 0)
        ]

        def write(column: Any) -> None:
            total: Any = None
            for tap in range(taps_w):
                place = e.let("place", e.load(columns, column * taps_w + tap))
                mixed: Any = None
                for number, source in enumerate(sources):
                    value = e.load(data, (source + place) * c, c)
                    value = value * scales[number] if scales else value
                    mixed = value if mixed is None else mixed + value
                if taps_w > 1:
                    weight = e.load(column_weights, column * taps_w + tap)
                    mixed = mixed * broadcast(weight, c)
                total = mixed if total is None else total + mixed
            e.store(output, (task * w.out_w + column) * c, total)

        if w.repeats > 1:
            _repeat_columns(e, w, data, sources[0] * c, output, task * (w.out_w * c), c)
        else:
            together = _COLUMNS_TOGETHER if w.taps == (1, 1) else 1
            turns, left = divmod(w.out_w, together)
            with e.loop("columns", turns) as turn:
                for number in range(together):
                    write(turn * together + number)
            for number in range(left):
                write(turns * together + number)
    return Kernel(e.function(name), w.batch * blocks * w.out_h)


def can_repeat(columns: NDArray[np.int32], before: int, after: int) -> int:
    """Return how often each input column comes, one after the other; 1: another table.

    Args:
        columns: source columns [after, taps].
        before: input columns.
        after: output columns.
    """
    times = after // before
    same = columns.shape[1] == 1 and before >= _COLUMNS_TOGETHER
    if not same or times * before != after or times > _MOST_REPEATS:
        return 1
    return times if (columns[:, 0] == np.arange(after) // times).all() else 1


def _repeat_columns(
    e: Emitter, w: ResizeWorkload, data: Any, source: Any, output: Any, to: Any, c: int
) -> None:
    """Write a line of which each column comes several times: four columns are read at once."""
    width, times = _COLUMNS_TOGETHER, w.repeats
    first, to = e.let("first", wide(source)), e.let("to", wide(to))
    with e.loop("columns", math.ceil(w.in_w / width), wide=True) as number:
        column = number * width
        if w.in_w % width:
            # The last four overlap those before.
            column = e.let("column", tirx.min(column, tirx.IntImm("int64", w.in_w - width)))
        values = e.let("values", e.load(data, first + column * c, width * c))
        for part in range(times):
            picks = [(part * width + place) // times for place in range(width)]
            lanes = [pick * c + lane for pick in picks for lane in range(c)]
            at = to + (column * times + part * width) * c
            e.store(output, at, shuffle([values], lanes))


TEMPLATE = undecided(ResizeWorkload, emit_resize)
