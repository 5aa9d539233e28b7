"""Compute a function of quantized values by a table of 256, one for each byte.

Instructions pick from 16 bytes of a table or more, so that few of them look up a vector of bytes,
see `ByteTable`. Where there are none, and for fewer bytes than a vector has, bytes are read one by
one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.emit.emitter import Emitter, wide
from edgec.compiler.kernels.emit.epilogue import EpilogueStep
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.isa import ByteTable, isa_of
from edgec.compiler.kernels.template import undecided
from edgec.compiler.numerics.activations import ACTIVATIONS
from edgec.targets.target import Target

# Bytes of one task.
TASK_BYTES = 4096
_PART = 16
# Vectors in a turn of the loop.
_TOGETHER = 4

Values = NDArray[np.float64]


@dataclass(frozen=True)
class TableLookupWorkload:
    """A table lookup workload describes a table applied to bytes.

    Attributes:
        size: number of them.
    """

    size: int

    @property
    def macs(self) -> int:
        """Return bytes looked up."""
        return self.size


def _table(workload: TableLookupWorkload, target: Target) -> ByteTable | None:
    """Return how vectors are looked up; None where bytes are read one by one."""
    table = isa_of(target).byte_table()
    return table if table is not None and table.width <= workload.size else None


def pack_table(
    workload: TableLookupWorkload, target: Target, table: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Return the table as the kernel reads it."""
    found = _table(workload, target)
    return found.pack(table) if found else table


def emit_table_lookup(workload: TableLookupWorkload, target: Target, name: str) -> Kernel:
    """Write the kernel; its buffers are the bytes, the packed table, and output."""
    e, size, found = Emitter(target), workload.size, _table(workload, target)
    data = e.buffer("data", size, "uint8")
    spread = found.spread if found else _PART
    table = e.buffer("table", 256 // _PART * spread, "uint8")
    output = e.buffer("output", size, "uint8")
    tasks = math.ceil(size / TASK_BYTES)
    with e.tasks() as task:
        start = e.let("start", task * TASK_BYTES)
        count = e.let("count", tirx.min(tirx.IntImm("int32", TASK_BYTES), size - start))
        if found is None:
            with e.loop("single", count) as single:
                code = tirx.Cast("int32", e.load(data, start + single))
                e.store(output, start + single, e.load(table, code))
        else:
            width = found.width
            parts = [e.load(table, spread * part, spread) for part in range(256 // _PART)]
            if found.in_registers:
                parts = [e.let("part", part) for part in parts]

            def look(at: Any) -> None:
                quantized = e.let("codes", e.load(data, at, width))
                e.store(output, at, found.look(e.let, quantized, parts))

            # Instructions of a loop are a third of those for a vector whose table is in registers.
            together = _TOGETHER * width if found.in_registers else 0
            done: Any = 0
            if together:
                turns = e.let("turns", tirx.floordiv(count, together))
                with e.loop("vectors", turns, wide=True) as turn:
                    for number in range(_TOGETHER):
                        look(wide(start) + turn * together + number * width)
                done = e.let("done", turns * together)
            left = tirx.floordiv(count - done + (width - 1), width)
            with e.loop("vector", left) as vector:
                # The last vector overlaps the one before it.
                last = tirx.IntImm("int32", size - width)
                look(e.let("at", tirx.min(start + done + vector * width, last)))
    return Kernel(e.function(name), tasks)


# What arithmetic with a constant number computes, see `epilogue.UNARY`.
_WITH_NUMBER: dict[str, Callable[..., Values]] = {
    "add_number": lambda x, number: x + number,
    "divide_by_number": lambda x, number: number / x,
    "divide_number": lambda x, number: x / number,
    "maximum_number": np.maximum,
    "minimum_number": np.minimum,
    "multiply_number": lambda x, number: x * number,
    "subtract_from_number": lambda x, number: number - x,
}


def evaluate(step: EpilogueStep, x: Values) -> Values:
    """Return what a step without an operand computes."""
    if step.op in _WITH_NUMBER:
        return _WITH_NUMBER[step.op](x, *step.parameters)
    return ACTIVATIONS[step.op].function(x, *step.parameters)[0]


def table_of(
    dtype: str,
    scale: Any,
    zero_point: int,
    steps: Sequence[EpilogueStep],
    quantizer: NDArray[np.float32],
) -> NDArray[np.uint8]:
    """Return the bytes of the quantized values of a function of quantized values.

    Args:
        dtype: uint8 or int8, of what is read and what is given.
        scale: the scale of the quantized values read.
        zero_point: the zero point of the quantized values read.
        steps: the function, none of them with an operand.
        quantizer: the operand of the step that makes quantized values of floats.
    """
    quantized = np.arange(256).astype(np.uint8).view(dtype).astype(np.float64)
    values = (quantized - zero_point) * float(scale)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        for step in steps:
            values = evaluate(step, values)
    inverse, shift, low, high = quantizer
    whole = np.rint(np.clip(values.astype(np.float32) * inverse, low, high)) + shift
    return np.nan_to_num(whole).astype(dtype).view(np.uint8)


TEMPLATE = undecided(
    TableLookupWorkload,
    emit_table_lookup,
    pack=lambda w, _d, t, position, array: pack_table(w, t, array) if position == 1 else array,
)
