"""Provide positions of extreme values along an axis, and what is made of them."""

import math
from typing import Any

from tvm import relax, te, tirx
from tvm.script.ir_builder import tirx as script

from edgec.compiler.frontend.node import FLOATS, Node, dtype_of, static_shape
from edgec.compiler.frontend.te_operators import emit_compute, emit_procedure
from edgec.compiler.ir.signature import TensorSpec
from edgec.compiler.kernels.vectors import constant

# Columns that are compared together: LLVM splits them into vectors of the target.
LANES = 16


def convert_arg_reduce(node: Node) -> relax.Expr:
    """Convert ArgMax and ArgMin: the first position of the extreme value, or the last."""
    data = node.input(0)
    axis = node.attributes.get("axis", 0)
    place = arg_extreme(
        node,
        data,
        axis % len(static_shape(data)),
        largest=node.op_type == "ArgMax",
        last=bool(node.attributes.get("select_last_index", 0)),
    )
    keep = bool(node.attributes.get("keepdims", 1))
    return place if keep else node.call(relax.op.squeeze, place, [axis])


def arg_extreme(
    node: Node, data: relax.Expr, axis: int, largest: bool = True, last: bool = False
) -> relax.Expr:
    """Return the position of the largest or smallest value along an axis, which keeps extent 1.

    As in ONNX Runtime the first value stands until another one is beyond it: NaN as the first
    stays, NaN elsewhere is passed over.

    Args:
        node: whose builder emits it.
        data: numbers of a static shape.
        axis: from 0.
        largest: the largest, else the smallest.
        last: of several equal ones the last, else the first.
    """
    shape = static_shape(data)
    rows = math.prod(shape[:axis])
    alone = axis == len(shape) - 1 and shape[axis] >= 2 * LANES and rows
    if alone and dtype_of(data) == "float32":
        lines = node.emit(relax.op.reshape(data, (rows, shape[axis])))
        place = _extremes_of_rows(node, lines, largest, last)
        return node.emit(relax.op.reshape(place, (*shape[:axis], 1)))
    return _extremes(node, data, axis, largest, last)


def _extremes_of_rows(node: Node, rows: relax.Expr, largest: bool, last: bool) -> relax.Expr:
    """Return the positions of the extreme values of rows of float32, int64 [lines, 1].

    Every lane keeps the best of its columns and the vector that had it; then the best lane wins.
    """
    lines, columns = static_shape(rows)
    vectors = columns // LANES
    beyond = constant(-math.inf if largest else math.inf, "float32", LANES)

    def better(value: Any, best: Any) -> Any:
        if last:
            return value >= best if largest else value <= best
        return value > best if largest else value < best

    def body(x: Any, found: Any, best: Any, number: Any) -> None:
        lanes = tirx.Ramp(tirx.const(0, "int32"), tirx.const(1, "int32"), LANES)

        def at(buffer: Any, line: Any, first: Any) -> Any:
            return tirx.BufferLoad(buffer, [line, tirx.Ramp(first, tirx.const(1, "int32"), LANES)])

        with script.parallel(0, lines) as line:
            start = script.bind(at(x, line, tirx.const(0, "int32")))
            unknown = tirx.isnan(start)
            script.buffer_store(best, tirx.Select(unknown, beyond, start), [line, lanes])
            none, zero = (constant(value, "int32", LANES) for value in (-1, 0))
            script.buffer_store(number, tirx.Select(unknown, none, zero), [line, lanes])
            # NaN as the very first value stands.
            script.buffer_store(best, x[line, 0], [line, 0])
            script.buffer_store(number, tirx.const(0, "int32"), [line, 0])
            with script.serial(1, vectors) as vector:
                value = script.bind(at(x, line, vector * LANES))
                kept = script.bind(tirx.BufferLoad(best, [line, lanes]))
                taken = better(value, kept)
                had = tirx.BufferLoad(number, [line, lanes])
                counted = tirx.Broadcast(tirx.Cast("int32", vector), LANES)
                script.buffer_store(number, tirx.Select(taken, counted, had), [line, lanes])
                script.buffer_store(best, tirx.Select(taken, value, kept), [line, lanes])

            def keep(taken: Any, value: Any, where: Any) -> None:
                with script.If(taken), script.Then():
                    script.buffer_store(best, value, [line, 0])
                    script.buffer_store(found, tirx.Cast("int64", where), [line, 0])

            script.buffer_store(found, tirx.Cast("int64", number[line, 0] * LANES), [line, 0])
            with script.serial(1, LANES) as lane:
                other, where = best[line, lane], number[line, lane] * LANES + lane
                before = tirx.Cast("int64", where)
                first = before > found[line, 0] if last else before < found[line, 0]
                strictly = other > best[line, 0] if largest else other < best[line, 0]
                wins = tirx.any(strictly, tirx.all(other.equal(best[line, 0]), first))
                keep(tirx.all(number[line, lane] >= 0, wins), other, where)
            with script.serial(vectors * LANES, columns) as column:
                keep(better(x[line, column], best[line, 0]), x[line, column], column)

    outputs = [
        TensorSpec("", (lines, 1), "int64"),
        TensorSpec("", (lines, LANES), "float32"),
        TensorSpec("", (lines, LANES), "int32"),
    ]
    return emit_procedure(node, [rows], outputs, body, flops=lines * columns)[0]


