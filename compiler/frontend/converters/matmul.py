"""Provide matrix products."""

from tvm import relax

from edgec.compiler.frontend.node import FLOATS, Node, accumulator_dtype, dtype_of


def convert_matmul(node: Node) -> relax.Expr:
    """Convert MatMul: [..., M, K] times [..., K, N], broadcast as in NumPy.

    Sums of 16-bit floats are kept in float32, as ONNX Runtime does.
    """
    left, right = node.input(0), node.input(1)
    dtype = dtype_of(left)
    accumulator = accumulator_dtype(dtype) if dtype in FLOATS else dtype
    if accumulator == dtype:
        return relax.op.matmul(left, right)
    wide = (node.cast(operand, accumulator) for operand in (left, right))
    return relax.op.astype(node.call(relax.op.matmul, *wide), dtype)
