"""Sum, product, mean, smallest or largest value of each row of a matrix.

These are reductions over the last axes; rows may also lie side by side, so that neighbouring values
of memory belong to different rows: reductions over axes in the middle.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tvm import tirx

from edgec.compiler.kernels.emit.across import reduce_lanes
from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.reduce_minmax import TASK_VECTORS, UNROLL, smaller_or_larger
from edgec.compiler.kernels.template import undecided
from edgec.compiler.kernels.vectors import constant, vector_dtype
from edgec.targets.target import Target

Operation = Literal["sum", "mean", "min", "max", "prod"]


@dataclass(frozen=True)
class RowReduceWorkload:
    """This workload reduces each row of a row-major float32 matrix to one value.

    Attributes:
        operation: what a row becomes. NaN in a row gives NaN.
        rows: number of rows, or of groups of rows side by side.
        columns: values in a row, at least one.
        inner: rows that lie side by side: the values of one are this far apart.
    """

    operation: Operation
    rows: int
    columns: int
    inner: int = 1

    @property
    def macs(self) -> int:
        """Return values read."""
        return self.rows * self.columns * self.inner


def emit_row_reduce(workload: RowReduceWorkload, target: Target, name: str) -> Kernel:
    """Write the kernel; its buffers are data [rows, columns, inner] and output [rows, inner].

    Several accumulators are in flight, as one alone would wait for its own latency.
    """
    identity, combine = _operation(workload.operation)
    if workload.inner > 1:
        return _emit_side_by_side(workload, target, name, identity, combine)
    return _emit_rows(workload, target, name, identity, combine)


def _operation(operation: Operation) -> tuple[float, Callable[[Any, Any], Any]]:
    """Return what a reduction begins with, and how it goes on."""
    if operation in ("sum", "mean"):
        return 0.0, lambda one, other: one + other
    if operation == "prod":
        return 1.0, lambda one, other: one * other
    if operation == "min":
        return math.inf, smaller_or_larger("min")
    return -math.inf, smaller_or_larger("max")


def _finished(w: RowReduceWorkload, total: Any, lanes: int) -> Any:
    return total * constant(1 / w.columns, "float32", lanes) if w.operation == "mean" else total


def _emit_side_by_side(
    w: RowReduceWorkload,
    target: Target,
    name: str,
    identity: float,
    combine: Callable[[Any, Any], Any],
) -> Kernel:
    """Write one task for some vectors of neighbouring rows; the last ones overlap."""
    c = min(target.float_lanes, 2 ** int(math.log2(w.inner)))
    count = min(UNROLL, w.inner // c)
    width = c * count
    parts = math.ceil(w.inner / width)
    e = Emitter(target)
    data = e.buffer("data", w.rows * w.columns * w.inner, "float32")
    output = e.buffer("output", w.rows * w.inner, "float32")
    with e.tasks() as task:
        partial = e.local("partial", count, vector_dtype("float32", c))
        last = tirx.IntImm("int32", w.inner - width)
        first = e.let("first", tirx.min(tirx.floormod(task, parts) * width, last))
        row = e.let("row", tirx.floordiv(task, parts))
        start = e.let("start", row * (w.columns * w.inner) + first)
        for part in range(count):
            e.store(partial, part, constant(identity, "float32", c))
        with e.loop("column", w.columns) as column:
            for part in range(count):
                value = e.load(data, start + column * w.inner + part * c, c)
                e.store(partial, part, combine(e.load(partial, part), value))
        for part in range(count):
            total = _finished(w, e.load(partial, part), c)
            e.store(output, row * w.inner + first + part * c, total)
    return Kernel(e.function(name), w.rows * parts)


def _emit_rows(
    w: RowReduceWorkload,
    target: Target,
    name: str,
    identity: float,
    combine: Callable[[Any, Any], Any],
) -> Kernel:
    """Write one task for several short rows."""
    c = min(target.float_lanes, 2 ** int(math.log2(w.columns)))
    vectors = w.columns // c
    count = min(UNROLL, vectors)
    rows_per_task = min(w.rows, max(1, TASK_VECTORS // math.ceil(w.columns / c)))
    e = Emitter(target)
    data = e.buffer("data", w.rows * w.columns, "float32")
    output = e.buffer("output", w.rows, "float32")
    with e.tasks() as task:
        partial = e.local("partial", count, vector_dtype("float32", c))
        single = e.local("single", 1, "float32")
        with e.loop("number", rows_per_task) as number:
            # The last task may reduce the last row more than once.
            last = tirx.IntImm("int32", w.rows - 1)
            row = e.let("row", tirx.min(task * rows_per_task + number, last))
            start = e.let("start", row * w.columns)
            for part in range(count):
                e.store(partial, part, constant(identity, "float32", c))
            with e.loop("group", vectors // count) as group:
                for part in range(count):
                    value = e.load(data, start + (group * count + part) * c, c)
                    e.store(partial, part, combine(e.load(partial, part), value))
            for vector in range(vectors // count * count, vectors):
                value = e.load(data, start + vector * c, c)
                e.store(partial, 0, combine(e.load(partial, 0), value))
            total = e.load(partial, 0)
            for part in range(1, count):
                total = combine(total, e.load(partial, part))
            e.store(single, 0, reduce_lanes(e, e.let("total", total), combine))
            for column in range(vectors * c, w.columns):
                e.store(single, 0, combine(e.load(single, 0), e.load(data, start + column)))
            e.store(output, row, _finished(w, e.load(single, 0), 1))
    return Kernel(e.function(name), math.ceil(w.rows / rows_per_task))


TEMPLATE = undecided(RowReduceWorkload, emit_row_reduce)
