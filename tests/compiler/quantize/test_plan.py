"""What is quantized in small graphs, and how the graph says it."""

from collections import Counter
from typing import Any

import numpy as np
from support.onnx_graphs import make_model, node, operators, random, to_relax

from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import op_name, scalar_of, value_of
from edgec.compiler.passes import CANONICALIZE
from edgec.compiler.passes.base import apply_passes
from edgec.compiler.quantize.encode import Quantization, quantize_numbers
from edgec.compiler.quantize.float_fallbacks import FloatFallback, float_fallbacks
from edgec.compiler.quantize.insert_qdq import InsertQuantization
from edgec.compiler.quantize.plan import QuantizationPlan, plan_quantization
from edgec.compiler.quantize.quantization_recipe import (
    RECIPES,
    Override,
    QuantizationRecipe,
    resolve,
)
from edgec.targets import load_target

IMAGE = (1, 8, 6, 6)
WEIGHT = {"w": random(8, 8, 3, 3, seed=1), "b": random(8, seed=2), "v": random(8, 8, 1, 1, seed=3)}


def conv(x: str, y: str, weight: str = "w", *bias: str) -> Any:
    pads = [1] * 4 if weight == "w" else [0] * 4
    return node("Conv", [x, weight, *bias], [y], pads=pads)


def planned(
    nodes: list[Any], outputs: list[str], recipe: QuantizationRecipe = RECIPES["int8"]
) -> QuantizationPlan:
    module = to_relax(make_model(nodes, {"x": IMAGE}, outputs, WEIGHT))
    return plan_quantization(Graph(apply_passes(module, CANONICALIZE), {}), recipe)


def numbers(plan: QuantizationPlan, recipe: QuantizationRecipe = RECIPES["int8"]) -> Quantization:
    ranges = {plan.graph.names[v]: (-1.0 - i, 2.0 + i) for i, v in enumerate(plan.tensors)}
    return quantize_numbers(plan, resolve(recipe, load_target("x86-64-v3")), ranges)


def kept(plan: QuantizationPlan) -> list[tuple[str, str]]:
    return [(o.kind, o.keep) for o in plan.operators]


def test_bias_and_activation_are_part_of_the_convolution() -> None:
    plan = planned([conv("x", "a", "w", "b"), node("Relu", ["a"], ["y"]), conv("y", "z")], ["z"])
    assert kept(plan) == [("conv", "integer"), ("conv", "integer")]
    assert len(plan.tensors) == 2
    counts = operators(InsertQuantization(numbers(plan))(plan.graph.module))
    assert counts["quantize"] == 2
    # Two activations, two weights, one bias.
    assert counts["dequantize"] == 5


def test_a_residual_sum_is_an_operator_with_scales_of_its_own() -> None:
    plan = planned([conv("x", "a"), node("Add", ["a", "x"], ["s"]), conv("s", "z")], ["z"])
    assert kept(plan)[1] == ("add", "integer")
    scales = numbers(plan).scales
    assert len({scale.scale for scale in scales.values()}) == 3


def test_what_only_floats_read_stays_float() -> None:
    nodes = [conv("x", "a"), node("Add", ["a", "x"], ["s"]), node("Softmax", ["s"], ["y"], axis=1)]
    plan = planned(nodes, ["y"])
    assert kept(plan) == [("conv", "integer"), ("add", "float")]
    assert [plan.graph.names[v] for v in plan.tensors] == ["x"]


