"""Convert GroupQueryAttention of `com.microsoft`, of which exported decoders consist."""

import math
from typing import Any

import numpy as np
from tvm import relax, tirx

from edgec.compiler.frontend.converters.attention import (
    Mask,
    attend,
    attend_cache,
    int64,
    merge_heads,
    split_heads,
)
from edgec.compiler.frontend.converters.microsoft import split_parts
from edgec.compiler.frontend.converters.rotary import rotate_at
from edgec.compiler.frontend.node import (
    Node,
    Refusal,
    constant_value,
    dtype_of,
    static_shape,
)
from edgec.compiler.frontend.te_operators import emit_compute
from edgec.compiler.ir.cache_operators import append_rows

op = relax.op

_GQA_INPUTS = {
    11: "head_sink",
    12: "k_scale",
    13: "v_scale",
    14: "q_norm_weight",
    15: "k_norm_weight",
}


def convert_group_query_attention(node: Node) -> list[relax.Expr]:
    """Convert GroupQueryAttention: query [B, L, N D], key and value [B, L, M D], causal.

    Query alone may hold all three, [B, L, (N + 2 M) D]. past_key and past_value [B, M, P, D];
    seqlens_k [B] is the number of keys less one, known or not; total_sequence_length, which must
    be known, the greatest number. New keys come right behind the old ones of their sequence, and
    zeros behind them: T is P or total_sequence_length, whichever is greater.

    Returns:
        output [B, L, N D], present_key and present_value [B, M, T, D].
    """
    attributes = node.attributes
    heads, groups = attributes["num_heads"], attributes["kv_num_heads"]
    for index, name in _GQA_INPUTS.items():
        if node.optional(index) is not None:
            raise Refusal(f"input {name!r} is not supported")
    for name in ("smooth_softmax", "sliding_window_cache", "qk_output"):
        if attributes.get(name, 0) > 0:
            raise Refusal(f"attribute {name} is not supported")
    query, key, value = node.input(0), node.optional(1), node.optional(2)
    if key is None or value is None:
        size = static_shape(query)[2] // (heads + 2 * groups)
        sizes = (heads * size, groups * size, groups * size)
        query, key, value = split_parts(node, query, 2, sizes)
    queries = split_heads(node, query, heads)
    keys, values = (split_heads(node, tensor, groups) for tensor in (key, value))
    _, _, length, size = static_shape(queries)
    past = 0 if node.optional(3) is None else static_shape(node.input(3))[2]
    lengths = constant_value(node.input(5))
    wanted = int(node.constant(6, "total_sequence_length").reshape(()))
    simple = wanted == past + length and lengths is not None and np.all(lengths == wanted - 1)
    if wanted < length:
        raise Refusal(f"total_sequence_length is {wanted}, less than the {length} new keys")
    total = max(past, wanted)
    # Before the first new key: the same for all, or known for each sequence [B] at run time.
    offset: int | relax.Expr = past
    if not simple:
        offset = _offsets(node, length, first=wanted == length)
    if attributes.get("do_rotary", 0):
        start = int64(np.full(static_shape(query)[0], past)) if simple else offset
        positions = start if node.optional(9) is None else node.input(9)
        tables, interleaved = (node.input(7), node.input(8)), attributes.get("rotary_interleaved")
        dim = 2 * static_shape(tables[0])[1]
        queries, keys = (
            rotate_at(node, item, tables, positions, dim, bool(interleaved))
            for item in (queries, keys)
        )
    plain = attributes.get("causal", 1) and node.optional(10) is None
    if not simple and plain and dtype_of(queries) == "float32":
        return _over_cache(node, queries, (keys, values), offset, total)
    if not simple:
        keys, values = (
            _placed(node, node.optional(index), new, offset, total)
            for index, new in ((3, keys), (4, values))
        )
    elif past:
        keys = node.call(op.concat, [node.input(3), keys], axis=2)
        values = node.call(op.concat, [node.input(4), values], axis=2)
    mask = Mask(node, dtype_of(queries), length, total)
    if node.optional(10) is not None:
        mask.restrict_by(node.input(10))
    window = attributes.get("local_window_size", -1)
    if attributes.get("causal", 1):
        # The window counts a query's own key.
        start = offset if isinstance(offset, int) else _column(node, offset, 4)
        mask.window(start, left=window - 1 if window >= 0 else None, right=0)
    elif window >= 0:
        raise Refusal("a window without a causal mask is not supported")
    softcap = attributes.get("softcap", 0.0)
    result = attend(node, queries, keys, values, mask, _scale(node, size), softcap)
    return [merge_heads(node, result.output), keys, values]


