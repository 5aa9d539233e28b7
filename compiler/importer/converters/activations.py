"""Activation functions that Relax lacks."""

from tvm import relax

from edgec.compiler.importer.node import Node, dtype_of, scalar

# exp(2 * 20) exceeds 2 / machine epsilon of float64.
_MISH_SATURATION = 20.0


def convert_celu(node: Node) -> relax.Expr:
    """Celu: max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""
    data = node.input(0)
    dtype, alpha = dtype_of(data), node.attributes.get("alpha", 1.0)
    scaled = node.emit(relax.op.divide(data, scalar(alpha, dtype)))
    powered = node.emit(relax.op.subtract(node.emit(relax.op.exp(scaled)), scalar(1, dtype)))
    curve = node.emit(relax.op.multiply(powered, scalar(alpha, dtype)))
    below = node.emit(relax.op.minimum(curve, scalar(0, dtype)))
    return relax.op.add(node.emit(relax.op.maximum(data, scalar(0, dtype))), below)


def convert_mish(node: Node) -> relax.Expr:
    """Mish: x * tanh(log(1 + exp(x))).

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


def convert_swish(node: Node) -> relax.Expr:
    """Swish: x * sigmoid(alpha * x)."""
    data = node.input(0)
    dtype, alpha = dtype_of(data), node.attributes.get("alpha", 1.0)
    scaled = data if alpha == 1 else node.emit(relax.op.multiply(data, scalar(alpha, dtype)))
    return relax.op.multiply(data, node.emit(relax.op.sigmoid(scaled)))
