"""Quantize the rows of a matrix to int8, group by group, for products with grouped weights.

`numerics.grouped_product` states the arithmetic. Of each row the kernel writes, one behind the
other, as bytes:

    codes       int8, of whole groups
    factors     float32, two for each group: its step, and its step times the sum of its codes,
                for minima of the weights
    less sums   int32: sums of codes times -1, for zero points of the weights

and then nothing up to a whole cache line.
"""

import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from edgec.compiler.kernels.emit.emitter import CACHE_LINE_BYTES, Emitter
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.quantized_values import store_values
from edgec.compiler.kernels.template import undecided
from edgec.compiler.kernels.vectors import broadcast, constant, intrinsic, select, vector_dtype
from edgec.compiler.numerics.grouped_product import LARGEST, SMALLEST
from edgec.targets.target import Target

# Values that one task quantizes, about.
TASK_VALUES = 4096


@dataclass(frozen=True)
class RowLayout:
    """A row layout says where the parts of a quantized row are.

    Attributes:
        columns: values of a row.
        group: values that share a step.
    """

    columns: int
    group: int

    @property
    def groups(self) -> int:
        """Return groups of a row, the last one perhaps not whole."""
        return math.ceil(self.columns / self.group)

    @property
    def codes(self) -> int:
        """Return codes of a row."""
        return self.groups * self.group

    @property
    def factors(self) -> int:
        """Return where factors begin, in numbers of 4 bytes."""
        return self.codes // 4

    @property
    def less_sums(self) -> int:
        """Return where sums times -1 begin, in numbers of 4 bytes."""
        return self.factors + 2 * self.groups

    @property
    def bytes(self) -> int:
        """Return the distance of rows."""
        used = 4 * (self.less_sums + self.groups)
        return math.ceil(used / CACHE_LINE_BYTES) * CACHE_LINE_BYTES


@dataclass(frozen=True)
class QuantizeRowsWorkload:
    """A workload of this kind describes a float32 matrix whose rows are quantized.

    Attributes:
        rows: how many.
        columns: values of a row.
        group: values that share a step, a multiple of 16.
    """

    rows: int
    columns: int
    group: int

    @property
    def macs(self) -> int:
        """Return values quantized."""
        return self.rows * self.columns

    @property
    def layout(self) -> RowLayout:
        """Return where the parts of a row are."""
        return RowLayout(self.columns, self.group)


def emit_quantize_rows(workload: QuantizeRowsWorkload, target: Target, name: str) -> Kernel:
    """Write the kernel; its buffers are the matrix and the quantized rows, int8."""
    w, e = workload, Emitter(target)
    data = e.buffer("data", w.rows * w.columns, "float32")
    output = e.buffer("output", w.rows * w.layout.bytes, "int8")
    writer = RowQuantizer(e, w.layout, output, target)
    each = max(1, TASK_VALUES // w.columns)
    with e.tasks() as task:
        first = e.let("first", task * each)
        count = e.let("count", tirx.min(tirx.IntImm("int32", each), w.rows - first))
        with e.loop("item", count) as item:
            row = e.let("row", first + item)
            start = e.let("start", row * w.columns)
            writer.write(row, lambda at, lanes: e.load(data, start + at, lanes))
    return Kernel(e.function(name), math.ceil(w.rows / each))


class RowQuantizer:
    """A row quantizer writes the code that quantizes one row.

    Args:
        e: what the kernel is written with.
        layout: where the parts of a row are.
        output: the buffer of quantized rows.
        target: what it is written for.
    """

    def __init__(self, e: Emitter, layout: RowLayout, output: Any, target: Target) -> None:
        self.e, self.layout, self.codes = e, layout, output
        self.lanes = min(target.float_lanes, 16)
        words = int(output.shape[0]) // 4
        self.floats = e.view(output, words, "float32")
        self.integers = e.view(output, words, "int32")

    def write(self, row: Any, read: Any) -> None:
        """Write a row whose values `read(column, lanes)` gives."""
        e, group = self.e, self.layout.group
        whole, rest = divmod(self.layout.columns, group)
        if whole:
            with e.loop("group", whole) as number:
                at = e.let("at", number * group)
                self._group(row, number, lambda v: read(at + v * self.lanes, self.lanes))
        if not rest:
            return
        padded = e.local("padded", group, "float32")
        for vector in range(group // self.lanes):
            e.store(padded, vector * self.lanes, constant(0, "float32", self.lanes))
        with e.loop("column", rest) as column:
            e.store(padded, column, read(column + whole * group, 1))
        load = lambda v: e.load(padded, v * self.lanes, self.lanes)  # noqa: E731
        self._group(row, tirx.IntImm("int32", whole), load)

    def _group(self, row: Any, number: Any, read: Any) -> None:
        e, lanes, layout = self.e, self.lanes, self.layout
        count = layout.group // lanes
        words = vector_dtype("int32", lanes)
        magnitude = constant(0x7FFFFFFF, "int32", lanes)
        # As whole numbers: NaN is then larger than all others.
        most: Any = None
        for vector in range(count):
            bits = tirx.reinterpret(words, read(vector)) & magnitude
            most = bits if most is None else tirx.max(most, bits)
            most = e.let("most", most)
        if lanes > 1:
            most = e.let("most", intrinsic("vector.reduce.smax", "int32", most))
        largest = e.let("largest", tirx.reinterpret("float32", most))
        smallest, zero = tirx.const(float(SMALLEST), "float32"), tirx.const(0.0, "float32")
        share = tirx.const(float(LARGEST), "float32") / largest
        inverse = e.let("inverse", select(largest >= smallest, share, zero))
        codes, total = [], None
        for vector in range(count):
            scaled = read(vector) * broadcast(inverse, lanes)
            codes.append(e.let("code", e.isa.round_to_int32(scaled)))
            total = codes[-1] if total is None else e.let("total", total + codes[-1])
        store_values(e, self.codes, row * layout.bytes + number * layout.group, codes)
        if lanes > 1:
            total = e.let("total", intrinsic("vector.reduce.add", "int32", total))
        start = e.let("words", row * (layout.bytes // 4))
        step = e.let("step", largest * tirx.const(1 / LARGEST, "float32"))
        factors = e.let("factors", start + layout.factors + 2 * number)
        e.store(self.floats, factors, step)
        e.store(self.floats, factors + 1, step * tirx.Cast("float32", total))
        e.store(self.integers, start + layout.less_sums + number, tirx.const(0, "int32") - total)


TEMPLATE = undecided(QuantizeRowsWorkload, emit_quantize_rows)
