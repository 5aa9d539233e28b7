"""Repairs on one matrix product and one depthwise convolution, by their expected error."""

from dataclasses import replace

import numpy as np
import pytest
from support.onnx_graphs import make_model, node, random, to_relax

from edgec.compiler.calibration.moments import Moments, choose_patches, input_patches
from edgec.compiler.ir.anchors import Operator
from edgec.compiler.ir.graph import Graph
from edgec.compiler.passes import CANONICALIZE
from edgec.compiler.passes.base import apply_passes
from edgec.compiler.quantize.encode import Quantization, quantize_numbers
from edgec.compiler.quantize.plan import plan_quantization
from edgec.compiler.quantize.quantization_recipe import RECIPES, resolve
from edgec.compiler.quantize.rounding.learned import round_learned
from edgec.compiler.quantize.rounding.scale_correction import scale_corrected
from edgec.compiler.quantize.rounding.second_order import expected_error, round_second_order
from edgec.targets import load_target

ROUNDINGS = {"second-order": round_second_order, "learned": round_learned}


def quantized(kind: str, recipe: str) -> tuple[Quantization, Operator]:
    """One operator, rounded to the nearest."""
    if kind == "matmul":
        nodes, shape = [node("MatMul", ["x", "w"], ["y"])], (1, 96)
        weight = random(96, 24, seed=1)
    else:
        nodes, shape = [node("Conv", ["x", "w"], ["y"], group=24, pads=[2] * 4)], (1, 24, 9, 9)
        weight = random(24, 1, 5, 5, seed=1)
    module = to_relax(make_model(nodes, {"x": shape}, ["y"], {"w": weight}))
    plan = plan_quantization(Graph(apply_passes(module, CANONICALIZE), {}), RECIPES[recipe])
    ranges = {plan.graph.names[v]: (0.0, 1.0) for v in plan.tensors}
    numbers = quantize_numbers(plan, resolve(RECIPES[recipe], load_target("x86-64-v3")), ranges)
    return numbers, plan.weighted()[0]


def moments(operator: Operator, numbers: Quantization, *, seed: int = 5) -> Moments:
    """Of inputs that are alike, as those behind a ReLU are."""
    draw = np.random.default_rng(seed)
    parts = []
    for _ in range(30):
        if operator.kind == "matmul":
            mixed = draw.normal(size=(64, 12)) @ np.abs(draw.normal(size=(12, 96)))
            data = np.maximum(mixed + draw.normal(size=(64, 96)), 0).astype(np.float32)
        else:
            smooth = np.repeat(np.repeat(draw.normal(size=(1, 24, 3, 3)), 3, 2), 3, 3)
            data = np.maximum(smooth + 0.3 * draw.normal(size=smooth.shape), 0).astype(np.float32)
        places = choose_patches(operator, 1024, draw)
        parts.append(input_patches(operator, numbers.plan.graph, data, places))
    sums = np.concatenate(parts, axis=2)
    return Moments(sums @ sums.transpose(0, 2, 1) / sums.shape[2], sums.mean(axis=2))


def error_db(operator: Operator, numbers: Quantization, of: Moments) -> float:
    """Expected error of the outputs [dB]."""
    assert operator.weight is not None
    change = numbers.weight_values(operator) - operator.weight.array
    return float(10 * np.log10(expected_error(operator, change, of)))


@pytest.mark.parametrize("kind", ["matmul", "conv"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_rounding_that_knows_the_inputs_costs_less(kind: str, rounding: str) -> None:
    numbers, operator = quantized(kind, "int8")
    of = moments(operator, numbers)

    def cost(known: Moments) -> float:
        packed_weight = ROUNDINGS[rounding](
            operator, numbers.weights[operator.name], known, numbers.resolved
        )
        return error_db(operator, numbers.with_weights({operator.name: packed_weight}), of)

    nearest = error_db(operator, numbers, of)
    assert cost(of) < nearest - 3
    # The moments of inputs whose order is another say nothing.
    order = np.random.default_rng(0).permutation(of.mean.shape[1])
    shuffled = of.second[:, order][:, :, order] * np.where(np.eye(len(order)), 1, -0.5)
    foreign = replace(of, second=shuffled.astype(np.float32))
    if rounding == "learned":
        assert cost(foreign) > nearest - 1


@pytest.mark.parametrize("kind", ["matmul", "conv"])
def test_learned_codes_are_the_neighbours_of_the_weights(kind: str) -> None:
    numbers, operator = quantized(kind, "int8")
    before = numbers.weights[operator.name]
    resolved = numbers.resolved
    after = round_learned(operator, before, moments(operator, numbers), resolved)
    assert operator.weight is not None
    off = np.abs(numbers.with_weights({operator.name: after}).weight_values(operator))
    assert off.max() <= np.abs(operator.weight.array).max() * 1.001
    step = after.quantized.astype(int) - before.quantized  # type: ignore[union-attr]
    assert set(np.unique(step)) == {-1, 0, 1}


@pytest.mark.parametrize("kind", ["matmul", "conv"])
@pytest.mark.parametrize("recipe", ["int4-weight-only", "log2"])
def test_spread_that_is_given_back_lowers_the_error(kind: str, recipe: str) -> None:
    numbers, operator = quantized(kind, recipe)
    of = moments(operator, numbers)
    packed_weight = scale_corrected(numbers, operator, of)
    nearest = error_db(operator, numbers, of)
    assert (
        error_db(operator, numbers.with_weights({operator.name: packed_weight}), of) < nearest - 0.2
    )
    # The factors of other channels make it worse.
    before = numbers.weights[operator.name]
    factors = packed_weight.scales / before.scales  # type: ignore[union-attr]
    wrong = replace(before, scales=before.scales * factors[::-1])  # type: ignore[union-attr]
    assert error_db(operator, numbers.with_weights({operator.name: wrong}), of) > nearest
