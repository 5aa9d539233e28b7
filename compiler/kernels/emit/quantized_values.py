"""Provide quantized values in kernels: reading them as floats, and writing them.

A quantized value x stands for `(x - zero_point) * scale`. How quantized values are multiplied is up
to the instruction set, see `kernels.isa`; every sum is exact. What follows the accumulation is
float32 arithmetic whose order and rounding are fixed here, or arithmetic in 16 bits, see
`requantize`, so that every target gives the same quantized values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from edgec.compiler.kernels.emit.emitter import Emitter, Index
from edgec.compiler.kernels.isa import Isa
from edgec.compiler.kernels.vectors import broadcast, lanes_of, vector_dtype
from edgec.compiler.numerics.pair_sums import DOT_WIDTH


@dataclass(frozen=True)
class Quantizer:
    """A quantizer describes how floats are quantized.

    Attributes:
        numbers: reciprocal of the scale, zero point (a whole float32), smallest and largest
            quantized value less the zero point; scalars or vectors.
        isa: how vectors of them are narrowed.
    """

    numbers: Sequence[Any]
    isa: Isa


def load_as_float(e: Emitter, buffer: Any, at: Index, lanes: int, zero_point: int = 0) -> Any:
    """Load values as float32, quantized ones without their scale; exact."""
    value = e.load(buffer, at, lanes)
    if str(buffer.ty.dtype.dtype) == "float32":
        return value
    floats = tirx.Cast(vector_dtype("float32", lanes), value)
    if zero_point == 0:
        return floats
    return floats - broadcast(tirx.const(float(zero_point), "float32"), lanes)


# Weights of one value to a code: dtype in which a kernel reads them.
LOAD_DTYPES = {"int8": "int8", "float16": "uint16", "bfloat16": "uint16", "float32": "float32"}


def weight_to_float(quantized: Any, kind: str, halves: bool) -> Any:
    """Return packed weights as float32, without their scale; exact.

    Args:
        quantized: vector or scalar, of the dtype of `LOAD_DTYPES`; halves of floats are finite.
        kind: key of `LOAD_DTYPES`.
        halves: whether float16 can be converted as such. Else: the exponent of a float16 lies
            13 bits lower and its bias is 112 less.
    """
    lanes = int(quantized.ty.dtype.lanes)
    floats, words = vector_dtype("float32", lanes), vector_dtype("int32", lanes)

    def number(value: int) -> Any:
        return broadcast(tirx.const(value, "int32"), lanes)

    if kind == "float32":
        return quantized
    if kind == "int8":
        return tirx.Cast(floats, quantized)
    if kind == "bfloat16":
        return tirx.reinterpret(floats, tirx.Cast(words, quantized) << number(16))
    if halves:
        return tirx.Cast(floats, tirx.reinterpret(vector_dtype("float16", lanes), quantized))
    bits = tirx.Cast(words, quantized)
    size = tirx.reinterpret(floats, (bits & number(0x7FFF)) << number(13))
    scaled = size * broadcast(tirx.const(2.0**112, "float32"), lanes)
    sign = (bits & number(0x8000)) << number(16)
    return tirx.reinterpret(floats, tirx.reinterpret(words, scaled) | sign)


def to_float16(value: Any) -> Any:
    """Return the bits of float32 as float16, where the target converts them; ties to even."""
    lanes = lanes_of(value)
    return tirx.reinterpret(
        vector_dtype("uint16", lanes), tirx.Cast(vector_dtype("float16", lanes), value)
    )


def quantize_floats(value: Any, quantizer: Quantizer, dtype: str, *open_ends: float) -> Any:
    """Quantize floats to int32, ties to even; `store_values` narrows them.

    Args:
        value: vector or scalar.
        quantizer: the quantizer of the quantized values.
        dtype: the dtype of the quantized values.
        open_ends: whether the low end is the smallest quantized value of all, and whether the high
            end is the largest and no product reaches 2**31; then narrowing may do what clipping
            does.
    """
    inverse, zero_point, low, high = quantizer.numbers
    lanes = lanes_of(value)
    saturates = bool(open_ends) and quantizer.isa.saturates(dtype, lanes)
    below, above = open_ends if saturates else (0, 0)
    wide = vector_dtype("int32", lanes)
    inside = value * inverse
    # What is far below becomes the smallest int32.
    inside = inside if below else quantizer.isa.at_least(inside, low)
    inside = inside if above else quantizer.isa.at_most(inside, high)
    return quantizer.isa.round_to_int32(inside) + tirx.Cast(wide, zero_point)


def store_values(e: Emitter, buffer: Any, at: Index, values: Sequence[Any]) -> None:
    """Store consecutive vectors (or one scalar) of floats, or of int32 to narrow."""
    dtype, lanes = str(buffer.ty.dtype.dtype), int(values[0].ty.dtype.lanes)
    if dtype == "float32" or lanes == 1:
        for number, value in enumerate(values):
            narrow = value if dtype == "float32" else tirx.Cast(dtype, value)
            e.store(buffer, at + number * lanes, narrow)
        return
    quantized = [e.let("code", value) for value in values]
    done = 0
    while done < len(quantized):
        # Four, two or one at once.
        count = min(DOT_WIDTH, 1 << (len(quantized) - done).bit_length() - 1)
        narrow = e.isa.narrow(quantized[done : done + count], dtype)
        e.store(buffer, at + done * lanes, narrow)
        done += count
