"""Provide inverse and Trilu, of `com.microsoft`."""

import math
from typing import Any

from tvm import relax, tirx
from tvm.script.ir_builder import tirx as script

from edgec.compiler.frontend.node import Node, Refusal, dtype_of, static_shape
from edgec.compiler.frontend.te_operators import emit_compute, emit_procedure
from edgec.compiler.ir.signature import TensorSpec


def convert_trilu(node: Node) -> relax.Expr:
    """Convert Trilu: the upper or lower triangle from the k-th diagonal on, zeros elsewhere."""
    data = node.input(0)
    shape, dtype = static_shape(data), dtype_of(data)
    shift = 0 if node.optional(1) is None else int(node.constant(1, "k").reshape(-1)[0])
    upper = bool(node.attributes.get("upper", 1))

    def element(x: Any, at: list[Any]) -> Any:
        distance = at[-1] - at[-2]
        kept = distance >= shift if upper else distance <= shift
        return tirx.Select(kept, x[tuple(at)], tirx.const(0, dtype))

    return emit_compute(node, [data], shape, element)


def convert_inverse(node: Node) -> relax.Expr:
    """Return inverse of matrices [..., n, n].

    By Gauss-Jordan elimination with the greatest pivot.
    """
    data = node.input(0)
    shape, dtype = static_shape(data), dtype_of(data)
    n, count = shape[-1], math.prod(shape[:-2])
    if dtype not in ("float32", "float64"):
        raise Refusal(f"dtype {dtype} is not supported")
    one, zero = tirx.const(1, dtype), tirx.const(0, dtype)

    def body(x: Any, y: Any, work: Any, factor: Any, pivot: Any) -> None:
        with script.serial(0, count) as m:
            with script.serial(0, n) as i, script.serial(0, n) as j:
                script.buffer_store(work, x[m, i, j], [i, j])
                script.buffer_store(y, tirx.Select(i.equal(j), one, zero), [m, i, j])
            with script.serial(0, n) as step:
                script.buffer_store(pivot, tirx.Cast("int32", step), [0])
                with script.serial(0, n) as i:
                    better = tirx.abs(work[i, step]) > tirx.abs(work[pivot[0], step])
                    with script.If(tirx.all(i > step, better)), script.Then():
                        script.buffer_store(pivot, tirx.Cast("int32", i), [0])
                for matrix, front in ((work, ()), (y, (m,))):
                    with script.serial(0, n) as j:
                        script.buffer_store(factor, matrix[(*front, pivot[0], j)], [0])
                        script.buffer_store(
                            matrix, matrix[(*front, step, j)], [*front, pivot[0], j]
                        )
                        script.buffer_store(matrix, factor[0], [*front, step, j])
                script.buffer_store(factor, work[step, step], [0])
                for matrix, front in ((work, ()), (y, (m,))):
                    with script.serial(0, n) as j:
                        value = matrix[(*front, step, j)] / factor[0]
                        script.buffer_store(matrix, value, [*front, step, j])
                with script.serial(0, n) as i, script.If(i != step), script.Then():
                    script.buffer_store(factor, work[i, step], [0])
                    for matrix, front in ((work, ()), (y, (m,))):
                        with script.serial(0, n) as j:
                            less = factor[0] * matrix[(*front, step, j)]
                            value = matrix[(*front, i, j)] - less
                            script.buffer_store(matrix, value, [*front, i, j])

    outputs = [
        TensorSpec("", (count, n, n), dtype),
        TensorSpec("", (n, n), dtype),
        TensorSpec("", (1,), dtype),
        TensorSpec("", (1,), "int32"),
    ]
    cut = node.emit(relax.op.reshape(data, (count, n, n)))
    return relax.op.reshape(emit_procedure(node, [cut], outputs, body)[0], shape)
