"""Look up rows of a table of a few bits with a scale for each group.

The table is kept as products keep their weights (`matmul.grouped_layout`), whose columns are its
rows: a language model whose table of tokens is also its last product stores it once.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from tvm import tirx

from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.matmul.grouped_layout import (
    VectorPlace,
    WeightReader,
    dot_of_codes,
    pack_weights,
    place_in_unit,
)
from edgec.compiler.kernels.template import undecided
from edgec.compiler.kernels.vectors import select
from edgec.compiler.numerics.grouped_codes import GroupForm
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.targets.target import Target


@dataclass(frozen=True)
class GroupedEmbeddingWorkload:
    """A workload of this kind describes a look-up of rows of a table with scales of groups.

    Attributes:
        count: indices.
        rows: the rows of the table; indices below 0 count from its end, others are clipped.
        columns: values of a row.
        index: the dtype of the indices.
        form: how the table is kept.
    """

    count: int
    rows: int
    columns: int
    index: Literal["int32", "int64"]
    form: GroupForm

    @property
    def macs(self) -> int:
        """Return values read and scaled."""
        return self.count * self.columns


def emit_grouped_embedding(workload: GroupedEmbeddingWorkload, target: Target, name: str) -> Kernel:
    """Write the kernel.

    Its buffers are the indices, the arrays of the form, and output float32 [count, columns]. A task
    is one row.
    """
    w, e, form = workload, Emitter(target), workload.form
    dot, columns = dot_of_codes(form.bits, target), target.float_lanes
    groups = math.ceil(w.columns / form.group)
    indices = e.buffer("indices", w.count, w.index)
    table = WeightReader(e, target, form, w.rows, groups)
    output = e.buffer("output", w.count * w.columns, "float32")
    middle = 0 if table.signed else 1 << form.bits - 1

    with e.tasks() as task:
        given = e.let("given", e.load(indices, task))
        past, last, none = (tirx.const(value, w.index) for value in (w.rows, w.rows - 1, 0))
        given = e.let("given", select(given < none, given + past, given))
        row = e.let("row", tirx.Cast("int32", tirx.max(tirx.min(given, last), none)))
        panel = e.let("panel", tirx.floordiv(row, table.panel))
        part = e.let("part", tirx.floormod(tirx.floordiv(row, columns), table.panel // columns))
        column = e.let("column", tirx.floormod(row, columns))
        wide_part = tirx.Cast("int64", part)
        start = table.place(tirx.Cast("int64", panel), wide_part, tirx.floormod(part, 2))
        places = [
            tirx.Cast("int64", e.let("place", place_in_unit(dot, columns, column, value)))
            for value in range(DOT_WIDTH)
        ]
        to = e.let("to", task * w.columns)

        def values(group: Any, first: Any, size: int) -> None:
            """Write `size` values from one on, the first of a run."""
            numbers = table.numbers(panel, group, part * columns + column)
            zero = numbers.zero
            if zero is None:
                zero = tirx.const(float(middle), "float32")
            of_group = tirx.Cast("int64", group) * table.step_bytes
            place = VectorPlace(e.let("first_byte", start.start + of_group), start.odd)
            for value in range(size):
                code = table.code(place, value // DOT_WIDTH, places[value % DOT_WIDTH])
                result = (tirx.Cast("float32", code) - zero) * numbers.scale
                e.store(output, to + first + value, result)

        whole, rest = divmod(w.columns, form.group)
        with e.loop("group", whole) as group:
            values(group, group * form.group, form.group)
        if rest:
            values(tirx.IntImm("int32", whole), tirx.IntImm("int32", whole * form.group), rest)
    return Kernel(e.function(name), w.count)


TEMPLATE = undecided(
    GroupedEmbeddingWorkload,
    emit_grouped_embedding,
    pack=lambda w, _d, target, position, array: pack_weights(
        w.form, target, w.form.names[position - 1], array
    ),
)