def test_moves_share_one_scale_and_one_zero_point() -> None:
    nodes = [
        conv("x", "a"),
        conv("x", "c", "v"),
        node("Concat", ["a", "c"], ["d"], axis=1),
        node("MaxPool", ["d"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Slice", ["p", "from", "to", "axes"], ["s"]),
        conv("s", "z"),
    ]
    WEIGHT.update(
        {name: np.int64([value]) for name, value in (("from", 0), ("to", 8), ("axes", 1))}
    )
    plan = planned(nodes, ["z"])
    quantization = numbers(plan)
    names = {plan.graph.names[v]: scale for v, scale in quantization.scales.items()}
    shared = {scale for name, scale in names.items() if name != "x"}
    assert len(names) == 6
    assert len(shared) == 1
    # The union of all ranges.
    assert shared.pop().scale * 255 > 7 + 6


def test_overrides_keep_operators_float() -> None:
    recipe = QuantizationRecipe.model_validate(
        {"override": [{"match": "a", "keep": "float"}, {"match": "z", "keep": "weight-only"}]}
    )
    plan = planned([conv("x", "a"), conv("a", "c", "v"), conv("c", "z")], ["z"], recipe)
    assert [o.keep for o in plan.operators] == ["float", "integer", "weight-only"]
    assert [plan.graph.names[v] for v in plan.tensors] == ["a"]


def test_a_bias_is_int32_in_units_of_the_products() -> None:
    plan = planned([conv("x", "a", "w", "b")], ["a"])
    quantization = numbers(plan)
    module = InsertQuantization(quantization)(plan.graph.module)
    (block,) = module["main"].body.blocks
    calls = [b.value for b in block.bindings if op_name(b.value) == "relax.dequantize"]
    (bias,) = [c for c in calls if value_of(c.args[0]) is not None and "32" in str(c.args[0].ty)]
    quantized, scales = value_of(bias.args[0]), value_of(bias.args[1])
    assert quantized is not None
    assert scales is not None
    assert quantized.dtype == np.int32
    (scale,) = quantization.scales.values()
    packed_weight = quantization.weights["a"]
    assert np.allclose(scales, packed_weight.scales * scale.scale)  # type: ignore[union-attr]
    assert np.all(np.abs(quantized.ravel() * scales - WEIGHT["b"]) <= scales / 2 * 1.001)


def test_seven_bit_activations_are_cut_before_they_are_rounded() -> None:
    recipe = QuantizationRecipe(activation_bits=7)
    plan = planned([conv("x", "a")], ["a"], recipe)
    module = InsertQuantization(numbers(plan, recipe))(plan.graph.module)
    counts: Counter[str] = operators(module)
    assert counts["clip"] == 1


def test_dynamic_scales_are_in_the_graph_once_for_each_value() -> None:
    recipe = RECIPES["int8-dynamic"]
    plan = planned([conv("x", "a"), conv("x", "c", "v")], ["a", "c"], recipe)
    counts = operators(InsertQuantization(numbers(plan, recipe))(plan.graph.module))
    assert counts["quantize"] == counts["max"] == 1


def test_zero_points_are_constants() -> None:
    plan = planned([conv("x", "a")], ["a"])
    module = InsertQuantization(numbers(plan))(plan.graph.module)
    (block,) = module["main"].body.blocks
    (call,) = [b.value for b in block.bindings if op_name(b.value) == "relax.quantize"]
    assert scalar_of(call.args[1]) == np.float32(3 / 255)
    assert scalar_of(call.args[2]) == 85


def fallbacks(
    plan: QuantizationPlan, recipe: QuantizationRecipe = RECIPES["int8"]
) -> tuple[FloatFallback, ...]:
    """What the plan alone leaves on floats."""
    return float_fallbacks(numbers(plan, recipe), lambda _names: None)


def test_float_fallbacks_of_the_plan_are_named_with_their_reason() -> None:
    nodes = [
        conv("x", "a"),
        node("Softmax", ["a"], ["s"], axis=1),
        conv("s", "c"),
        node("Add", ["c", "x"], ["y"]),
    ]
    softmax, add = fallbacks(planned(nodes, ["y"]))
    assert (softmax.operator, add.operator) == ("nn.softmax", "add")
    assert softmax.why == "it has no integer kernel"
    assert "no operator with an integer kernel reads" in add.why
    plan = planned(nodes, ["y"], QuantizationRecipe(extent="full"))
    assert [f.operator for f in fallbacks(plan, QuantizationRecipe(extent="full"))] == [
        "nn.softmax"
    ]
    first = plan.operators[0].names[0]
    kept_float = QuantizationRecipe(override=(Override(match=first, keep="float"),))
    reasons = fallbacks(planned(nodes, ["y"], kept_float), kept_float)
    assert (reasons[0].operator, "override" in reasons[0].why) == ("conv", True)
    assert fallbacks(planned(nodes, ["y"], RECIPES["log2"]), RECIPES["log2"]) == ()
