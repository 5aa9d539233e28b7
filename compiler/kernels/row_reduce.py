"""Sum, mean, smallest or largest value of each row of a matrix: reductions over the last axes."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from tvm import tirx

from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.reduce_minmax import TASK_VECTORS, UNROLL, smaller_or_larger
from edgec.compiler.kernels.template import undecided
from edgec.compiler.kernels.vectors import constant, vector_dtype
from edgec.targets.target import Target

Operation = Literal["sum", "mean", "min", "max"]


@dataclass(frozen=True)
class RowReduceWorkload:
    """This workload reduces each row of a row-major float32 matrix to one value.

    Attributes:
        operation: what a row becomes. NaN in a row gives NaN.
        rows: number of rows.
        columns: values in a row, at least one.
    """

    operation: Operation
    rows: int
    columns: int

    @property
    def macs(self) -> int:
        """Return values read."""
        return self.rows * self.columns


def emit_row_reduce(workload: RowReduceWorkload, target: Target, name: str) -> Kernel:
    """Write the kernel; its buffers are data [rows * columns] and output [rows].

    A task reduces several short rows. Several accumulators are in flight, as one alone would wait
    for its own latency.
    """
    w = workload
    c = min(target.float_lanes, 2 ** int(math.log2(w.columns)))
    vectors = w.columns // c
    count = min(UNROLL, vectors)
    rows_per_task = min(w.rows, max(1, TASK_VECTORS // math.ceil(w.columns / c)))
    adds = w.operation in ("sum", "mean")
    identity = 0.0 if adds else math.inf if w.operation == "min" else -math.inf
    extreme = None if adds else smaller_or_larger("min" if w.operation == "min" else "max")

    def combine(one: Any, other: Any) -> Any:
        return one + other if extreme is None else extreme(one, other)

    e = Emitter(target)
    data = e.buffer("data", w.rows * w.columns, "float32")
    output = e.buffer("output", w.rows, "float32")
    with e.tasks() as task:
        partial = e.local("partial", count, vector_dtype("float32", c))
        spill = e.local("spill", c, "float32")
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
            e.store(spill, 0, total)
            e.store(single, 0, constant(identity, "float32"))
            for lane in range(c):
                e.store(single, 0, combine(e.load(single, 0), e.load(spill, lane)))
            for column in range(vectors * c, w.columns):
                e.store(single, 0, combine(e.load(single, 0), e.load(data, start + column)))
            result = e.load(single, 0)
            if w.operation == "mean":
                result = result * tirx.const(1 / w.columns, "float32")
            e.store(output, row, result)
    return Kernel(e.function(name), math.ceil(w.rows / rows_per_task))


TEMPLATE = undecided(RowReduceWorkload, emit_row_reduce)
