"""Rotary position embedding of rows whose positions are only known at run time."""

import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from edgec.compiler.kernels.attention.append_rows import TASK_VALUES, whole_offset
from edgec.compiler.kernels.attention.rotation import Rotation, RowMover, declare_tables
from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.template import undecided
from edgec.targets.target import Target


@dataclass(frozen=True)
class RotateRowsWorkload:
    """This workload turns rows of float32 [batch, heads, count, size].

    Attributes:
        batch: sequences.
        heads: heads of each.
        count: rows of each.
        size: values of a row.
        rotation: how they are turned.
        each_position: whether every row of a sequence has its position, [batch, count]; else the
            first one has, [batch].
        token_major_data: whether the data is [batch, count, heads, size].
        token_major_output: whether the result is.
    """

    batch: int
    heads: int
    count: int
    size: int
    rotation: Rotation
    each_position: bool = False
    token_major_data: bool = False
    token_major_output: bool = False

    @property
    def macs(self) -> int:
        """Return values turned."""
        return self.batch * self.heads * self.count * self.size


def emit_rotate_rows(workload: RotateRowsWorkload, target: Target, name: str) -> Kernel:
    """Write the kernel; its buffers are data, positions int64, cosines, sines and the result."""
    w = workload
    e = Emitter(target)
    data = e.buffer("data", w.macs, "float32")
    positions = e.buffer("positions", w.batch * (w.count if w.each_position else 1), "int64")
    tables = declare_tables(e, w.rotation)
    output = e.buffer("output", w.macs, "float32")
    mover = RowMover(e, w.size, target.float_lanes, data, output, tables)
    rows = w.batch * w.count
    each = max(1, min(rows, TASK_VALUES // (w.size * w.heads)))
    with e.tasks() as task:
        first = e.let("first", task * each)
        with e.loop("number", tirx.min(tirx.IntImm("int32", each), rows - first)) as number:
            row = e.let("row", first + number)
            sequence = e.let("sequence", tirx.floordiv(row, w.count))
            step = e.let("step", tirx.floormod(row, w.count))
            position = whole_offset(e, positions, row if w.each_position else sequence)
            if not w.each_position:
                position = e.let("position", position + step)

            def place(head: Any, token_major: bool) -> Any:
                token = row * w.heads + head
                plain = (sequence * w.heads + head) * w.count + step
                return e.let("place", (token if token_major else plain) * w.size)

            with e.loop("head", w.heads) as head:
                source, to = (
                    place(head, major) for major in (w.token_major_data, w.token_major_output)
                )
                mover.move(source, to, position)
    return Kernel(e.function(name), math.ceil(rows / each))


TEMPLATE = undecided(RotateRowsWorkload, emit_rotate_rows)
