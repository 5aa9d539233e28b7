"""Look up rows of a table of 4 or 8 bits with a scale for each group.

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
    PANEL,
    Floats,
    ZeroPoints,
    dot_of_codes,
    less_middle,
    load_number,
    pack_weights,
    place_in_unit,
    stored_floats,
    zero_points_dtype,
)
from edgec.compiler.kernels.template import undecided
from edgec.compiler.kernels.vectors import select
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
        bits: of a code, 4 or 8.
        group: values of a row that share a scale, a multiple of 16.
        scales: dtype of scales.
        zeros: what zero points are kept as; empty: all are the middle of the codes.
    """

    count: int
    rows: int
    columns: int
    index: Literal["int32", "int64"]
    bits: int
    group: int
    scales: Floats = "float32"
    zeros: ZeroPoints = ""

    @property
    def macs(self) -> int:
        """Return values read and scaled."""
        return self.count * self.columns


def emit_grouped_embedding(workload: GroupedEmbeddingWorkload, target: Target, name: str) -> Kernel:
    """Write the kernel.

    Its buffers are the indices, codes, scales, zero points where there are any, and output float32
    [count, columns]. A task is one row.
    """
    w, e = workload, Emitter(target)
    dot, columns = dot_of_codes(w.bits, target), target.float_lanes
    panels, groups = math.ceil(w.rows / PANEL), math.ceil(w.columns / w.group)
    group_bytes, step_bytes = (w.group * each * w.bits // 8 for each in (columns, PANEL))
    panel_bytes = groups * step_bytes
    indices = e.buffer("indices", w.count, w.index)
    signed = less_middle(w.bits, target)
    codes = e.buffer("codes", panels * panel_bytes, "int8" if signed else "uint8")
    count = panels * groups * PANEL
    scales = e.buffer("scales", count, stored_floats(w.scales))
    zeros = None
    if w.zeros:
        kind = zero_points_dtype(w.bits, w.zeros, target)
        zeros = e.buffer("zero_points", count, kind)
    output = e.buffer("output", w.count * w.columns, "float32")
    middle = 0 if signed else 1 << w.bits - 1
    # Values of a row in the units that share bytes.
    run = DOT_WIDTH * 8 // w.bits

    def zero_point(at: Any) -> Any:
        if zeros is None:
            return tirx.const(float(middle), "float32")
        return load_number(e, zeros, at, w.zeros)

    with e.tasks() as task:
        given = e.let("given", e.load(indices, task))
        past, last, none = (tirx.const(value, w.index) for value in (w.rows, w.rows - 1, 0))
        given = e.let("given", select(given < none, given + past, given))
        row = e.let("row", tirx.Cast("int32", tirx.max(tirx.min(given, last), none)))
        panel = e.let("panel", tirx.floordiv(row, PANEL))
        part = e.let("part", tirx.floormod(tirx.floordiv(row, columns), PANEL // columns))
        column = e.let("column", tirx.floormod(row, columns))
        start = tirx.Cast("int64", panel) * panel_bytes + tirx.Cast("int64", part * group_bytes)
        start = e.let("start", start)
        places = [
            tirx.Cast("int64", e.let("place", place_in_unit(dot, columns, column, value)))
            for value in range(DOT_WIDTH)
        ]
        to = e.let("to", task * w.columns)

        def values(group: Any, first: Any, size: int) -> None:
            """Write `size` values from one on, the first of a run."""
            at = (panel * groups + group) * PANEL + part * columns + column
            at = e.let("at", at)
            scale = e.let("scale", load_number(e, scales, at, w.scales))
            zero = e.let("zero", zero_point(at))
            first_byte = e.let("first_byte", start + tirx.Cast("int64", group) * step_bytes)
            with e.loop("run", math.ceil(size / run)) as number:
                place = e.let("place", first + number * run)
                byte = first_byte + tirx.Cast("int64", number) * (columns * DOT_WIDTH)
                byte = e.let("byte", byte)
                for value in range(run):
                    stored = tirx.Cast("int32", e.load(codes, byte + places[value % DOT_WIDTH]))
                    if w.bits == 4:
                        shift = tirx.const(4 * (value // DOT_WIDTH), "int32")
                        stored = (stored >> shift) & tirx.const(15, "int32")
                    result = (tirx.Cast("float32", stored) - zero) * scale
                    if size % run == 0:
                        e.store(output, to + place + value, result)
                        continue
                    with e.branch(place + value < w.columns):
                        e.store(output, to + place + value, result)

        whole, rest = divmod(w.columns, w.group)
        with e.loop("group", whole) as group:
            values(group, group * w.group, w.group)
        if rest:
            values(tirx.IntImm("int32", whole), tirx.IntImm("int32", whole * w.group), rest)
    return Kernel(e.function(name), w.count)


TEMPLATE = undecided(
    GroupedEmbeddingWorkload,
    emit_grouped_embedding,
    pack=lambda w, _d, target, position, array: pack_weights(
        w.bits, w.group, target, position, array
    ),
)
