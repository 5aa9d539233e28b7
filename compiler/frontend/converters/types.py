"""Provide conversions between element types: Cast, CastLike, BitCast.

Storage types (see `edgec.compiler.ir.storage`) are decoded by a table and encoded by integer
arithmetic on the bits of a float32, to nearest, ties to even.
"""

from typing import Any

import numpy as np
from tvm import relax, te, tirx

from edgec.compiler.frontend.node import Node, Refusal, dtype_of, scalar
from edgec.compiler.ir.signature import dtype_name
from edgec.compiler.ir.storage import (
    E8M0,
    FLOATS,
    INTEGER_BITS,
    STORAGE,
    FloatFormat,
    decode_table,
    held_as,
)

_FLOAT_BITS = {"bfloat16": 16, "float16": 16, "float32": 32, "float64": 64}


def convert_cast(node: Node) -> relax.Expr:
    """Convert Cast: to the type of attribute `to`."""
    return _cast(node, dtype_name(node.attributes["to"]))


def convert_cast_like(node: Node) -> relax.Expr:
    """Convert CastLike: to the type of the second input."""
    return _cast(node, node.dtype(1))


def _cast(node: Node, target: str) -> relax.Expr:
    attributes = node.attributes
    return cast(
        node,
        node.input(0),
        node.dtype(0),
        target,
        saturate=bool(attributes.get("saturate", 1)),
        round_mode=attributes.get("round_mode", "up"),
    )


def convert_bit_cast(node: Node) -> relax.Expr:
    """Convert BitCast: the same bits as another type of the same width."""
    source, target = node.dtype(0), dtype_name(node.attributes["to"])
    if _bits(source) != _bits(target):
        raise Refusal(f"{source} and {target} differ in width")
    held = node.input(0)
    if "bool" in (source, target):
        return relax.op.astype(held, held_as(target))
    return reinterpret(node, held, held_as(target))


def _bits(dtype: str) -> int:
    if dtype in INTEGER_BITS:
        return INTEGER_BITS[dtype]
    if dtype in FLOATS:
        return FLOATS[dtype].sign.bit_length()
    return np.dtype(dtype).itemsize * 8


def reinterpret(node: Node, data: relax.Expr, dtype: str) -> relax.Expr:
    """Return the same bits as another dtype of the same width."""
    if dtype_of(data) == dtype:
        return data

    def compute(x: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *index: tirx.reinterpret(dtype, x(*index)))

    return node.builder.call_te(compute, data, primfunc_name_hint="reinterpret")


def cast(
    node: Node,
    data: relax.Expr,
    source: str,
    target: str,
    *,
    saturate: bool = True,
    round_mode: str = "up",
) -> relax.Expr:
    """Return values of one ONNX type as another, as Cast defines it.

    Args:
        node: whose builder to use.
        data: values of `held_as(source)`.
        source: ONNX dtype of the data.
        target: ONNX dtype of the result.
        saturate: a value too large for an 8-bit float becomes the largest.
        round_mode: for float8e8m0, `up`, `down` or `nearest`.

    Returns:
        An expression of `held_as(target)`.
    """
    if source == target:
        return data
    if source in STORAGE and target not in STORAGE and target != "bool":
        return decode(node, data, source, target)
    if source in STORAGE:
        data, source = node.emit(decode(node, data, source, "float32")), "float32"
    if target in INTEGER_BITS:
        code = node.emit(_cast_plain(node, data, source, "int32"))
        mask = relax.const((1 << INTEGER_BITS[target]) - 1, "int32")
        return relax.op.astype(node.emit(relax.op.bitwise_and(code, mask)), "uint8")
    if target in STORAGE:
        return encode(node, data, target, saturate=saturate, round_mode=round_mode)
    return _cast_plain(node, data, source, target)


def _cast_plain(node: Node, data: relax.Expr, source: str, target: str) -> relax.Expr:
    """Cast between types that are computed with."""
    if source == target:
        return data
    if target == "bool":
        return relax.op.not_equal(data, scalar(0, source))
    if target == "bfloat16" and source in _FLOAT_BITS:
        # TVM rounds bits, which can turn a NaN into an infinity.
        rounded = node.emit(relax.op.astype(data, target))
        missing = node.emit(relax.op.isnan(data))
        return relax.op.where(missing, scalar(np.nan, target), rounded)
    if source in _FLOAT_BITS and target in ("int8", "int16", "uint8", "uint16"):
        # What does not fit is undefined, but not to LLVM; NumPy and ONNX Runtime keep low bits.
        data = node.emit(relax.op.astype(data, "int32"))
    elif source in _FLOAT_BITS and target == "uint32":
        data = node.emit(relax.op.astype(data, "int64"))
    return relax.op.astype(data, target)


