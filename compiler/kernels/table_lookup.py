"""A function of codes by a table of 256 codes, one for each byte.

16 bytes of a table fit in what one instruction picks from, so 16 such parts make a table:

    x86      pshufb picks by the low half of a byte and gives 0 where bit 7 is set. Part k holds
             the exclusive or of table parts k and k - 1; x - 16 k, saturated, is below 0 for all
             k above the high half of x, and the exclusive or of all parts that are picked from
             is the entry. Once for bytes below 128, once for x - 128.
    aarch64  tbl picks from 64 bytes and gives 0 beyond, tbx leaves what it is given.

Elsewhere, and for fewer bytes than a vector has, bytes are read one by one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.emit.emitter import Emitter, broadcast
from edgec.compiler.kernels.emit.epilogue import Step
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.template import undecided
from edgec.compiler.numerics.activations import ACTIVATIONS
from edgec.targets.target import Target

# Bytes of one task.
TASK_BYTES = 4096
_PART = 16

Values = NDArray[np.float64]


@dataclass(frozen=True)
class LookupWorkload:
    """A table applied to bytes.

    Attributes:
        size: number of them.
    """

    size: int

    @property
    def macs(self) -> int:
        """Bytes looked up."""
        return self.size


def _bytes_at_once(workload: LookupWorkload, target: Target) -> int:
    """1 where no instruction picks from a vector."""
    picks = {"x86_64": target.float_lanes in (8, 16), "aarch64": target.float_lanes == 4}
    width = 4 * target.float_lanes
    fits = picks.get(target.architecture, False) and width <= workload.size
    return width if fits else 1


def pack_table(
    workload: LookupWorkload, target: Target, table: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """The table as the kernel reads it."""
    width = _bytes_at_once(workload, target)
    if width == 1 or target.architecture == "aarch64":
        return table
    parts = table.reshape(2, -1, _PART).copy()
    parts[:, 1:] ^= table.reshape(2, -1, _PART)[:, :-1]
    return np.tile(parts.reshape(-1, _PART), width // _PART).reshape(-1)


def emit_lookup(workload: LookupWorkload, target: Target, name: str) -> Kernel:
    """Write the kernel; its buffers are the bytes, the packed table, and output."""
    e, size, width = Emitter(), workload.size, _bytes_at_once(workload, target)
    data = e.buffer("data", size, "uint8")
    spread = width if width > 1 and target.architecture == "x86_64" else _PART
    table = e.buffer("table", 256 // _PART * spread, "uint8")
    output = e.buffer("output", size, "uint8")
    tasks = math.ceil(size / TASK_BYTES)
    with e.tasks() as task:
        start = e.let("start", task * TASK_BYTES)
        count = e.let("count", tirx.min(tirx.IntImm("int32", TASK_BYTES), size - start))
        if width == 1:
            with e.loop("single", count) as single:
                code = tirx.Cast("int32", e.load(data, start + single))
                e.store(output, start + single, e.load(table, code))
        else:
            look = _look_x86 if target.architecture == "x86_64" else _look_neon
            parts = [e.load(table, spread * part, spread) for part in range(256 // _PART)]
            if target.architecture == "aarch64":
                parts = [e.let("part", part) for part in parts]
            with e.loop("vector", tirx.floordiv(count + (width - 1), width)) as vector:
                # The last vector overlaps the one before it.
                last = tirx.IntImm("int32", size - width)
                at = e.let("at", tirx.min(start + vector * width, last))
                e.store(output, at, look(e, e.let("codes", e.load(data, at, width)), parts))
    return Kernel(e.function(name), tasks)


def _look_x86(e: Emitter, codes: Any, parts: Sequence[Any]) -> Any:
    width = int(codes.ty.dtype.lanes)
    pick = "llvm.x86.avx512.pshuf.b.512" if width == 64 else "llvm.x86.avx2.pshuf.b"
    signed, half = f"int8x{width}", len(parts) // 2
    step = broadcast(tirx.const(_PART, "int8"), width)
    found: Any = None
    for first in (0, half):
        place = codes if first == 0 else codes ^ broadcast(tirx.const(128, "uint8"), width)
        place = tirx.reinterpret(signed, place)
        for number in range(half):
            if number:
                place = tirx.call_llvm_pure_intrin(signed, "llvm.ssub.sat", place, step)
            place = e.let("place", place)
            picked = tirx.call_llvm_pure_intrin(signed, pick, parts[first + number], place)
            found = picked if found is None else found ^ picked
            found = e.let("found", found)
    return tirx.reinterpret(f"uint8x{width}", found)


def _look_neon(_: Emitter, codes: Any, parts: Sequence[Any]) -> Any:
    kind, quarter = "uint8x16", 4 * _PART
    found = tirx.call_llvm_pure_intrin(kind, "llvm.aarch64.neon.tbl4", *parts[:4], codes)
    for number in range(1, 4):
        place = codes - broadcast(tirx.const(number * quarter, "uint8"), 16)
        four = parts[4 * number : 4 * number + 4]
        found = tirx.call_llvm_pure_intrin(kind, "llvm.aarch64.neon.tbx4", found, *four, place)
    return found


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


def evaluate(step: Step, x: Values) -> Values:
    """Return what a step without an operand computes."""
    if step.op in _WITH_NUMBER:
        return _WITH_NUMBER[step.op](x, *step.parameters)
    return ACTIVATIONS[step.op].function(x, *step.parameters)[0]


def table_of(
    dtype: str, scale: Any, zero_point: int, steps: Sequence[Step], quantizer: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """The bytes of the codes of a function of codes.

    Args:
        dtype: uint8 or int8, of what is read and what is given.
        scale: of the codes read.
        zero_point: of the codes read.
        steps: the function, none of them with an operand.
        quantizer: the operand of the step that makes codes of floats.
    """
    codes = np.arange(256).astype(np.uint8).view(dtype).astype(np.float64)
    values = (codes - zero_point) * float(scale)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        for step in steps:
            values = evaluate(step, values)
    inverse, shift, low, high = quantizer
    whole = np.rint(np.clip(values.astype(np.float32) * inverse, low, high)) + shift
    return np.nan_to_num(whole).astype(dtype).view(np.uint8)


TEMPLATE = undecided(
    LookupWorkload,
    emit_lookup,
    pack=lambda w, _d, t, position, array: pack_table(w, t, array) if position == 1 else array,
)
