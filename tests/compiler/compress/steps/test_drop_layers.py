"""Residual blocks that are left out."""

from typing import Any

import numpy as np
import pytest
from support.onnx_graphs import node, operators, random
from support.small_models import SmallModel, small_model

from edgec.compiler.compress.costs import costs_of
from edgec.compiler.compress.steps.drop_layers import Layers, find_blocks, without_blocks
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.ir.graph import Graph


@pytest.fixture(scope="module")
def model() -> SmallModel:
    """Three residual blocks; the second adds hardly anything."""
    nodes: list[Any] = [node("Conv", ["x", "w"], ["a0"])]
    weights = {"w": random(8, 3, 1, 1)}
    for i, scale in enumerate((1.0, 0.05, 1.0)):
        weights[f"u{i}"] = random(8, 8, 3, 3, seed=2 * i + 1) / 8
        weights[f"v{i}"] = random(8, 8, 1, 1, seed=2 * i + 2) / 3 * np.float32(scale)
        nodes += [
            node("Conv", [f"a{i}", f"u{i}"], [f"b{i}"], pads=[1, 1, 1, 1]),
            node("Relu", [f"b{i}"], [f"c{i}"]),
            node("Conv", [f"c{i}", f"v{i}"], [f"d{i}"]),
            node("Add", [f"a{i}", f"d{i}"], [f"a{i + 1}"]),
        ]
    nodes.append(node("Conv", ["a3", "last"], ["y"]))
    weights["last"] = random(4, 8, 1, 1, seed=9)
    return small_model(nodes, weights, (16, 3, 6, 6))


def test_the_block_that_adds_least_goes(model: SmallModel) -> None:
    module = Layers(ratio=0.2, repair=False).apply(model.graph, model.context)
    (_, second, _) = find_blocks(model.graph)
    assert operators(module)["conv2d"] == operators(model.graph.module)["conv2d"] - 2
    expected = without_blocks(model.graph, [second])
    np.testing.assert_array_equal(model.run(module)["y"], model.run(expected)["y"])
    assert costs_of(Graph(module, {})).macs <= 0.8 * costs_of(model.graph).macs


def test_another_block_costs_more(model: SmallModel) -> None:
    first, second, _ = find_blocks(model.graph)
    least = model.accuracy(without_blocks(model.graph, [second])).sqnr_db
    assert least > model.accuracy(without_blocks(model.graph, [first])).sqnr_db + 10


def test_repair_makes_up_for_some_of_it(model: SmallModel) -> None:
    plain, repaired = (
        model.accuracy(Layers(ratio=0.4, repair=repair).apply(model.graph, model.context)).sqnr_db
        for repair in (False, True)
    )
    assert repaired > plain + 1


def test_skipped_operators_keep_their_block(model: SmallModel) -> None:
    step = Layers(ratio=0.2, repair=False, skip=("d1",))
    (_, second, _) = find_blocks(model.graph)
    kept = step.apply(model.graph, model.context)
    assert np.any(model.run(kept)["y"] != model.run(without_blocks(model.graph, [second]))["y"])


def test_more_than_there_is_is_refused(model: SmallModel) -> None:
    with pytest.raises(UnsupportedModelError, match="all 3 residual blocks together are 9"):
        Layers(ratio=0.999).apply(model.graph, model.context)


def test_no_block_is_said() -> None:
    chain = small_model([node("Conv", ["x", "w"], ["y"])], {"w": random(3, 3, 1, 1)}, (1, 3, 4, 4))
    with pytest.raises(UnsupportedModelError, match="no residual block"):
        Layers(ratio=0.1).apply(chain.graph, chain.context)
