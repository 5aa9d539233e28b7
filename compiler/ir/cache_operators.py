"""Provide Relax operators of a cache whose length is only known at run time.

A cache is a buffer of T rows for each sequence and head; `offset` says how many of them are there.
What their legalizations compute is what the operators mean: each costs as much as all T rows do.
The kernels of `compiler/kernels/attention` read no more rows than there are.
"""

from typing import Any

from tvm import ir, relax, te, tirx

from edgec.compiler.ir.operators import register

# The least that a logit can be: finite, so that the difference of two is a number.
_LOWEST = -3.0e38


def append_rows(
    past: relax.Expr, new: relax.Expr, offset: relax.Expr, *, clear: bool = False
) -> relax.Call:
    """Return a cache with rows offset to offset + S - 1 replaced, as far as it has these.

    Args:
        past: [B, H, T, D]; of float16 the new rows are rounded to it.
        new: [B, H, S, D].
        offset: int64 [B], the first row to be replaced of each sequence.
        clear: rows behind the new ones mean nothing: they become zeros, as ONNX Runtime gives them.
            In place they are left as they are.
    """
    return relax.Call(
        ir.Op.get("edgec.append_rows"),
        [past, new, offset],
        ir.make_node("ir.DictAttrs", clear=bool(clear)),
    )


def rotary(
    data: relax.Expr,
    cosines: relax.Expr,
    sines: relax.Expr,
    offset: relax.Expr,
    *,
    interleaved: bool = False,
) -> relax.Call:
    """Return rotary position embedding (Su et al. 2021): row i is turned by the angles of a table.

    The first R features of a row are turned in pairs: a feature's partner is its neighbour if
    `interleaved`, else the one R / 2 later. Positions beyond the table take its first or last row.

    Args:
        data: [B, H, S, D].
        cosines: of the angles of each position, [P, R / 2].
        sines: likewise.
        offset: int64 [B], the position of the first row of each sequence, or [B, S], of each row.
        interleaved: how pairs lie.
    """
    return relax.Call(
        ir.Op.get("edgec.rotary"),
        [data, cosines, sines, offset],
        ir.make_node("ir.DictAttrs", interleaved=bool(interleaved)),
    )


