"""SwitchQuantization: all off is the float model, all on the quantized one, one on in between."""

import numpy as np
import pytest
from support.onnx_graphs import make_model, node, random, to_relax

from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.signature import Signature, TensorSpec
from edgec.compiler.parity.reference import run_reference
from edgec.compiler.passes import CANONICALIZE
from edgec.compiler.passes.base import apply_passes
from edgec.compiler.quantize.encode import Quantization, quantize_numbers
from edgec.compiler.quantize.insert_qdq import InsertQuantization
from edgec.compiler.quantize.plan import plan_quantization
from edgec.compiler.quantize.quantization_recipe import RECIPES, resolve
from edgec.compiler.quantize.switch_qdq import SWITCHES, SwitchQuantization
from edgec.targets import load_target

X = random(1, 8, 6, 6, seed=5)
SIGNATURE = Signature(
    (TensorSpec("x", X.shape, "float32"),), (TensorSpec("y", X.shape, "float32"),)
)


@pytest.fixture(scope="module")
def quantization() -> Quantization:
    """Two convolutions in int8, with a ReLU in between."""
    weights = {"w": random(8, 8, 3, 3, seed=1) / 8, "v": random(8, 8, 1, 1, seed=3) / 3}
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        node("Relu", ["a"], ["r"]),
        node("Conv", ["r", "v"], ["y"]),
    ]
    module = to_relax(make_model(nodes, {"x": X.shape}, ["y"], weights))
    plan = plan_quantization(Graph(apply_passes(module, CANONICALIZE), {}), RECIPES["int8"])
    ranges = {plan.graph.names[variable]: (-4.0, 4.0) for variable in plan.tensors}
    return quantize_numbers(plan, resolve(RECIPES["int8"], load_target("x86-64-v3")), ranges)


def switched(quantization: Quantization, on: list[float]) -> np.ndarray:
    operators = quantization.plan.operators
    assert len(operators) == len(on)
    module = SwitchQuantization(quantization, operators)()
    switches = TensorSpec(SWITCHES, (len(on),), "float32")
    signature = Signature((*SIGNATURE.inputs, switches), SIGNATURE.outputs)
    inputs = {"x": X, SWITCHES: np.array(on, np.float32)}
    return run_reference(module, signature, inputs)["y"]


def test_all_off_is_the_float_model(quantization: Quantization) -> None:
    expected = run_reference(quantization.plan.graph.module, SIGNATURE, {"x": X})["y"]
    np.testing.assert_allclose(switched(quantization, [0, 0]), expected, rtol=1e-5, atol=1e-5)


def test_all_on_is_the_quantized_model(quantization: Quantization) -> None:
    floats = run_reference(quantization.plan.graph.module, SIGNATURE, {"x": X})["y"]
    module = InsertQuantization(quantization)(quantization.plan.graph.module)
    expected = run_reference(module, SIGNATURE, {"x": X})["y"]
    found = switched(quantization, [1, 1])
    # A value that lies between two quantized values may go either way; what quantizing costs is far
    # more.
    lost = np.abs(expected - floats).mean()
    assert np.abs(found - expected).mean() < 0.05 * lost


def test_each_switch_is_for_one_operator(quantization: Quantization) -> None:
    results = [switched(quantization, on) for on in ([0, 0], [1, 0], [0, 1], [1, 1])]
    for index, left in enumerate(results):
        for right in results[index + 1 :]:
            assert np.abs(left - right).max() > 1e-4
