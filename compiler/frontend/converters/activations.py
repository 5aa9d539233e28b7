"""Provide activation functions that Relax lacks or that TVM's importer knows in float32 only."""

from tvm import relax

from edgec.compiler.frontend.node import Node, dtype_of, scalar

# exp(2 * 20) exceeds 2 / machine epsilon of float64.
_MISH_SATURATION = 20.0


def convert_elu(node: Node) -> relax.Expr:
    """Convert Elu: max(0, x) + alpha * (exp(min(0, x)) - 1)."""
    data = node.input(0)
    dtype, alpha = dtype_of(data), node.attributes.get("alpha", 1.0)
    zero = scalar(0, dtype)
    power = node.emit(relax.op.exp(node.emit(relax.op.minimum(data, zero))))
    below = node.emit(relax.op.subtract(power, scalar(1, dtype)))
    if alpha != 1:
        below = node.emit(relax.op.multiply(below, scalar(alpha, dtype)))
    return relax.op.add(node.emit(relax.op.maximum(data, zero)), below)


def convert_celu(node: Node) -> relax.Expr:
    """Convert Celu: max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""
    data = node.input(0)
    dtype, alpha = dtype_of(data), node.attributes.get("alpha", 1.0)
    zero = scalar(0, dtype)
    quotient = node.call(relax.op.divide, data, scalar(alpha, dtype))
    power = node.call(relax.op.exp, node.call(relax.op.minimum, quotient, zero))
    below = node.call(relax.op.subtract, power, scalar(1, dtype))
    below = node.call(relax.op.multiply, below, scalar(alpha, dtype))
    return relax.op.add(node.call(relax.op.maximum, data, zero), below)


def convert_selu(node: Node) -> relax.Expr:
    """Convert Selu: gamma * x above zero, gamma * alpha * (exp(x) - 1) below."""
    data = node.input(0)
    dtype = dtype_of(data)
    # The float32 numbers that the specification defines.
    alpha = node.attributes.get("alpha", 1.67326319217681884765625)
    gamma = node.attributes.get("gamma", 1.05070102214813232421875)
    zero = scalar(0, dtype)
    power = node.call(relax.op.exp, node.call(relax.op.minimum, data, zero))
    below = node.call(relax.op.subtract, power, scalar(1, dtype))
    below = node.call(relax.op.multiply, below, scalar(alpha, dtype))
    unscaled = node.call(relax.op.add, node.call(relax.op.maximum, data, zero), below)
    return relax.op.multiply(unscaled, scalar(gamma, dtype))


def convert_thresholded_relu(node: Node) -> relax.Expr:
    """Convert ThresholdedRelu: x above alpha, else 0."""
    data = node.input(0)
    dtype = dtype_of(data)
    alpha = scalar(node.attributes.get("alpha", 1.0), dtype)
    return relax.op.where(node.call(relax.op.greater, data, alpha), data, scalar(0, dtype))


def convert_mish(node: Node) -> relax.Expr:
    """Convert Mish: x * tanh(log(1 + exp(x))).

    As x * w / (w + 2) with w = e * (e + 2) and e = exp(x), which follows from
    tanh(log(a)) = (a^2 - 1) / (a^2 + 1) with a = 1 + e and cancels nothing.
    """
    data = node.input(0)
    dtype = dtype_of(data)
    wide = "float64" if dtype == "float64" else "float32"
    x = data if dtype == wide else node.emit(relax.op.astype(data, wide))
    low = node.emit(relax.op.minimum(x, scalar(_MISH_SATURATION, wide)))
    e = node.emit(relax.op.exp(low))
    w = node.emit(relax.op.multiply(e, node.emit(relax.op.add(e, scalar(2, wide)))))
    share = node.emit(relax.op.divide(w, node.emit(relax.op.add(w, scalar(2, wide)))))
    result = relax.op.multiply(x, share)
    return result if dtype == wide else relax.op.astype(node.emit(result), dtype)
