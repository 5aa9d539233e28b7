"""Provide operators as computations written by hand, for what Relax does not express.

`emit_compute` gives each element of a result as an expression of its position; such operators
fuse and are scheduled like Relax's own. `emit_procedure` takes statements: loops that depend on
what they computed before. Both have static shapes, so the static executor runs them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as script

from edgec.compiler.frontend.node import Node, constant_value, dtype_of, static_shape
from edgec.compiler.ir.signature import TensorSpec

# TVM's number for a function that nothing is fused with.
_OPAQUE = 8

# TVM's name for what it should believe instead of counting.
_FLOPS = "estimated_flops"


def emit_compute(
    node: Node,
    inputs: Sequence[relax.Expr],
    shape: Sequence[Any],
    element: Callable[..., Any],
) -> relax.Var:
    """Emit a tensor given by an expression for each element.

    Args:
        node: whose builder emits it.
        inputs: tensors that the expression reads.
        shape: the shape of the result.
        element: called with the input tensors and then a list of indices.
    """

    def build(*tensors: Any) -> Any:
        return te.compute(
            tuple(shape), lambda *at: element(*tensors, list(at)), name=node.op_type.lower()
        )

    return node.builder.emit_te(build, *inputs, primfunc_name_hint=node.op_type.lower())


def emit_procedure(
    node: Node,
    inputs: Sequence[relax.Expr],
    outputs: Sequence[TensorSpec],
    body: Callable[..., None],
    flops: int | None = None,
) -> list[relax.Expr]:
    """Emit a loop nest.

    Args:
        node: whose builder emits it.
        inputs: tensors that the loops read.
        outputs: what they write; a scratch tensor is an output that nobody reads.
        body: writes the statements with TVM's script builder; called with a buffer for each
            input and then for each output.
        flops: floating-point operations; None counts those of the statements, which must not
            hold vectors then.

    Returns:
        One expression per output.
    """
    name = f"{node.op_type.lower()}_loops"

    def build(*tensors: Any) -> Any:
        # Without a layout, as fused functions declare them.
        sources = [
            tirx.decl_buffer(t.shape, str(t.dtype), f"in{i}", layout=None)
            for i, t in enumerate(tensors)
        ]
        targets = [
            tirx.decl_buffer(spec.shape, spec.dtype, f"out{i}", layout=None)
            for i, spec in enumerate(outputs)
        ]

        def generate(read: Sequence[Any], written: Sequence[Any]) -> Any:
            with IRBuilder() as builder:
                with script.seq_scope():
                    body(*read, *written)
                # Without the mark that the scope leaves, which the code generator warns of.
                return builder.get().body

        # The scheduler looks for a block of this name.
        return te.extern(
            [spec.shape for spec in outputs],
            list(tensors),
            generate,
            name="root",
            dtype=[spec.dtype for spec in outputs],
            in_buffers=sources,
            out_buffers=targets,
        )

    attributes = {"op_pattern": _OPAQUE}
    if flops is not None:
        attributes[_FLOPS] = flops
    result = node.builder.emit_te(
        build, *inputs, primfunc_name_hint=name, primfunc_attrs=attributes
    )
    if len(outputs) == 1:
        return [result]
    return [node.emit(relax.TupleGetItem(result, index)) for index in range(len(outputs))]


def tensor_like(expression: relax.Expr) -> TensorSpec:
    """Return shape and dtype of an expression, for an output of `emit_procedure`."""
    return TensorSpec("", static_shape(expression), dtype_of(expression))


def constant_tensor(array: NDArray[Any]) -> relax.Expr:
    """Return a constant of any rank and dtype."""
    return relax.const(np.ascontiguousarray(array).reshape(array.shape), str(array.dtype))


def take_table(node: Node, data: relax.Expr, axis: int, table: NDArray[np.int64]) -> relax.Expr:
    """Return the elements of one axis at known positions.

    As a slice where they are evenly spaced.
    """
    extent = static_shape(data)[axis]
    if np.array_equal(table, np.arange(extent)):
        return data
    steps = np.unique(np.diff(table))
    if len(table) == 1 or (len(steps) == 1 and steps[0] > 0):
        step = 1 if len(table) == 1 else int(steps[0])
        return node.emit(
            relax.op.strided_slice(data, [axis], [int(table[0])], [int(table[-1]) + 1], [step])
        )
    indices = constant_tensor(table.astype(np.int32))
    return node.emit(relax.op.take(data, indices, axis=axis, mode="fast"))


def flat(node: Node, tensor: relax.Expr) -> relax.Expr:
    """Return a tensor as a vector, for loops that compute their own offsets."""
    shape = static_shape(tensor)
    if len(shape) == 1:
        return tensor
    known = constant_value(tensor)
    if known is not None:
        return constant_tensor(known.reshape(-1))
    return node.emit(relax.op.reshape(tensor, (math.prod(shape),)))


def unravel(offset: Any, shape: Sequence[int]) -> list[Any]:
    """Return coordinates of an element by its row-major offset."""
    places = []
    for extent in reversed(shape):
        places.append(tirx.floormod(offset, extent))
        offset = tirx.floordiv(offset, extent)
    return places[::-1]


def strides_of(shape: Sequence[int]) -> list[int]:
    """Return row-major strides in elements.

    >>> strides_of([2, 3, 4])
    [12, 4, 1]
    """
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
