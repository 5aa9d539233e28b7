"""Caches of half floats are appended to and read as they are."""

import numpy as np
from support.cache_graphs import by_legalization
from support.onnx_graphs import random
from tvm import IRModule, relax

from edgec.compiler.ir.cache_operators import append_rows, cached_attention
from edgec.compiler.ir.relax_helpers import dtype_of, op_name
from edgec.compiler.passes.keep_half_caches import KeepHalfCaches

op = relax.op


def module(past_dtype: str = "float16") -> IRModule:
    def tensor(name: str, dtype: str, *shape: int) -> relax.Var:
        return relax.Var(name, relax.TensorType(shape, dtype))

    query, new = tensor("query", "float32", 1, 4, 3, 8), tensor("new", "float32", 1, 2, 3, 8)
    caches = [tensor(name, past_dtype, 1, 2, 20, 8) for name in ("keys", "values")]
    offset = tensor("offset", "int64", 1)
    builder = relax.BlockBuilder()
    with builder.function("main", [query, new, *caches, offset]):
        with builder.dataflow():
            emit = builder.emit
            wide = [emit(op.astype(cache, "float32")) for cache in caches]
            rows = [emit(append_rows(cache, new, offset, clear=True)) for cache in wide]
            mixed = emit(cached_attention(query, *rows, offset, scale=0.5))
            kept = [emit(op.astype(cache, past_dtype)) for cache in rows]
            result = builder.emit_output(relax.Tuple([mixed, *kept]))
        builder.emit_func_output(result)
    return builder.get()


def calls(built: IRModule) -> list[relax.Call]:
    found = [b.value for block in built["main"].body.blocks for b in block.bindings]
    return [value for value in found if op_name(value)]


def test_nothing_converts_a_cache() -> None:
    after = calls(KeepHalfCaches()(module()))
    names = ["edgec.append_rows", "edgec.append_rows", "edgec.cached_attention"]
    assert sorted(map(op_name, after)) == names
    assert [dtype_of(call) for call in after if op_name(call) == names[0]] == ["float16"] * 2


def test_other_caches_stay() -> None:
    for dtype in ("float32", "float64"):
        before = module(dtype)
        assert list(map(op_name, calls(KeepHalfCaches()(before)))) == list(
            map(op_name, calls(before))
        )


def test_legalizations_round_what_is_appended() -> None:
    past, new = random(1, 2, 20, 8).astype(np.float16), random(1, 2, 3, 8, seed=1)
    arrays = {"past": past, "new": new, "offset": np.array([5])}
    (found,) = by_legalization(
        arrays, lambda emit, past, new, offset: emit(append_rows(past, new, offset))
    )
    expected = past.copy()
    expected[:, :, 5:8] = new
    np.testing.assert_array_equal(found, expected)
