"""Causal attention of a fixed length, however it is spelled."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.integer_graphs import open_module
from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import constant, op_name, shape_of
from edgec.compiler.passes.fuse_causal_attention import FuseCausalAttention
from edgec.targets import load_target

op = relax.op
HEADS, SIZE, WIDTH = 4, 16, 8


def visible(length: int, total: int, window: int = 0) -> np.ndarray:
    back = np.arange(length)[:, None] + total - length - np.arange(total)
    return (back >= 0) & (back < (window or total))


def bias(seen: np.ndarray, hidden: float = -np.inf) -> Any:
    return constant(np.where(seen, np.float32(0), np.float32(hidden)))


def scalar(value: float) -> Any:
    return constant(np.array(value, np.float32))


def module(spelling: str, length: int = 9, total: int = 9, groups: int = HEADS) -> IRModule:
    def tensor(name: str, *shape: int) -> relax.Var:
        return relax.Var(name, relax.TensorType(shape, "float32"))

    token_major = spelling == "tokens before heads"
    query = tensor("q", 1, HEADS, length, SIZE)
    keys = tensor("k", *((1, total, groups) if token_major else (1, groups, total)), SIZE)
    values = tensor("v", 1, groups, total, WIDTH)
    builder = relax.BlockBuilder()
    with builder.function("main", [query, keys, values]):
        with builder.dataflow():
            emit, rows = builder.emit, HEADS // groups * length
            data = query
            if spelling == "queries scaled":
                data = emit(op.multiply(query, scalar(0.25)))
            if groups < HEADS:
                data = emit(op.reshape(data, (1, groups, rows, SIZE)))
            turned = emit(op.permute_dims(keys, [0, 2, 3, 1] if token_major else [0, 1, 3, 2]))
            if spelling == "both scaled":
                data = emit(op.multiply(data, scalar(0.5)))
                turned = emit(op.multiply(turned, scalar(0.5)))
            logits = emit(op.matmul(data, turned))
            if groups < HEADS:
                logits = emit(op.reshape(logits, (1, HEADS, length, total)))
            if spelling not in ("queries scaled", "both scaled"):
                logits = emit(op.divide(logits, scalar(4.0)))
            seen = visible(length, total, 3 if spelling == "window" else 0)
            if spelling == "one key too many":
                seen[1, 2] = True
            if spelling == "small bias":
                logits = emit(op.add(logits, bias(seen, -5.0)))
            elif spelling == "where":
                logits = emit(op.where(constant(seen[None, None]), logits, scalar(-3e38)))
            else:
                logits = emit(op.add(bias(seen), logits))
            weights = emit(op.nn.softmax(logits, axis=-1))
            if groups < HEADS:
                weights = emit(op.reshape(weights, (1, groups, rows, total)))
            mixed = op.matmul(weights, values)
            if spelling == "weights read":
                mixed = op.add(emit(mixed), emit(op.sum(weights)))
            result = builder.emit_output(mixed)
        builder.emit_func_output(result)
    return builder.get()


def operators(built: IRModule) -> list[str]:
    return [op_name(b.value) for block in built["main"].body.blocks for b in block.bindings]


SPELLINGS: list[tuple[str, dict[str, int]]] = [
    ("logits scaled", {}),
    ("queries scaled", {}),
    ("both scaled", {}),
    ("where", {}),
    ("window", {}),
    ("tokens before heads", {}),
    ("past", {"length": 5, "total": 12}),
    ("groups", {"groups": 2}),
    ("queries scaled", {"groups": 2}),
]


@pytest.mark.parametrize(("spelling", "extents"), SPELLINGS, ids=str)
def test_attention_is_found(spelling: str, extents: dict[str, int]) -> None:
    before = module(spelling, **extents)
    after = FuseCausalAttention()(before)
    assert "edgec.cached_attention" in operators(after)
    assert "relax.nn.softmax" not in operators(after)
    assert operators(FuseCausalAttention()(after)) == operators(after)
    (call,) = (
        binding.value
        for block in after["main"].body.blocks
        for binding in block.bindings
        if op_name(binding.value) == "edgec.cached_attention"
    )
    assert float(call.attrs["scale"]) == 0.25
    assert int(call.attrs["window"]) == (3 if spelling == "window" else 0)


COMPUTED = [SPELLINGS[number] for number in (3, 4, 5, 6, 8)]


@pytest.mark.parametrize(("spelling", "extents"), COMPUTED, ids=str)
def test_it_computes_the_same(spelling: str, extents: dict[str, int], tmp_path: Path) -> None:
    before = module(spelling, **extents)
    numbers = np.random.default_rng(0)
    given = {
        parameter.name: numbers.normal(size=shape_of(parameter)).astype(np.float32)
        for parameter in before["main"].params
    }
    built = open_module(before, load_target("native"), tmp_path)
    assert "cache_attention" in built.templates
    q, k, v = (given[name].astype(np.float64) for name in "qkv")
    if spelling == "tokens before heads":
        k = k.transpose(0, 2, 1, 3)
    k, v = (np.repeat(each, HEADS // each.shape[1], axis=1) for each in (k, v))
    length, total = q.shape[2], k.shape[2]
    logits = q @ k.swapaxes(2, 3) / 4
    seen = visible(length, total, 3 if spelling == "window" else 0)
    powers = np.exp(np.where(seen, logits, -np.inf))
    expected = powers / powers.sum(axis=-1, keepdims=True) @ v
    found = built.run(given)["y"].reshape(expected.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("spelling", ["one key too many", "small bias", "weights read"])
def test_other_attention_stays(spelling: str) -> None:
    before = module(spelling)
    assert operators(FuseCausalAttention()(before)) == operators(before)
