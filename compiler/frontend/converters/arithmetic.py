"""Provide arithmetic whose corner cases Relax and C leave open.

Signs, zero, overflow, mixed dtypes.
"""

from typing import Any

import numpy as np
from tvm import relax, tirx
from tvm.script.ir_builder import tirx as script

from edgec.compiler.frontend.node import (
    FLOATS,
    Node,
    Refusal,
    constant_value,
    dtype_of,
    scalar,
    static_shape,
)
from edgec.compiler.frontend.te_operators import emit_compute, emit_procedure
from edgec.compiler.ir.signature import TensorSpec


def convert_div(node: Node) -> relax.Expr:
    """Convert Div: of integers truncated towards zero.

    Integer division by zero, for which ONNX defines no value, gives 0 and does not trap.
    """
    left, right = node.input(0), node.input(1)
    if dtype_of(left) in FLOATS:
        return relax.op.divide(left, right)
    return _integer_division(node, tirx.truncdiv, lambda x: -x)


def convert_mod(node: Node) -> relax.Expr:
    """Convert Mod: `fmod=1` takes the sign of the dividend.

    As C does, `fmod=0` that of the divisor.
    """
    left, right = node.input(0), node.input(1)
    dtype, fmod = dtype_of(left), bool(node.attributes.get("fmod", 0))
    if dtype not in FLOATS:
        return _integer_division(
            node, tirx.truncmod if fmod else tirx.floormod, lambda x: tirx.const(0, str(x.dtype))
        )
    wide = "float64" if dtype == "float64" else "float32"
    shape = np.broadcast_shapes(static_shape(left), static_shape(right))

    def element(a: Any, b: Any, at: list[Any]) -> Any:
        x, y = (tirx.Cast(wide, t[_place(t, at)]) for t in (a, b))
        rest = tirx.Mod(x, y)
        if fmod:
            return tirx.Cast(dtype, rest)
        # Python's: a remainder of the other sign moves by one divisor, a zero has its sign.
        zero = tirx.const(0, wide)
        opposite = tirx.Select(y < zero, rest > zero, rest < zero)
        moved = tirx.Select(opposite, rest + y, rest)
        signed = tirx.Select(rest.equal(zero), tirx.copysign(zero, y), moved)
        return tirx.Cast(dtype, tirx.Select(tirx.isnan(rest), rest, signed))

    return emit_compute(node, [left, right], shape, element)


def _integer_division(node: Node, divide: Any, negative_one: Any) -> relax.Expr:
    """Broadcast integer division that cannot trap: not by zero, nor of the least number by -1."""
    left, right = node.input(0), node.input(1)
    dtype = dtype_of(left)
    signed = not dtype.startswith("u")
    known = constant_value(right)
    safe = known is not None and not np.any(known == 0) and not (signed and np.any(known == -1))
    shape = np.broadcast_shapes(static_shape(left), static_shape(right))

    def element(a: Any, b: Any, at: list[Any]) -> Any:
        x, y = a[_place(a, at)], b[_place(b, at)]
        if safe:
            return divide(x, y)
        zero, one = tirx.const(0, dtype), tirx.const(1, dtype)
        minus = y.equal(tirx.const(-1, dtype)) if signed else tirx.const(False, "bool")
        usable = tirx.Select(tirx.any(y.equal(zero), minus), one, y)
        result = tirx.Select(y.equal(zero), zero, divide(x, usable))
        return tirx.Select(minus, negative_one(x), result) if signed else result

    return emit_compute(node, [left, right], shape, element)


def convert_pow(node: Node) -> relax.Expr:
    """Convert Pow: the result has the dtype of the base, whatever that of the exponent.

    Integers to the power of integers are multiplied exactly, modulo the width; a negative
    exponent gives the truncated reciprocal. An integer to the power of a float is computed in
    float64 and truncated.
    """
    base, exponent = node.input(0), node.input(1)
    dtype, power_dtype = dtype_of(base), dtype_of(exponent)
    if dtype in FLOATS:
        known = constant_value(exponent)
        if dtype == power_dtype:
            return relax.op.power(base, exponent)
        if known is not None and np.array_equal(
            known.astype(dtype).astype(np.float64), known.astype(np.float64)
        ):
            return relax.op.power(base, relax.const(known.astype(dtype), dtype))
        return _power_in_double(node, base, exponent)
    if power_dtype in FLOATS:
        return _power_in_double(node, base, exponent)
    return _integer_power(node, base, exponent)


