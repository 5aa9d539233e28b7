"""Attention over a cache: lengths that only a run tells, groups, windows, caps, odd sizes."""

from typing import Any

import numpy as np
import pytest
from support.cache_graphs import attended, by_legalization, host_model, rotated
from support.kernel_runs import X86_TARGETS
from support.onnx_graphs import random
from tvm import relax

from edgec.compiler.ir.cache_operators import cached_attention, rotary

CASES = {
    # heads, groups, queries, total, size, width, window, softcap
    "a step": (6, 2, 1, 150, 32, 32, 0, 0.0),
    "a step, window and cap": (4, 4, 1, 150, 16, 48, 20, 3.0),
    "many queries": (6, 2, 13, 150, 32, 16, 0, 0.0),
    "many queries, window": (4, 1, 11, 150, 16, 16, 9, 0.0),
    "odd sizes": (3, 1, 4, 37, 6, 7, 0, 2.0),
    "long rows": (2, 1, 12, 70, 160, 144, 0, 0.0),
}


@pytest.mark.parametrize("target", X86_TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_lengths_at_run_time(case: str, target: str) -> None:
    heads, groups, count, total, size, width, window, softcap = CASES[case]
    arrays = {
        "query": random(2, heads, count, size),
        "keys": random(2, groups, total, size, seed=1),
        "values": random(2, groups, total, width, seed=2),
        "offset": np.array([0, 0]),
    }
    options = {"scale": size**-0.5, "window": window, "softcap": softcap}

    def build(emit: Any, query: Any, keys: Any, values: Any, offset: Any) -> Any:
        return emit(cached_attention(query, keys, values, offset, **options))

    model = host_model(arrays, build, ["cache_attention"], target)
    last = total - count
    for offset in ((0, 1), (17, last), (last, -1), (-count, total + 5)):
        arrays["offset"] = np.array(offset)
        # What is behind the last row in use may be anything, even no number.
        end = min(max(offset) + count, total)
        given = dict(arrays)
        for name in ("keys", "values"):
            given[name] = arrays[name].copy()
            given[name][:, :, end:] = np.nan
        expected = attended(*arrays.values(), **options)
        found = model.run(given)["y"]
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
        # The negative control: with one key more another result.
        later = {**arrays, "offset": arrays["offset"] + 1}
        other = attended(*later.values(), **options)
        if offset[0] >= 0:
            assert not np.allclose(found, other, rtol=2e-5, atol=2e-5)
    if target == X86_TARGETS[0]:
        np.testing.assert_allclose(by_legalization(arrays, build), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("count", [1, 5])
def test_tokens_side_by_side_and_turned_queries(count: int) -> None:
    """Transposes around attention and the rotation of its queries are no kernels of their own."""
    arrays = {
        "query": random(1, count, 4, 16),
        "keys": random(1, 2, 40, 16, seed=1),
        "values": random(1, 2, 40, 16, seed=2),
        "offset": np.array([9]),
    }
    angles = {"cos": random(40, 4), "sin": random(40, 4, seed=3)}

    def build(
        emit: Any, query: Any, keys: Any, values: Any, offset: Any, cos: Any, sin: Any
    ) -> Any:
        queries = emit(relax.op.permute_dims(query, [0, 2, 1, 3]))
        turned = emit(rotary(queries, cos, sin, offset))
        result = emit(cached_attention(turned, keys, values, offset, scale=0.3))
        return emit(relax.op.permute_dims(result, [0, 2, 1, 3]))

    model = host_model(arrays, build, ["cache_attention"], **angles)
    query, keys, values, offset = arrays.values()
    turned = rotated(query.transpose(0, 2, 1, 3), *angles.values(), offset, False)
    expected = attended(turned, keys, values, offset, 0.3).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(model.run(arrays)["y"], expected, rtol=2e-5, atol=2e-5)
