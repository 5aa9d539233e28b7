"""Smoothing: the same function, better quantized values where channels outweigh others."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from support.contexts import model_context
from support.onnx_graphs import make_model, node, random

from edgec.compiler.calibration.samples import samples_from_tensors
from edgec.compiler.errors import CalibrationError
from edgec.compiler.frontend.canonical import CanonicalModel, canonical_model
from edgec.compiler.ir.graph import Graph
from edgec.compiler.parity.reference import run_reference
from edgec.compiler.quantize.float_fallbacks import float_fallbacks
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.quantize.plan import plan_quantization
from edgec.compiler.quantize.quantization_recipe import RECIPES, QuantizationRecipe
from edgec.compiler.quantize.quantizer import QuantizedModel, quantize_model
from edgec.compiler.quantize.smooth import Channels, smooth, smoothable, smoothing

WIDTH = 32
OUTLIERS = np.where(np.arange(WIDTH) % 16 == 5, 40, 1).astype(np.float32)
WEIGHTS = {
    "gamma": OUTLIERS,
    "beta": np.zeros(WIDTH, np.float32),
    "up": random(WIDTH, 64, seed=1),
    "down": random(64, WIDTH, seed=2),
    "key": random(WIDTH, 8, seed=3),
    "two": np.float32(2),
    "last": np.int64([-1]),
    "epsilon": np.float32(1e-5),
}
NORM = [node("LayerNormalization", ["x", "gamma", "beta"], ["n"], axis=-1)]
ROOT_MEAN_SQUARE = [
    node("Pow", ["x", "two"], ["square"]),
    node("ReduceMean", ["square"], ["mean"], axes=[-1]),
    node("Add", ["mean", "epsilon"], ["shifted"]),
    node("Sqrt", ["shifted"], ["root"]),
    node("Reciprocal", ["root"], ["inverse"]),
    node("Mul", ["x", "inverse"], ["one"]),
    node("Mul", ["one", "gamma"], ["n"]),
]
# What is normalized is read by products, and by a residual sum.
BLOCK = [
    node("MatMul", ["n", "up"], ["u"]),
    node("Sigmoid", ["u"], ["s"]),
    node("MatMul", ["s", "down"], ["d"]),
    node("MatMul", ["n", "key"], ["k"]),
    node("Add", ["d", "n"], ["y"]),
]


@dataclass(frozen=True)
class Case:
    """A case is a small network with samples of its input."""

    model: CanonicalModel
    inputs: np.ndarray

    @property
    def graph(self) -> Graph:
        return Graph(self.model.module, self.model.value_names)

    def quantize(self, samples: bool = True, **options: Any) -> QuantizedModel:
        given = samples_from_tensors({"x": self.inputs}, self.model.signature.inputs)
        context = model_context(
            self.model.signature, given if samples else None, value_names=self.model.value_names
        )
        return quantize_model(self.model.module, QuantizeOptions(**options), context, "sha")

    def groups(self) -> list[tuple[str, int]]:
        plan = plan_quantization(self.graph, RECIPES["int8"])
        return [(plan.graph.names[v], len(group)) for v, group in smoothable(plan).items()]


@cache
def case(norm: str = "layer") -> Case:
    nodes = [*(NORM if norm == "layer" else ROOT_MEAN_SQUARE), *BLOCK]
    return Case(_canonical(nodes, ["y", "k"]), random(6, 4, WIDTH, seed=9))


def _canonical(nodes: Sequence[Any], outputs: Sequence[str]) -> CanonicalModel:
    used = {name for item in nodes for name in item.input}
    weights = {name: array for name, array in WEIGHTS.items() if name in used}
    return canonical_model(make_model(nodes, {"x": [1, 4, WIDTH]}, outputs, weights))


@pytest.mark.parametrize("norm", ["layer", "root mean square"])
def test_what_is_normalized_and_what_follows_a_product_may_be_divided(norm: str) -> None:
    groups = case(norm).groups()
    assert [count for _, count in groups] == [2, 1]
    plan = plan_quantization(case(norm).graph, RECIPES["int8"])
    # No part of the normalization is rounded.
    assert [plan.graph.names[v] for v in plan.tensors] == [name for name, _ in groups]


def test_the_function_stays() -> None:
    graph = case().graph
    groups = smoothable(plan_quantization(graph, RECIPES["int8"]))
    normalized, gate = (graph.names[value] for value in groups)
    scales = {normalized: OUTLIERS, gate: np.linspace(0.5, 2, 64).astype(np.float32)}
    module, quotients = smooth(graph, groups, scales)
    assert list(quotients) == [normalized, gate]
    inputs = {"x": case().inputs[:1]}
    signature = case().model.signature
    before, after = (run_reference(m, signature, inputs) for m in (graph.module, module))
    for name, array in before.items():
        np.testing.assert_allclose(array, after[name], rtol=1e-4, atol=1e-3)
    with pytest.raises(CalibrationError, match="32 channels, the calibration cache has 3 divisors"):
        smooth(graph, groups, {normalized: np.ones(3, np.float32)})


def test_outliers_cost_less_and_the_residual_is_not_rounded(tmp_path: Path) -> None:
    """Without smoothing what is normalized has one scale for all; a cache keeps the divisors."""
    cache_file = tmp_path / "ranges.json"
    smoothed = case().quantize(recipe="int8", repair=False, cache=cache_file)
    said = float_fallbacks(smoothed.quantization, lambda _names: None)
    assert "it smooths what is rounded next" in {f.why for f in said if f.operator == "divide"}
    plain = case().quantize(recipe=QuantizationRecipe(name="plain", smooth=False), repair=False)
    assert smoothed.accuracy is not None
    assert plain.accuracy is not None
    assert smoothed.accuracy.by_output["k"] > plain.accuracy.by_output["k"] + 6
    assert smoothed.accuracy.by_output["y"] > plain.accuracy.by_output["y"] + 6
    fields = json.loads(cache_file.read_text())
    (normalized,) = fields["divisors"]
    assert normalized == case().groups()[0][0]
    again = case().quantize(samples=False, recipe="int8", repair=False, cache=cache_file)
    assert tvm_ffi.structural_equal(again.module, smoothed.module)
    fields["divisors"][normalized][3] = 0
    cache_file.write_text(json.dumps(fields))
    with pytest.raises(CalibrationError, match="no positive numbers"):
        case().quantize(samples=False, recipe="int8", repair=False, cache=cache_file)


def test_networks_without_normalization_stay() -> None:
    products = [node("Sigmoid", ["x"], ["n"]), *BLOCK]
    assert Case(_canonical(products, ["y", "k"]), case().inputs).groups() == []


def test_weights_that_are_shared_stay_so() -> None:
    nodes = [*NORM, *BLOCK[:3], node("MatMul", ["d", "up"], ["y"])]
    assert Case(_canonical(nodes, ["y"]), case().inputs).groups() == [(case().groups()[1][0], 1)]


def channels(*sizes: float) -> Channels:
    size = np.float32(sizes)
    return Channels(-size, size, np.square(size.astype(np.float64)) / 3)


def test_divisors_are_those_of_the_least_noise() -> None:
    weight = np.ones((4, 8), np.float32)
    found = smoothing(channels(100, 1, 1, 1), [weight])
    assert found is not None
    assert found[0] > 3 * found[1]
    assert np.log(found).mean() == pytest.approx(0, abs=1e-5)
    # Nothing to gain from even channels, nor from those that are always 0.
    assert smoothing(channels(1, 1, 1, 1), [weight]) is None
    assert smoothing(channels(0, 0, 0, 0), [weight]) is None
    # A large channel that nobody wants is in nobody's way.
    dead = weight * np.float32([[0], [1], [1], [1]])
    found = smoothing(channels(1000, 1, 1, 1), [dead])
    assert found is not None
    assert found[0] > 500 * found[1]
