"""Matrix products."""

from tvm import relax

from edgec.compiler.importer.node import Node, dtype_of


def convert_matmul(node: Node) -> relax.Expr:
    """MatMul: [..., M, K] times [..., K, N], broadcast as in NumPy.

    Sums of 16-bit floats are kept in float32, as ONNX Runtime does.
    """
    left, right = node.input(0), node.input(1)
    dtype = dtype_of(left)
    if dtype not in ("float16", "bfloat16"):
        return relax.op.matmul(left, right)
    wide = (node.emit(relax.op.astype(operand, "float32")) for operand in (left, right))
    return relax.op.astype(node.emit(relax.op.matmul(*wide)), dtype)
