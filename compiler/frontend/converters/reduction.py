"""Provide reductions over axes."""

import math
from typing import Any

import numpy as np
from tvm import relax

from edgec.compiler.frontend.converters.shapes import static_axes
from edgec.compiler.frontend.node import (
    FLOATS,
    Node,
    Refusal,
    dtype_of,
    extents_of,
    known_extent,
    scalar,
)
from edgec.compiler.frontend.te_operators import constant_tensor

# What a reduction of nothing gives.
_OF_NOTHING: dict[str, float] = {
    "ReduceL1": 0,
    "ReduceL2": 0,
    "ReduceLogSum": -math.inf,
    "ReduceLogSumExp": -math.inf,
    "ReduceMax": -math.inf,
    "ReduceMean": math.nan,
    "ReduceMin": math.inf,
    "ReduceProd": 1,
    "ReduceSum": 0,
    "ReduceSumSquare": 0,
}


def convert_reduce(node: Node) -> relax.Expr:
    """Return any reduction: over the given axes, over all, or over none if the node says so."""
    data = node.input(0)
    shape = extents_of(data)
    axes = static_axes(node, 1, len(shape), since=13 if node.op_type == "ReduceSum" else 18)
    if not axes:
        axes = [] if node.attributes.get("noop_with_empty_axes", 0) else list(range(len(shape)))
    keep = bool(node.attributes.get("keepdims", 1))
    if 0 in (known_extent(shape[axis]) for axis in axes):
        return _of_nothing(node, [e for e in _kept(shape, axes, keep) if e is not None])
    return _reduce(node, data, axes, keep)


def _kept(shape: tuple[int, ...], axes: list[int], keep: bool) -> list[int | None]:
    return [(1 if keep else None) if axis in axes else extent for axis, extent in enumerate(shape)]


def _of_nothing(node: Node, shape: list[int]) -> relax.Expr:
    dtype, value = dtype_of(node.input(0)), _OF_NOTHING[node.op_type]
    if dtype not in FLOATS and not math.isfinite(value):
        if node.op_type not in ("ReduceMax", "ReduceMin"):
            raise Refusal(f"of nothing it has no value in {dtype}")
        if dtype == "bool":
            value = value > 0
        else:
            limits = np.iinfo(dtype)
            value = limits.max if value > 0 else limits.min
    return constant_tensor(np.full(shape, value).astype(dtype))


def _reduce(node: Node, data: relax.Expr, axes: list[int], keep: bool) -> relax.Expr:
    dtype = dtype_of(data)

    def apply(operator: Any, x: relax.Expr, keepdims: bool = keep) -> relax.Expr:
        return node.emit(operator(x, axes, keepdims)) if axes else x

    def convert(x: relax.Expr, to: str) -> relax.Expr:
        return x if dtype_of(x) == to else node.emit(relax.op.astype(x, to))

    match node.op_type:
        case "ReduceSum":
            return apply(relax.op.sum, data)
        case "ReduceProd":
            return apply(relax.op.prod, data)
        case "ReduceMax" | "ReduceMin":
            operator = relax.op.max if node.op_type == "ReduceMax" else relax.op.min
            if dtype == "bool":
                return convert(apply(operator, convert(data, "uint8")), "bool")
            return apply(operator, data)
        case "ReduceMean":
            if dtype in FLOATS:
                return apply(relax.op.mean, data)
            # Integers: the sum cannot overflow on the way, the quotient is truncated.
            return convert(apply(relax.op.mean, convert(data, "float64")), dtype)
        case "ReduceL1":
            return apply(relax.op.sum, node.emit(relax.op.abs(data)))
        case "ReduceSumSquare":
            return apply(relax.op.sum, node.emit(relax.op.multiply(data, data)))
    # With roots and logarithms; of integers truncated at the end.
    data = data if dtype in FLOATS else convert(data, "float64")
    match node.op_type:
        case "ReduceL2":
            total = apply(relax.op.sum, node.emit(relax.op.multiply(data, data)))
            result = node.emit(relax.op.sqrt(total))
        case "ReduceLogSum":
            result = node.emit(relax.op.log(apply(relax.op.sum, data)))
        case _:
            result = _log_sum_exp(node, data, axes, keep)
    return convert(result, dtype)


def _log_sum_exp(node: Node, data: relax.Expr, axes: list[int], keep: bool) -> relax.Expr:
    """Return log(sum(exp(x))) as m + log(sum(exp(x - m))) with m = max(x).

    Which cannot overflow.
    """
    if not axes:
        return data
    dtype = dtype_of(data)
    greatest = node.emit(relax.op.max(data, axes, True))
    size = node.emit(relax.op.abs(greatest))
    finite = node.emit(relax.op.less(size, scalar(np.inf, dtype)))
    moved = node.emit(relax.op.where(finite, greatest, scalar(0, dtype)))
    powers = node.emit(relax.op.exp(node.emit(relax.op.subtract(data, moved))))
    total = node.emit(relax.op.log(node.emit(relax.op.sum(powers, axes, True))))
    result = node.emit(relax.op.add(total, moved))
    return result if keep else node.emit(relax.op.squeeze(result, axes))
