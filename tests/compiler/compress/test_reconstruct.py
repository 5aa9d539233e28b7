"""Repair by least squares, layer behind layer."""

import numpy as np
from support.onnx_graphs import node, random
from support.small_models import SmallModel, small_model

from edgec.compiler.compress.costs import costs_of
from edgec.compiler.compress.steps.channels import Channels
from edgec.compiler.ir.graph import Graph

BLOCKS = 5


def deep() -> SmallModel:
    """Wide layers between narrow ones, as in MobileNet: they can do with less."""
    nodes, weights, value = [], {}, "x"
    for block in range(BLOCKS):
        last = block == BLOCKS - 1
        wide, relu, narrow = f"wide {block}", f"relu {block}", "y" if last else f"narrow {block}"
        weights |= {
            f"w{block}": random(32, 6, 1, 1, seed=4 * block) * np.float32(0.4),
            f"a{block}": random(32, seed=4 * block + 1) * np.float32(0.3),
            f"v{block}": random(6, 32, 3, 3, seed=4 * block + 2) * np.float32(0.08),
            f"b{block}": random(6, seed=4 * block + 3) * np.float32(0.3),
        }
        nodes += [
            node("Conv", [value, f"w{block}", f"a{block}"], [wide]),
            node("Relu", [wide], [relu]),
            node("Conv", [relu, f"v{block}", f"b{block}"], [narrow], pads=[1, 1, 1, 1]),
        ]
        value = narrow
    return small_model(nodes, weights, (8, 6, 10, 10))


def test_an_error_is_made_up_for_once() -> None:
    """Not by each of the layers behind it, as if the others did not."""
    model = deep()
    step = Channels(ratio=0.35, multiple=1, allocate="uniform")
    repaired = step.apply(model.graph, model.context)
    plain = step.model_copy(update={"repair": False}).apply(model.graph, model.context)
    share = costs_of(Graph(repaired, {})).macs / costs_of(model.graph).macs
    assert share < 0.65
    assert model.accuracy(repaired).sqnr_db > model.accuracy(plain).sqnr_db + 6