def decode(node: Node, encoded: relax.Expr, source: str, target: str) -> relax.Expr:
    """Return bit patterns of a storage type as values of a type that is computed with."""
    return look_up(node, encoded, decode_table(source, target))


def look_up(node: Node, bytes_: relax.Expr, table: Any) -> relax.Expr:
    """Return table[bytes]: a function of all values of uint8 or int8.

    The table in order of the bits.

    Args:
        node: whose builder to use.
        bytes_: the bytes of any shape.
        table: 256 values.
    """
    index = node.emit(relax.op.astype(bytes_, "int32"))
    if dtype_of(bytes_) == "int8":
        index = node.emit(relax.op.bitwise_and(index, relax.const(255, "int32")))
    return relax.op.take(relax.const(table), index, axis=0, mode="clip")


def encode(
    node: Node, values: relax.Expr, target: str, *, saturate: bool = True, round_mode: str = "up"
) -> relax.Expr:
    """Return values as bit patterns of a storage float; see `cast`."""
    # Wider types are rounded to float32 first, as ml_dtypes and ONNX Runtime do.
    values = node.emit(relax.op.astype(values, "float32"))
    if target == E8M0 and (not saturate or round_mode not in ("up", "down", "nearest")):
        raise Refusal(f"{E8M0} with saturate={int(saturate)} and {round_mode=} is not supported")

    def compute(x: te.Tensor) -> te.Tensor:
        def element(*index: Any) -> Any:
            bits = tirx.reinterpret("int32", x(*index))
            if target == E8M0:
                code = _encode_power(bits, round_mode)
            else:
                code = _encode_float(bits, FLOATS[target], saturate)
            return code.astype("uint8")

        return te.compute(x.shape, element)

    return node.builder.call_te(compute, values, primfunc_name_hint=f"encode_{target}")


def _encode_float(bits: Any, form: FloatFormat, saturate: bool) -> Any:
    """Return code of a float32 given by its bits, as int32.

    The value is `mantissa * 2**(exponent - 150)` with a mantissa below 2**24; the code's last
    mantissa bit stands for `2**(scale - 127 - mantissa_bits)`. Counting those units from the
    smallest exponent gives the code, subnormal or not, and a carry goes into the exponent.
    """
    magnitude = bits & 0x7FFFFFFF
    field = magnitude >> 23
    exponent = tirx.max(field, 1)
    mantissa = (magnitude & 0x7FFFFF) | tirx.Select(field > 0, 1 << 23, 0)
    smallest = 128 - form.bias
    scale = tirx.max(exponent, smallest)
    # Beyond 25 bits everything rounds to zero.
    shift = tirx.min(23 - form.mantissa_bits + scale - exponent, 25)
    half = (tirx.const(1, "int32") << (shift - 1)) - 1
    units = (mantissa + half + ((mantissa >> shift) & 1)) >> shift
    code = units + ((scale - smallest) << form.mantissa_bits)
    sign = tirx.Select(bits < 0, form.sign, 0)
    overflow = form.largest if saturate else form.overflow
    finite = tirx.Select(code > form.largest, overflow, code)
    if form.unsigned:
        signed = tirx.Select(tirx.any(finite == 0, finite == form.sign), finite, finite | sign)
        return tirx.Select(magnitude > 0x7F800000, form.nan, signed)
    return tirx.Select(magnitude > 0x7F800000, form.nan ^ sign, finite | sign)


def _encode_power(bits: Any, round_mode: str) -> Any:
    """Return code of a positive float32 in float8e8m0: its exponent, rounded and saturated."""
    exponent = (bits >> 23) & 0xFF
    fraction = bits & 0x7FFFFF
    threshold = {"up": 0, "down": 0x7FFFFF, "nearest": 0x3FFFFF}[round_mode]
    rounded = tirx.min(exponent + tirx.Select(fraction > threshold, 1, 0), 254)
    return tirx.Select(exponent == 255, tirx.Select(fraction > 0, 255, 254), rounded)