def cached_attention(
    query: relax.Expr,
    keys: relax.Expr,
    values: relax.Expr,
    offset: relax.Expr,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> relax.Call:
    """Return causal attention over a cache [B, N, S, E]: query i sees keys 0 to offset + i.

    N / M query heads share a key head (Ainslie et al. 2023). A query that sees nothing gives zeros.

    Args:
        query: [B, N, S, D].
        keys: [B, M, T, D]; float16 is computed on as the query's dtype.
        values: [B, M, T, E], likewise.
        offset: int64 [B], keys before the first query's own.
        scale: factor of the logits.
        window: keys that a query sees at most, its own among them; 0 for all.
        softcap: logits become softcap * tanh(logits / softcap), unless 0.
    """
    attributes = {"scale": float(scale), "window": int(window), "softcap": float(softcap)}
    return relax.Call(
        ir.Op.get("edgec.cached_attention"),
        [query, keys, values, offset],
        ir.make_node("ir.DictAttrs", **attributes),
    )


def _clipped(value: Any, last: Any) -> Any:
    return tirx.max(tirx.min(value, tirx.const(last, "int64")), tirx.const(0, "int64"))


def _compute_append_rows(
    past: te.Tensor, new: te.Tensor, offset: te.Tensor, clear: bool
) -> te.Tensor:
    count, zero = int(new.shape[2]), tirx.const(0, past.dtype)

    def element(b: Any, h: Any, t: Any, d: Any) -> Any:
        step = tirx.Cast("int64", t) - offset[b]
        inside = tirx.all(step >= 0, step < tirx.const(count, "int64"))
        old = past[b, h, t, d]
        if clear:
            old = tirx.Select(step < 0, old, zero)
        fresh = new[b, h, _clipped(step, count - 1), d]
        return tirx.Select(inside, fresh.astype(past.dtype), old)

    return te.compute(past.shape, element, name="append_rows")


def _compute_rotary(
    data: te.Tensor, cosines: te.Tensor, sines: te.Tensor, offset: te.Tensor, interleaved: bool
) -> te.Tensor:
    positions, half = (int(extent) for extent in cosines.shape)
    each = len(offset.shape) == 2

    def element(b: Any, h: Any, s: Any, d: Any) -> Any:
        position = offset[b, s] if each else offset[b] + tirx.Cast("int64", s)
        row = _clipped(position, positions - 1)
        turned = tirx.min(d, 2 * half - 1)
        if interleaved:
            pair, second = tirx.floordiv(turned, 2), tirx.floormod(turned, 2).equal(1)
            partner = tirx.Select(second, turned - 1, turned + 1)
        else:
            pair, second = tirx.floormod(turned, half), turned >= half
            partner = tirx.Select(second, turned - half, turned + half)
        cosine, sine = cosines[row, pair], sines[row, pair]
        own, other = data[b, h, s, d], data[b, h, s, partner] * sine
        rotated = own * cosine + tirx.Select(second, other, -other)
        return tirx.Select(d < 2 * half, rotated, own)

    return te.compute(data.shape, element, name="rotary")


def _compute_cached_attention(
    query: te.Tensor,
    keys: te.Tensor,
    values: te.Tensor,
    offset: te.Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> te.Tensor:
    """Return the textbook computation over all T keys."""
    batch, heads, count, size = (int(extent) for extent in query.shape)
    groups, total, width = (int(extent) for extent in values.shape[1:])
    share, dtype = heads // groups, str(query.dtype)
    shape = (batch, heads, count, total)
    part, axis = te.reduce_axis((0, size), "d"), te.reduce_axis((0, total), "t")
    again, last = te.reduce_axis((0, total), "t"), te.reduce_axis((0, total), "t")

    def seen(b: Any, i: Any, t: Any) -> Any:
        place = offset[b] + tirx.Cast("int64", i)
        key = tirx.Cast("int64", t)
        return tirx.all(key <= place, key > place - window) if window else key <= place

    products = te.compute(
        shape,
        lambda b, n, i, t: te.sum(
            query[b, n, i, part] * keys[b, tirx.floordiv(n, share), t, part].astype(dtype),
            axis=part,
        ),
        name="products",
    )

    def logit(b: Any, n: Any, i: Any, t: Any) -> Any:
        value = products[b, n, i, t] * tirx.const(scale, dtype)
        if softcap:
            value = tirx.tanh(value / tirx.const(softcap, dtype)) * tirx.const(softcap, dtype)
        return tirx.Select(seen(b, i, t), value, tirx.const(_LOWEST, dtype))

    logits = te.compute(shape, logit, name="logits")
    largest = te.compute(
        shape[:3], lambda b, n, i: te.max(logits[b, n, i, axis], axis=axis), name="largest"
    )
    powers = te.compute(
        shape,
        lambda b, n, i, t: tirx.Select(
            seen(b, i, t),
            tirx.exp(logits[b, n, i, t] - largest[b, n, i]),
            tirx.const(0, dtype),
        ),
        name="powers",
    )
    sums = te.compute(
        shape[:3], lambda b, n, i: te.sum(powers[b, n, i, again], axis=again), name="sums"
    )

    def weighted(b: Any, n: Any, i: Any, e: Any) -> Any:
        # A row that nobody wrote yet may hold anything.
        value = values[b, tirx.floordiv(n, share), last, e].astype(dtype)
        kept = tirx.Select(seen(b, i, last), value, tirx.const(0, dtype))
        return te.sum(powers[b, n, i, last] * kept, axis=last)

    totals = te.compute((batch, heads, count, width), weighted, name="totals")
    return te.compute(
        totals.shape,
        lambda b, n, i, e: tirx.Select(
            sums[b, n, i].equal(tirx.const(0, dtype)),
            tirx.const(0, dtype),
            totals[b, n, i, e] / sums[b, n, i],
        ),
        name="cached_attention",
    )


def _legalize_append_rows(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    return builder.call_te(_compute_append_rows, *call.args, clear=bool(call.attrs["clear"]))


def _legalize_rotary(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    interleaved = bool(call.attrs["interleaved"])
    return builder.call_te(_compute_rotary, *call.args, interleaved=interleaved)


def _legalize_cached_attention(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    return builder.call_te(
        _compute_cached_attention,
        *call.args,
        scale=float(call.attrs["scale"]),
        window=int(call.attrs["window"]),
        softcap=float(call.attrs["softcap"]),
    )


def _first_type(call: relax.Call, _builder: relax.BlockBuilder) -> Any:
    return call.args[0].ty


def _attention_type(call: relax.Call, _builder: relax.BlockBuilder) -> Any:
    query, values = call.args[0].ty, call.args[2].ty
    return relax.TensorType(
        [*query.shape.values[:3], values.shape.values[3]], str(query.dtype.dtype)
    )


register("edgec.append_rows", _first_type, _legalize_append_rows)
register("edgec.cached_attention", _attention_type, _legalize_cached_attention)
register("edgec.rotary", _first_type, _legalize_rotary)