def _over_cache(
    node: Node, queries: relax.Expr, new: tuple[relax.Expr, relax.Expr], offset: Any, total: int
) -> list[relax.Expr]:
    """Return attention over caches into which new rows go, as long as they are at run time.

    Args:
        node: where it belongs.
        queries: [B, N, L, D].
        new: keys and values [B, M, L, D].
        offset: int64 [B], rows before the new ones.
        total: rows of the caches.
    """
    attributes = node.attributes
    keys, values = (
        _appended(node, node.optional(index), rows, offset, total)
        for index, rows in zip((3, 4), new, strict=True)
    )
    scale, softcap = _scale(node, static_shape(queries)[3]), attributes.get("softcap", 0.0)
    window = max(0, attributes.get("local_window_size", -1))
    result = attend_cache(node, queries, (keys, values), offset, scale, window, softcap)
    return [merge_heads(node, result), keys, values]


def _appended(
    node: Node, past: relax.Expr | None, new: relax.Expr, offset: relax.Expr, total: int
) -> relax.Expr:
    """Return a cache of so many rows [B, M, T, D] with new ones [B, M, L, D] behind the old."""
    batch, groups, _, size = static_shape(new)
    if past is not None:
        rows = static_shape(past)[2]
        if static_shape(past) != (batch, groups, rows, size):
            raise Refusal(f"a cache {static_shape(past)} does not fit {groups} heads of {size}")
        if rows == total:
            return node.call(append_rows, past, new, offset, clear=True)
    return _placed(node, past, new, offset, total)


def _scale(node: Node, size: int) -> float:
    """Return the factor of the logits, for keys of a size."""
    return node.attributes.get("scale", 0.0) or 1 / math.sqrt(size)


def _offsets(node: Node, length: int, *, first: bool) -> relax.Expr:
    """Return keys of each sequence before its new ones, int64 [B].

    Args:
        node: with the number of keys less one.
        length: new keys.
        first: all keys are new; shorter sequences have padding behind them.
    """
    lengths = node.cast(node.input(5), "int64")
    batch = static_shape(node.input(0))[0]
    lengths = node.call(op.reshape, lengths, (batch,))
    if first:
        return int64(np.zeros(batch))
    return node.call(op.add, lengths, int64(1 - length))


def _column(node: Node, offset: int | relax.Expr, rank: int) -> relax.Expr:
    """Return offsets that broadcast over a tensor with the batch in front."""
    if isinstance(offset, int):
        return int64(offset)
    return node.call(op.reshape, offset, (-1, *(1,) * (rank - 1)))


def _placed(
    node: Node, past: relax.Expr | None, new: relax.Expr, offset: Any, total: int
) -> relax.Expr:
    """Return rows [B, M, T, D]: old [B, M, P, D] up to an offset, new [B, M, L, D], zeros."""
    batch, groups, length, size = static_shape(new)
    kept = 0 if past is None else static_shape(past)[2]
    zero = tirx.const(0, dtype_of(new))

    def element(rows: Any, start: Any, *rest: Any) -> Any:
        *old, at = rest
        b, m, t, d = at
        place = tirx.Cast("int64", t)
        step = place - start[b]
        last = tirx.const(length - 1, "int64")
        fresh = rows[b, m, tirx.max(tirx.min(step, last), tirx.const(0, "int64")), d]
        value = tirx.Select(step <= last, fresh, zero)
        if not old:
            return value
        before = old[0][b, m, tirx.min(place, tirx.const(kept - 1, "int64")), d]
        return tirx.Select(step < 0, before, value)

    inputs = [new, offset] if past is None or not kept else [new, offset, past]
    return emit_compute(node, inputs, (batch, groups, total, size), element)
