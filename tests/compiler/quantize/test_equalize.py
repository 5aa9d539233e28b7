"""Cross-layer equalization: the same function, better quantized values."""

import numpy as np
import pytest
from support.onnx_graphs import make_model, node, random, to_relax
from tvm import IRModule

from edgec.compiler.backend import evaluate_here
from edgec.compiler.calibration.float_model import FloatModel
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.signature import Signature, TensorSpec
from edgec.compiler.numerics.affine import sqnr_db
from edgec.compiler.parity.reference import run_reference
from edgec.compiler.passes import CANONICALIZE
from edgec.compiler.passes.base import apply_passes
from edgec.compiler.quantize.encode import quantize_numbers
from edgec.compiler.quantize.equalize import equalize
from edgec.compiler.quantize.insert_qdq import InsertQuantization
from edgec.compiler.quantize.plan import plan_quantization
from edgec.compiler.quantize.quantization_recipe import RECIPES, resolve
from edgec.targets import load_target

X = random(1, 6, 10, 10, seed=3)
# Of each channel between the two convolutions.
SIZES = (2.0 ** np.arange(-4, 4)).astype(np.float32)


def network(activation: str, *, depthwise: bool) -> Graph:
    """Two convolutions, whose channels in between are of very different size."""
    second = random(*((8, 1, 3, 3) if depthwise else (4, 8, 3, 3)), seed=2)
    by_channel = SIZES.reshape((8, 1, 1, 1) if depthwise else (1, 8, 1, 1))
    weights = {
        "w1": random(8, 6, 3, 3, seed=1) * SIZES[:, None, None, None],
        "b1": random(8, seed=4) * SIZES,
        "w2": (second / by_channel).astype(np.float32),
    }
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["p"]),
        node(activation, ["p"], ["q"]),
        node("Conv", ["q", "w2"], ["y"], group=8 if depthwise else 1),
    ]
    module = to_relax(make_model(nodes, {"x": X.shape}, ["y"], weights))
    return Graph(apply_passes(module, CANONICALIZE), {})


def signature(graph: Graph) -> Signature:
    channels = int(graph.results[0].ty.shape.values[1])
    return Signature(
        (TensorSpec("x", X.shape, "float32"),), (TensorSpec("y", (1, channels, 6, 6), "float32"),)
    )


def run(module: IRModule, graph: Graph) -> np.ndarray:
    return run_reference(module, signature(graph), {"x": X})["y"]


def int8_db(graph: Graph) -> float:
    """Signal-to-noise ratio of the output under int8 [dB]."""
    plan = plan_quantization(graph, RECIPES["int8"])
    values = FloatModel(graph, signature(graph), plan.tensors, evaluate_here).values({"x": X})
    names = [graph.names[variable] for variable in plan.tensors]
    ranges = {name: (float(values[name].min()), float(values[name].max())) for name in names}
    target = load_target("x86-64-v4-vnni")
    numbers = quantize_numbers(plan, resolve(RECIPES["int8"], target), ranges)
    return sqnr_db(run(graph.module, graph), run(InsertQuantization(numbers)(graph.module), graph))


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu"])
def test_the_function_stays(activation: str, depthwise: bool) -> None:
    graph = network(activation, depthwise=depthwise)
    even = equalize(graph)
    assert even is not graph.module
    np.testing.assert_allclose(run(graph.module, graph), run(even, graph), rtol=1e-4, atol=1e-4)


def test_the_codes_are_better() -> None:
    graph = network("Relu", depthwise=False)
    assert int8_db(Graph(equalize(graph), {})) > int8_db(graph) + 3


def test_what_is_not_homogeneous_stays() -> None:
    graph = network("Sigmoid", depthwise=False)
    assert equalize(graph) is graph.module
