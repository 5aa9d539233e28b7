"""Operators that pick elements by index."""

import numpy as np
from tvm import relax

from edgec.compiler.importer.node import Node, Refusal, constant_value, static_shape


def convert_gather(node: Node) -> relax.Expr:
    """Gather: data indexed along one axis by a tensor of indices, negative ones from the end."""
    data, indices = node.input(0), node.input(1)
    shape = static_shape(data)
    axis = node.attributes.get("axis", 0) % len(shape)
    known = constant_value(indices)
    if known is None:
        extent = relax.const(shape[axis], str(indices.ty.dtype.dtype))
        wrapped = node.emit(relax.op.add(indices, extent))
        zero = relax.const(0, str(indices.ty.dtype.dtype))
        indices = node.emit(
            relax.op.where(node.emit(relax.op.less(indices, zero)), wrapped, indices)
        )
        # Clipped: an index that is out of range at run time must not read foreign memory.
        return relax.op.take(data, indices, axis=axis, mode="clip")
    if np.any(known < -shape[axis]) or np.any(known >= shape[axis]):
        raise Refusal(f"an index is outside the {shape[axis]} elements of axis {axis}")
    known = np.where(known < 0, known + shape[axis], known).astype(np.int64)
    if known.ndim == 0:
        index = int(known)
        part = relax.op.strided_slice(data, axes=[axis], begin=[index], end=[index + 1])
        return relax.op.squeeze(node.emit(part), axis=[axis])
    return relax.op.take(data, relax.const(known), axis=axis, mode="clip")
