"""Kernels that lose their margin."""

from typing import Any

import numpy as np
import pytest
from support.onnx_graphs import node, random
from support.small_models import SmallModel, small_model

from edgec.compiler.compress.step import StepContext
from edgec.compiler.compress.steps.filter_size import FilterSize
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import op_name, shape_of


def with_margin(weights: np.ndarray, rows: int, scale: float) -> np.ndarray:
    """A kernel whose outermost rows and columns are small."""
    scaled = weights * np.float32(scale)
    inner = slice(rows, weights.shape[2] - rows)
    scaled[:, :, inner, inner] = weights[:, :, inner, inner]
    return scaled


def network(scale: float) -> SmallModel:
    """3x3, strided, dilated and depthwise 5x5 with a small margin; 3x3 with a large one."""
    nodes: list[Any] = [
        node("Conv", ["x", "w0", "b0"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "w1"], ["c"], pads=[4, 4, 4, 4], dilations=[2, 2], group=6),
        node("Relu", ["c"], ["d"]),
        node("Conv", ["d", "w2"], ["y"], pads=[1, 1, 1, 1]),
    ]
    weights = {
        "w0": with_margin(random(6, 3, 3, 3), 1, scale),
        "b0": random(6, seed=1),
        "w1": with_margin(random(6, 1, 5, 5, seed=2), 1, scale),
        "w2": random(4, 6, 3, 3, seed=3),
    }
    return small_model(nodes, weights, (8, 3, 12, 12))


def kernels(graph: Graph) -> list[tuple[int, ...]]:
    """Height and width of each convolution's kernel."""
    calls = [value for _, value in graph.bindings if op_name(value) == "relax.nn.conv2d"]
    return [(shape_of(call.args[1]) or ())[2:] for call in calls]


@pytest.mark.parametrize("given", [False, True])
def test_only_small_margins_go(given: bool) -> None:
    model = network(0.02)
    context: StepContext = model.context if given else model.blind
    module = FilterSize(energy=0.05).apply(model.graph, context)
    assert kernels(Graph(module, {})) == [(1, 1), (3, 3), (3, 3)]
    assert model.accuracy(module).sqnr_db > 20


def test_margins_of_zero_are_not_missed() -> None:
    model = network(0.0)
    module = FilterSize(energy=1e-6).apply(model.graph, model.blind)
    assert kernels(Graph(module, {})) == [(1, 1), (3, 3), (3, 3)]
    expected, actual = model.run(model.graph.module)["y"], model.run(module)["y"]
    # Sums of some tens of values of order 10, in another order.
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3)


def test_repair_makes_up_for_some_of_it() -> None:
    model = network(0.3)
    plain, repaired = (
        model.accuracy(
            FilterSize(energy=0.6, repair=repair).apply(model.graph, model.context)
        ).sqnr_db
        for repair in (False, True)
    )
    assert repaired > plain + 1


def test_large_margins_stay() -> None:
    model = network(1.0)
    with pytest.raises(UnsupportedModelError, match=r"for 1% of its energy \(3 have one\)"):
        FilterSize(energy=0.01).apply(model.graph, model.context)


def test_a_kernel_without_padding_stays() -> None:
    weights = {"w": with_margin(random(3, 3, 3, 3), 1, 0.0)}
    model = small_model([node("Conv", ["x", "w"], ["y"])], weights, (1, 3, 6, 6))
    with pytest.raises(UnsupportedModelError, match="0 have one"):
        FilterSize(energy=0.5).apply(model.graph, model.blind)
