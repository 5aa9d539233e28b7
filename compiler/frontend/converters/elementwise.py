"""Provide elementwise operators that TVM's importer spells in ways the passes cannot read."""

import math
from functools import reduce

import numpy as np
from tvm import relax

from edgec.compiler.frontend.node import (
    FLOATS,
    Node,
    Refusal,
    accumulator_dtype,
    constant_value,
    dtype_of,
    scalar,
    static_shape,
)


def convert_clip(node: Node) -> relax.Expr:
    """Convert Clip: bounds as attributes before opset 11, as inputs since; they may be computed.

    Computed as maximum then minimum, so that the upper bound wins where the bounds cross, as
    the specification has it.
    """
    data = node.input(0)
    dtype = dtype_of(data)
    if node.opset < 11:
        given = [node.attributes.get("min"), node.attributes.get("max")]
        bounds = [None if value is None else scalar(value, dtype) for value in given]
    else:
        bounds = [_bound(node, index, name) for index, name in ((1, "min"), (2, "max"))]
    lower, upper = bounds
    if lower is not None:
        data = node.emit(relax.op.maximum(data, lower))
    if upper is not None:
        data = relax.op.minimum(data, upper)
    return data


def _bound(node: Node, index: int, name: str) -> relax.Expr | None:
    """Return a bound as a scalar, None if it is left out."""
    value = node.optional(index)
    if value is None:
        return None
    known = constant_value(value)
    elements = math.prod(static_shape(value)) if known is None else known.size
    if elements != 1:
        raise Refusal(f"input {name!r} has {elements} values, one is expected")
    if known is not None:
        return relax.const(known.reshape(()), dtype_of(value))
    return node.call(relax.op.reshape, value, ()) if static_shape(value) else value


def convert_hard_sigmoid(node: Node) -> relax.Expr:
    """Convert HardSigmoid: min(1, max(0, alpha * x + beta))."""
    data = node.input(0)
    alpha = node.attributes.get("alpha", 0.2)
    beta = node.attributes.get("beta", 0.5)
    return _hard_sigmoid(node, data, alpha, beta)


def convert_hard_swish(node: Node) -> relax.Expr:
    """Convert HardSwish: x * min(1, max(0, x / 6 + 1 / 2))."""
    data = node.input(0)
    return relax.op.multiply(data, node.emit(_hard_sigmoid(node, data, 1 / 6, 0.5)))


def _hard_sigmoid(node: Node, data: relax.Expr, alpha: float, beta: float) -> relax.Expr:
    dtype = dtype_of(data)
    scaled = node.emit(relax.op.multiply(data, scalar(alpha, dtype)))
    shifted = node.emit(relax.op.add(scaled, scalar(beta, dtype)))
    floored = node.emit(relax.op.maximum(shifted, scalar(0, dtype)))
    return relax.op.minimum(floored, scalar(1, dtype))


def convert_sign(node: Node) -> relax.Expr:
    """Convert Sign: -1, 0 or 1; NaN stays NaN."""
    data = node.input(0)
    dtype = dtype_of(data)
    if dtype.startswith("u"):
        return relax.op.minimum(data, scalar(1, dtype))
    if dtype not in FLOATS:
        return relax.op.sign(data)
    missing = node.call(relax.op.isnan, node.cast(data, accumulator_dtype(dtype)))
    return relax.op.where(missing, data, node.call(relax.op.sign, data))


def convert_equal(node: Node) -> relax.Expr:
    """Convert Equal: truths are compared as numbers."""
    dtype = "uint8" if dtype_of(node.input(0)) == "bool" else dtype_of(node.input(0))
    return relax.op.equal(*(node.cast(node.input(index), dtype) for index in (0, 1)))


_VARIADIC = {
    "Max": relax.op.maximum,
    "Mean": relax.op.add,
    "Min": relax.op.minimum,
    "Sum": relax.op.add,
}


def convert_variadic(node: Node) -> relax.Expr:
    """Sum, Mean, Max and Min of any number of tensors, broadcast against each other."""
    combine = _VARIADIC[node.op_type]
    tensors = [node.input(index) for index in range(len(node.inputs))]
    if len(tensors) == 1:
        return tensors[0]
    total = reduce(lambda left, right: combine(node.emit(left), right), tensors[1:], tensors[0])
    if node.op_type != "Mean":
        return total
    return relax.op.divide(node.emit(total), scalar(len(tensors), dtype_of(tensors[0])))


def convert_identity(node: Node) -> list[relax.Expr]:
    """Return identity, and Dropout in inference: the input itself.

    And a mask that keeps everything.
    """
    data = node.input(0)
    if node.op_type != "Dropout":
        return [data]
    training = node.optional(2)
    if training is not None and bool(np.any(node.constant(2, "training_mode"))):
        raise Refusal("training mode is not supported")
    if len(node.proto.output) == 1:
        return [data]
    mask_dtype = "bool" if node.opset >= 10 else dtype_of(data)
    return [data, relax.op.ones_like(data, mask_dtype)]
