"""RecognizeLayerNorm: its spellings, and norms that are none."""

from typing import Any

import numpy as np
import pytest
import tvm_ffi
from support.onnx_graphs import make_model, node, operators, random, to_relax
from support.relax_runs import run_module

from edgec.compiler.passes import RecognizeLayerNorm


def layer_norm(axes: list[int], *, square: str = "Pow", keep: int = 1) -> list[Any]:
    power = node("Pow", ["d", "two"], ["q"]) if square == "Pow" else node("Mul", ["d", "d"], ["q"])
    return [
        node("ReduceMean", ["x"], ["m"], axes=axes, keepdims=keep),
        node("Sub", ["x", "m"], ["d"]),
        power,
        node("ReduceMean", ["q"], ["v"], axes=axes, keepdims=keep),
        node("Add", ["v", "eps"], ["ve"]),
        node("Sqrt", ["ve"], ["root"]),
        node("Div", ["d", "root"], ["n"]),
        node("Mul", ["n", "gamma"], ["s"]),
        node("Add", ["s", "beta"], ["y"]),
    ]


def norm_model(nodes: list[Any], parameters: tuple[int, ...]) -> Any:
    weights = {
        "two": np.float32(2).reshape(()),
        "eps": np.float32(1e-5).reshape(()),
        "gamma": random(*parameters, seed=1),
        "beta": random(*parameters, seed=2),
    }
    return to_relax(make_model(nodes, {"x": [2, 5, 8]}, ["y"], weights))


@pytest.mark.parametrize("square", ["Pow", "Mul"])
@pytest.mark.parametrize(("axes", "parameters"), [([-1], (8,)), ([1, 2], (5, 8))])
def test_layer_norm(square: str, axes: list[int], parameters: tuple[int, ...]) -> None:
    before = norm_model(layer_norm(axes, square=square), parameters)
    after = RecognizeLayerNorm()(before)
    assert operators(after) == {"layer_norm": 1}
    np.testing.assert_allclose(run_module(before), run_module(after), rtol=1e-4, atol=1e-5)


def test_a_norm_over_other_axes_stays() -> None:
    before = norm_model(layer_norm([1]), (8,))
    assert tvm_ffi.structural_equal(RecognizeLayerNorm()(before), before)


def test_parameters_of_another_shape_stay_outside() -> None:
    before = norm_model(layer_norm([-1]), (5, 8))
    after = RecognizeLayerNorm()(before)
    assert operators(after) == {"layer_norm": 1, "multiply": 1, "add": 1}
    np.testing.assert_allclose(run_module(before), run_module(after), rtol=1e-4, atol=1e-5)


def test_idempotent() -> None:
    once = RecognizeLayerNorm()(norm_model(layer_norm([-1]), (8,)))
    assert tvm_ffi.structural_equal(RecognizeLayerNorm()(once), once)
