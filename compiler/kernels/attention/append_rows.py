"""Replace rows of a cache from a row on that is known at run time, maybe turned on their way.

In place only the new rows are written: then the result has the memory of the old cache, and its
other rows are not touched. Else all rows are written.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from tvm import tirx

from edgec.compiler.kernels.attention.rotation import (
    Rotation,
    RowMover,
    declare_tables,
    fitting_lanes,
)
from edgec.compiler.kernels.attention.workload import STORED, Cache
from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.template import undecided
from edgec.compiler.kernels.vectors import broadcast, constant, select
from edgec.targets.target import Target

# Values that a task moves, about.
TASK_VALUES = 16384
# No offset is taken for a larger one: sums with it stay in int32.
FAR = 2**30


@dataclass(frozen=True)
class AppendRowsWorkload:
    """This workload replaces rows of a cache [batch, heads, total, size] by float32.

    Attributes:
        batch: sequences.
        heads: heads of each.
        total: rows of the cache.
        count: new rows.
        size: values of a row.
        token_major: whether the new rows are [batch, count, heads, size], not
            [batch, heads, count, size].
        rotation: how new rows are turned, by their place in the cache.
        clear: whether rows behind the new ones become zeros, if not in place.
        in_place: whether the result has the memory of the old cache.
        cache: dtype of its rows.
    """

    batch: int
    heads: int
    total: int
    count: int
    size: int
    token_major: bool = False
    rotation: Rotation | None = None
    clear: bool = False
    in_place: bool = field(default=False, metadata={"omit_if_default": True})
    cache: Cache = field(default="float32", metadata={"omit_if_default": True})

    @property
    def macs(self) -> int:
        """Return values moved."""
        rows = self.count if self.in_place else self.total
        return self.batch * self.heads * rows * self.size


def emit_append_rows(workload: AppendRowsWorkload, target: Target, name: str) -> Kernel:
    """Write the kernel.

    Its buffers are the old cache, the new rows, the offsets int64 [batch], cosines and sines where
    rows are turned, and the new cache.
    """
    w, c = workload, target.float_lanes
    e = Emitter(target)
    size = w.batch * w.heads * w.total * w.size
    past = e.buffer("past", size, STORED[w.cache])
    new = e.buffer("new", w.batch * w.heads * w.count * w.size, "float32")
    offsets = e.buffer("offsets", w.batch, "int64")
    tables = declare_tables(e, w.rotation)
    output = e.buffer("output", size, STORED[w.cache])
    mover = RowMover(e, w.size, c, new, output, tables, halves=w.cache == "float16")
    rows = w.count if w.in_place else w.total
    each = max(1, min(rows, TASK_VALUES // w.size))
    parts = math.ceil(rows / each)
    with e.tasks() as task:
        part = e.let("part", tirx.floormod(task, parts))
        plane = e.let("plane", tirx.floordiv(task, parts))
        sequence = e.let("sequence", tirx.floordiv(plane, w.heads))
        head = e.let("head", tirx.floormod(plane, w.heads))
        offset = whole_offset(e, offsets, sequence)
        begin = e.let("begin", part * each)
        left = tirx.min(tirx.IntImm("int32", each), tirx.IntImm("int32", rows) - begin)

        def place(step: Any) -> Any:
            if w.token_major:
                return ((sequence * w.count + step) * w.heads + head) * w.size
            return (plane * w.count + step) * w.size

        with e.loop("row", left) as number:
            if w.in_place:
                step = e.let("step", begin + number)
                row = e.let("row", offset + step)
            else:
                row = e.let("row", begin + number)
                step = e.let("step", row - offset)
            to = e.let("to", (plane * w.total + row) * w.size)
            fresh = tirx.all(step >= 0, step < w.count)
            inside = tirx.all(row >= 0, row < w.total) if w.in_place else fresh
            with e.branch(inside):
                mover.move(e.let("source", place(step)), to, row)
            if not w.in_place:
                with e.branch(tirx.Not(fresh)):
                    _keep(e, w, c, past, output, to, step)
    return Kernel(e.function(name), w.batch * w.heads * parts)


def _keep(
    e: Emitter, w: AppendRowsWorkload, lanes: int, past: Any, output: Any, to: Any, step: Any
) -> None:
    """Write a row that is not new: the old one, or zeros."""
    c = fitting_lanes(lanes, w.size)
    with e.loop("vector", w.size // c) as vector:
        at = e.let("at", to + vector * c)
        value = e.load(past, at, c)
        if w.clear:
            value = select(broadcast(step < 0, c), value, constant(0, STORED[w.cache], c))
        e.store(output, at, value)


def whole_offset(e: Emitter, offsets: Any, sequence: Any) -> Any:
    """Return the offset of a sequence as int32, of those far beyond any cache the nearest."""
    low, high = (tirx.const(end, "int64") for end in (-FAR, FAR))
    given = tirx.max(tirx.min(e.load(offsets, sequence), high), low)
    return e.let("offset", tirx.Cast("int32", given))


TEMPLATE = undecided(AppendRowsWorkload, emit_append_rows, in_place="in_place")