def _extremes(node: Node, data: relax.Expr, axis: int, largest: bool, last: bool) -> relax.Var:
    """Return the same along any axis, in any dtype."""
    shape = static_shape(data)
    before, beyond = {
        (True, False): (tirx.LT, -math.inf),
        (True, True): (tirx.LE, -math.inf),
        (False, False): (tirx.GT, math.inf),
        (False, True): (tirx.GE, math.inf),
    }[largest, last]

    def combine(one: Any, other: Any) -> tuple[Any, Any]:
        taken = tirx.any(one[0] < 0, before(one[1], other[1]))
        return tirx.Select(taken, other[0], one[0]), tirx.Select(taken, other[1], one[1])

    def start(place: str, value: str) -> tuple[Any, Any]:
        floating = value in FLOATS
        return tirx.const(-1, place), tirx.const(beyond if floating else 0, value)

    reducer = te.comm_reducer(combine, start, name=node.op_type.lower())

    def build(tensor: Any) -> Any:
        k = te.reduce_axis((0, shape[axis]), name="k")

        def candidate(*at: Any) -> Any:
            element = tensor(*at[:axis], k, *at[axis + 1 :])
            return reducer((k.var.astype("int64"), element), axis=k)

        kept = [1 if number == axis else extent for number, extent in enumerate(shape)]
        places, _ = te.compute(kept, candidate, name="extreme")
        return te.compute(kept, lambda *at: places(*at), name="place")

    return node.builder.emit_te(build, data, primfunc_name_hint=node.op_type.lower())


def convert_hardmax(node: Node) -> relax.Expr:
    """Convert Hardmax: 1 at the first largest value along an axis, 0 elsewhere.

    Before opset 13 a row is all axes from `axis` on.
    """
    data = node.input(0)
    shape, dtype = static_shape(data), dtype_of(data)
    axis = node.attributes.get("axis", 1 if node.opset < 13 else -1) % max(1, len(shape))
    lines: tuple[int, ...] = shape
    if node.opset < 13:
        lines, axis = (math.prod(shape[:axis]), math.prod(shape[axis:])), 1
    rows = node.emit(relax.op.reshape(data, lines))
    place = arg_extreme(node, rows, axis)

    def element(found: Any, at: list[Any]) -> Any:
        here = found(*at[:axis], 0, *at[axis + 1 :]).equal(tirx.Cast("int64", at[axis]))
        return tirx.Select(here, tirx.const(1, dtype), tirx.const(0, dtype))

    return relax.op.reshape(emit_compute(node, [place], lines, element), shape)
