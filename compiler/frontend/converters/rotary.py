"""Provide rotary position embedding."""

from typing import Any

import numpy as np
from tvm import relax

from edgec.compiler.frontend.converters.attention import (
    int64,
    merge_heads,
    slice_of,
    split_heads,
)
from edgec.compiler.frontend.node import Node, Refusal, dtype_of, static_shape
from edgec.compiler.ir.cache_operators import rotary

op = relax.op


def convert_rotary_embedding(node: Node) -> relax.Expr:
    """Convert RotaryEmbedding: X [B, N, L, D] or [B, L, N D], rotated by angles [B, L, R / 2].

    With position_ids [B, L] the angles are picked from caches [positions, R / 2].
    """
    data, attributes = node.input(0), node.attributes
    cosines, sines, positions = node.input(1), node.input(2), node.optional(3)
    packed = len(static_shape(data)) == 3
    heads = attributes.get("num_heads", 0)
    if packed and heads < 1:
        raise Refusal("attribute num_heads is needed for three dimensions")
    rows = split_heads(node, data, heads) if packed else data
    dim = attributes.get("rotary_embedding_dim", 0) or static_shape(rows)[3]
    interleaved = bool(attributes.get("interleaved", 0))
    if positions is not None:
        turned = rotate_at(node, rows, (cosines, sines), positions, dim, interleaved)
    else:
        cosines, sines = (node.call(op.expand_dims, item, 1) for item in (cosines, sines))
        turned = rotate(node, rows, cosines, sines, dim, interleaved)
    return merge_heads(node, turned) if packed else turned


def rotate_at(
    node: Node,
    data: relax.Expr,
    tables: tuple[relax.Expr, relax.Expr],
    positions: relax.Expr,
    dim: int,
    interleaved: bool,
) -> relax.Expr:
    """Return rotary position embedding of rows at positions of tables; see `rotate`.

    Args:
        node: where it belongs.
        data: [B, N, L, D].
        tables: cosines and sines [positions, R / 2].
        positions: [B, L], or [B], of the first of each row.
        dim: R.
        interleaved: how pairs lie.
    """
    _check_angles(tables[0], dim)
    if static_shape(tables[0]) != static_shape(tables[1]):
        raise Refusal("the caches of cosines and sines have different shapes")
    batch, _, length, size = static_shape(data)
    places, fits = static_shape(positions), 0 < dim <= size and dim % 2 == 0
    if dtype_of(data) == "float32" and dtype_of(tables[0]) == "float32" and fits:
        offset = node.cast(positions, "int64")
        if places != (batch,):
            offset = node.call(op.broadcast_to, offset, (batch, length))
        return node.call(rotary, data, *tables, offset, interleaved=interleaved)
    if places == (batch,):
        steps = int64(np.arange(length)[np.newaxis])
        first = node.call(op.reshape, node.cast(positions, "int64"), (batch, 1))
        positions = node.call(op.add, steps, first)
    cosines, sines = (
        node.call(op.expand_dims, pick(node, table, positions), 1) for table in tables
    )
    return rotate(node, data, cosines, sines, dim, interleaved)


def _check_angles(cosines: relax.Expr, dim: int) -> None:
    if static_shape(cosines)[-1] * 2 != dim:
        raise Refusal(f"the caches do not hold {dim // 2} angles")


def pick(node: Node, table: relax.Expr, indices: relax.Expr) -> relax.Var:
    """Return rows of a table; an index out of range must not read foreign memory."""
    return node.call(op.take, table, indices, axis=0, mode="clip")


def rotate(
    node: Node,
    data: relax.Expr,
    cosines: relax.Expr,
    sines: relax.Expr,
    dim: int,
    interleaved: bool,
) -> relax.Expr:
    """Return rotary position embedding (Su et al. 2021).

    Pairs of features are turned by an angle per position. A feature's partner is its neighbour
    if `interleaved`, else the one R / 2 later.

    Args:
        node: where it belongs.
        data: [..., D].
        cosines: the cosines of the angles, broadcasts to [..., R / 2].
        sines: likewise.
        dim: R, how many of the first features are rotated; 0 for all.
        interleaved: how pairs lie.
    """
    shape = static_shape(data)
    dim = dim or shape[-1]
    _check_angles(cosines, dim)
    last = len(shape) - 1
    turned = slice_of(node, data, last, 0, dim)
    if interleaved:
        pairs = node.call(op.reshape, turned, (*shape[:-1], dim // 2, 2))
        first, second = (
            node.call(op.squeeze, slice_of(node, pairs, last + 1, i, i + 1), [last + 1])
            for i in (0, 1)
        )
    else:
        first, second = (
            slice_of(node, turned, last, i * dim // 2, (i + 1) * dim // 2) for i in (0, 1)
        )

    def combine(operator: Any, one: relax.Expr, other: relax.Expr) -> relax.Var:
        products = node.call(op.multiply, one, first), node.call(op.multiply, other, second)
        return node.call(operator, *products)

    real, imaginary = combine(op.subtract, cosines, sines), combine(op.add, sines, cosines)
    if interleaved:
        stacked = node.call(op.stack, [real, imaginary], axis=last + 1)
        result = node.call(op.reshape, stacked, (*shape[:-1], dim))
    else:
        result = node.call(op.concat, [real, imaginary], axis=last)
    if dim == shape[-1]:
        return result
    return node.call(op.concat, [result, slice_of(node, data, last, dim, shape[-1])], axis=last)
