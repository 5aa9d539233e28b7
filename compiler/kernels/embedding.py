"""Look up rows of a quantized table: only those that are read become floats."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from tvm import tirx

from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.quantized_values import LOAD_DTYPES, weight_to_float
from edgec.compiler.kernels.template import undecided
from edgec.compiler.kernels.vectors import broadcast
from edgec.targets.target import Target

# Values that one task writes, about: enough work to be worth handing out.
TASK_VALUES = 4096


@dataclass(frozen=True)
class EmbeddingWorkload:
    """An embedding workload describes a look-up of rows of a table.

    Attributes:
        count: indices.
        rows: the rows of the table; indices beyond them are clipped.
        columns: values of a row.
        index: the dtype of the indices.
        weight: the format of the table, a key of `LOAD_DTYPES`.
    """

    count: int
    rows: int
    columns: int
    index: Literal["int32", "int64"]
    weight: str = "int8"

    @property
    def macs(self) -> int:
        """Return values read and scaled."""
        return self.count * self.columns


def emit_embedding(workload: EmbeddingWorkload, target: Target, name: str) -> Kernel:
    """Write the kernel.

    Its buffers are the indices, the table [rows, columns], of int8 values the scales of the rows
    float32 [rows], and output float32 [count, columns].
    """
    w, c = workload, target.float_lanes
    e = Emitter(target)
    indices = e.buffer("indices", w.count, w.index)
    table = e.buffer("table", w.rows * w.columns, LOAD_DTYPES[w.weight])
    scales = e.buffer("scales", w.rows, "float32") if w.weight == "int8" else None
    output = e.buffer("output", w.count * w.columns, "float32")
    each = max(1, TASK_VALUES // w.columns)
    with e.tasks() as task:
        first = e.let("first", task * each)
        count = e.let("count", tirx.min(tirx.IntImm("int32", each), w.count - first))
        with e.loop("item", count) as item:
            given = e.let("given", e.load(indices, first + item))
            last, zero = (tirx.const(value, w.index) for value in (w.rows - 1, 0))
            inside = tirx.Cast("int32", tirx.max(tirx.min(given, last), zero))
            row = e.let("row", inside)
            scale = None if scales is None else e.let("scale", e.load(scales, row))
            source, to = e.let("source", row * w.columns), e.let("to", (first + item) * w.columns)

            def move(at: Any, lanes: int) -> None:
                stored = e.load(table, source + at, lanes)
                value = weight_to_float(stored, w.weight, e.isa.converts_float16)
                if scale is not None:
                    value = value * broadcast(scale, lanes)
                e.store(output, to + at, value)

            with e.loop("vector", w.columns // c) as vector:
                move(vector * c, c)
            whole = w.columns // c * c
            with e.loop("single", w.columns - whole) as single:
                move(single + whole, 1)
    return Kernel(e.function(name), math.ceil(w.count / each))


TEMPLATE = undecided(EmbeddingWorkload, emit_embedding)
