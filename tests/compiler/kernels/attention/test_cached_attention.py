"""Attention over a cache: lengths that only a run tells, groups, windows, caps, odd sizes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from support.cache_graphs import attended, by_legalization, host_model, rotated
from support.kernel_runs import X86_TARGETS
from support.onnx_graphs import random
from tvm import relax

from edgec.compiler.ir.cache_operators import cached_attention, rotary
from edgec.compiler.kernels.attention.workload import FEW_QUERIES


@dataclass(frozen=True)
class Case:
    """A case is one attention; its tensors are of two sequences."""

    heads: int
    groups: int
    count: int
    total: int
    size: int
    width: int
    window: int = 0
    softcap: float = 0.0
    cache: str = "float32"

    @property
    def options(self) -> dict[str, Any]:
        return {"scale": self.size**-0.5, "window": self.window, "softcap": self.softcap}

    def tensors(self) -> dict[str, np.ndarray]:
        return {
            "query": random(2, self.heads, self.count, self.size),
            "keys": random(2, self.groups, self.total, self.size, seed=1).astype(self.cache),
            "values": random(2, self.groups, self.total, self.width, seed=2).astype(self.cache),
        }


CASES = {
    "a step": Case(6, 2, 1, 150, 32, 32),
    "a step, window and cap": Case(4, 4, 1, 150, 16, 48, 20, 3.0),
    "many queries": Case(6, 2, 13, 150, 32, 16),
    "many queries, window": Case(4, 1, 11, 150, 16, 16, 9),
    "odd sizes": Case(3, 1, 4, 37, 6, 7, 0, 2.0),
    "long rows": Case(2, 1, 12, 70, 160, 144),
    "a step, half floats": Case(6, 2, 1, 150, 32, 32, cache="float16"),
    "many queries, half floats": Case(6, 2, 13, 150, 32, 16, cache="float16"),
}
# Of both sequences: the first key, some, all, none, and beyond the cache.
OFFSETS = ((0, 1), (17, 24), (149, 36), (-13, 200))


@pytest.mark.parametrize("target", X86_TARGETS)
def test_lengths_at_run_time(target: str) -> None:
    tensors = {name: case.tensors() for name, case in CASES.items()}
    arrays = {f"{name} {key}": a for name, each in tensors.items() for key, a in each.items()}
    arrays["offset"] = np.array([0, 0])

    def build(emit: Any, offset: Any, **given: Any) -> dict[str, Any]:
        return {
            name: emit(
                cached_attention(*(given[f"{name} {k}"] for k in keys), offset, **case.options)
            )
            for (name, case), keys in zip(CASES.items(), tensors.values(), strict=True)
        }

    model = host_model(arrays, build, ["cache_attention"] * len(CASES), target)
    for offset in map(np.array, OFFSETS):
        arrays["offset"] = offset
        given = dict(arrays)
        for name, case in CASES.items():
            for key in ("keys", "values"):
                # What is behind the last row in use may be anything, even no number.
                rows = given[f"{name} {key}"] = arrays[f"{name} {key}"].copy()
                rows[:, :, max(0, offset.max() + case.count) :] = np.nan
        found = model.run(given)
        for name, case in CASES.items():
            expected = attended(*tensors[name].values(), offset, **case.options)
            close = np.isclose(found[name], expected, rtol=2e-5, atol=2e-5)
            assert close.all(), name
            # The negative control: with one key more another result, where there is one.
            other = attended(*tensors[name].values(), offset + 1, **case.options)
            seen = offset[0] >= 0 and offset[0] + case.count < case.total
            assert not (seen and np.allclose(found[name], other, rtol=2e-5, atol=2e-5)), name


FEW = {
    "grouped": Case(6, 2, FEW_QUERIES, 150, 32, 32),
    "grouped, half floats": Case(6, 2, FEW_QUERIES, 150, 32, 32, cache="float16"),
    "many heads of a key": Case(14, 1, FEW_QUERIES, 150, 16, 16),
    "window and cap": Case(4, 4, FEW_QUERIES, 300, 16, 48, 20, 3.0),
    "spans": Case(9, 3, FEW_QUERIES, 1300, 16, 16),
    "spans and window": Case(2, 1, FEW_QUERIES, 1300, 16, 16, 1100),
}


@pytest.mark.parametrize("target", ["native", "x86-64-v3"])
def test_a_few_queries_have_the_bits_of_one_alone(target: str) -> None:
    """So that guesses of what follows can be checked together."""
    arrays = {f"{n} {k}": a for n, case in FEW.items() for k, a in case.tensors().items()}
    arrays["offset"] = np.array([0, 0])
    queries = {f"{name} query": arrays[f"{name} query"] for name in FEW}

    def build(emit: Any, offset: Any, **given: Any) -> dict[str, Any]:
        def attend(name: str, case: Case) -> Any:
            tensors = (given[f"{name} {part}"] for part in ("query", "keys", "values"))
            return emit(cached_attention(*tensors, offset, **case.options))

        return {name: attend(name, case) for name, case in FEW.items()}

    kernels = ["cache_attention"] * 4 + ["cache_attention", "join_spans"] * 2
    together = host_model(arrays, build, kernels, target)
    first = {name: query[:, :, :1] for name, query in queries.items()}
    alone = host_model({**arrays, **first}, build, kernels, target)
    for offset in ((0, 120), (125, 255), (1021, 1150), (1279, 638)):
        found = together.run({**arrays, "offset": np.array(offset)})
        for place in (0, 3, FEW_QUERIES - 1):
            rows = {name: query[:, :, place : place + 1] for name, query in queries.items()}
            given = {**arrays, **rows, "offset": np.array(offset) + place}
            for name, row in alone.run(given).items():
                np.testing.assert_array_equal(found[name][:, :, place : place + 1], row, name)


def test_legalizations_mean_the_same() -> None:
    case = Case(3, 1, 4, 37, 6, 7, 5, 2.0)
    arrays = {**case.tensors(), "offset": np.array([30, -2])}

    def build(emit: Any, query: Any, keys: Any, values: Any, offset: Any) -> Any:
        return emit(cached_attention(query, keys, values, offset, **case.options))

    (found,) = by_legalization(arrays, build)
    expected = attended(*arrays.values(), **case.options)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    assert not np.any(found[1, :, :2])


@pytest.mark.parametrize(
    ("count", "total", "kernels"),
    [(5, 40, ["cache_attention"]), (2, 1300, ["cache_attention", "join_spans"])],
)
def test_tokens_side_by_side_and_turned_queries(count: int, total: int, kernels: list[str]) -> None:
    """Transposes around attention and the rotation of its queries are no kernels of their own.

    Few heads share a long cache; the first sequence has no keys, or too few for every task.
    """
    arrays = {
        "query": random(1, count, 6, 16),
        "keys": random(1, 3, total, 16, seed=1),
        "values": random(1, 3, total, 16, seed=2),
        "offset": np.array([0]),
    }
    angles = {"cos": random(40, 4), "sin": random(40, 4, seed=3)}

    def build(
        emit: Any, query: Any, keys: Any, values: Any, offset: Any, cos: Any, sin: Any
    ) -> Any:
        queries = emit(relax.op.permute_dims(query, [0, 2, 1, 3]))
        turned = emit(rotary(queries, cos, sin, offset))
        result = emit(cached_attention(turned, keys, values, offset, scale=0.3))
        return emit(relax.op.permute_dims(result, [0, 2, 1, 3]))

    model = host_model(arrays, build, kernels, **angles)
    for place in (-2, 9, total - count):
        arrays["offset"] = np.array([place])
        query, keys, values, offset = arrays.values()
        turned = rotated(query.transpose(0, 2, 1, 3), *angles.values(), offset, False)
        expected = attended(turned, keys, values, offset, 0.3).transpose(0, 2, 1, 3)
        np.testing.assert_allclose(model.run(arrays)["y"], expected, rtol=2e-5, atol=2e-5)