def _power_in_double(node: Node, base: relax.Expr, exponent: relax.Expr) -> relax.Expr:
    wide = [node.emit(relax.op.astype(value, "float64")) for value in (base, exponent)]
    return relax.op.astype(node.emit(relax.op.power(*wide)), dtype_of(base))


def _integer_power(node: Node, base: relax.Expr, exponent: relax.Expr) -> relax.Expr:
    """Return square and multiply."""
    dtype, power_dtype = dtype_of(base), dtype_of(exponent)
    shape = np.broadcast_shapes(static_shape(base), static_shape(exponent))
    count = int(np.prod(shape))
    flat = [
        node.emit(relax.op.reshape(node.emit(relax.op.broadcast_to(value, shape)), (count,)))
        for value in (base, exponent)
    ]
    # A local variable is an output of one element per result.
    scratch = [TensorSpec("", (count,), dtype), TensorSpec("", (count,), power_dtype)]
    outputs = [TensorSpec("", (count,), dtype), *scratch]
    bits = np.iinfo(power_dtype).bits
    one, zero = tirx.const(1, dtype), tirx.const(0, dtype)

    def body(x: Any, y: Any, result: Any, square: Any, left: Any) -> None:
        with script.serial(0, count) as i:
            script.buffer_store(result, one, [i])
            script.buffer_store(square, x[i], [i])
            script.buffer_store(left, y[i], [i])
            with script.serial(0, bits):
                odd = tirx.NE(
                    tirx.truncmod(left[i], tirx.const(2, power_dtype)), tirx.const(0, power_dtype)
                )
                factor = tirx.Select(odd, square[i], one)
                script.buffer_store(result, result[i] * factor, [i])
                script.buffer_store(square, square[i] * square[i], [i])
                script.buffer_store(left, tirx.truncdiv(left[i], tirx.const(2, power_dtype)), [i])
            if not power_dtype.startswith("u"):
                # 1 and -1 are their own reciprocals, all others become 0.
                unit = x[i] * x[i]
                negative = y[i] < tirx.const(0, power_dtype)
                reciprocal = tirx.Select(unit.equal(one), result[i], zero)
                script.buffer_store(result, tirx.Select(negative, reciprocal, result[i]), [i])

    return relax.op.reshape(emit_procedure(node, flat, outputs, body)[0], shape)


def convert_bit_shift(node: Node) -> relax.Expr:
    """Convert BitShift: arithmetic to the right.

    A count that is negative or too large shifts all out.
    """
    left, right = node.input(0), node.input(1)
    dtype, to_left = dtype_of(left), node.attributes["direction"] == "LEFT"
    bits, signed = np.iinfo(dtype).bits, not dtype.startswith("u")
    shape = np.broadcast_shapes(static_shape(left), static_shape(right))

    def element(a: Any, b: Any, at: list[Any]) -> Any:
        x, count = a[_place(a, at)], b[_place(b, at)]
        zero, last = tirx.const(0, dtype), tirx.const(bits - 1, dtype)
        out = tirx.any(count < zero, count > last) if signed else count > last
        shifted = tirx.Select(out, last if signed and not to_left else zero, count)
        if not to_left:
            result = x >> shifted
            return result if signed else tirx.Select(out, zero, result)
        return tirx.Select(out, zero, x << shifted)

    return emit_compute(node, [left, right], shape, element)


def convert_is_inf(node: Node) -> relax.Expr:
    """Convert IsInf: of either sign, or of the signs that the attributes leave."""
    data = node.input(0)
    dtype = dtype_of(data)
    positive = node.attributes.get("detect_positive", 1)
    negative = node.attributes.get("detect_negative", 1)
    if dtype not in FLOATS:
        raise Refusal(f"dtype {dtype} is not supported")
    if not positive and not negative:
        return relax.op.zeros(static_shape(data), "bool")
    if not positive:
        return relax.op.equal(data, scalar(-np.inf, dtype))
    if not negative:
        return relax.op.equal(data, scalar(np.inf, dtype))
    return relax.op.equal(node.emit(relax.op.abs(data)), scalar(np.inf, dtype))


def _place(tensor: Any, at: list[Any]) -> tuple[Any, ...]:
    """Return the index into a tensor that is broadcast to the rank of `at`."""
    skipped = len(at) - len(tensor.shape)
    return tuple(
        tirx.const(0, "int64") if int(extent) == 1 else index
        for extent, index in zip(tensor.shape, at[skipped:], strict=True)
    )
