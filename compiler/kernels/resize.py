"""Resize images by tables of source positions and weights, on channel-blocked activations.

Interpolation is separable: each output row mixes a few input rows, each output column a few
input columns. Which ones and how much is decided when compiling, in tables, so every mode and
coordinate convention is the same kernel.
"""

import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.template import undecided
from edgec.compiler.kernels.vectors import broadcast
from edgec.targets.target import Target

# Columns in a turn of the loop, where each is a copy.
_COLUMNS_TOGETHER = 4


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
    """

    batch: int
    channels: int
    in_h: int
    in_w: int
    out_h: int
    out_w: int
    taps: tuple[int, int]
    dtype: str = "float32"

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

        together = _COLUMNS_TOGETHER if w.taps == (1, 1) else 1
        turns, left = divmod(w.out_w, together)
        with e.loop("columns", turns) as turn:
            for number in range(together):
                write(turn * together + number)
        for number in range(left):
            write(turns * together + number)
    return Kernel(e.function(name), w.batch * blocks * w.out_h)


TEMPLATE = undecided(ResizeWorkload, emit_resize)
