"""Facts about a graph as the file has it."""

import numpy as np
import onnx
from onnx import helper, numpy_helper
from support.onnx_graphs import node, random

from edgec.compiler.frontend.onnx_facts import graph_cost


def test_parameters_wherever_they_stand() -> None:
    """In an initializer, in a Constant node, and in both branches of an If."""

    def weights(name: str, *shape: int) -> onnx.NodeProto:
        return node("Constant", [], [name], value=numpy_helper.from_array(random(*shape), name))

    branches = {
        key: helper.make_graph(
            [weights(key, 4, 4), node("MatMul", ["m", key], [f"{key}_y"])],
            key,
            [],
            [helper.make_tensor_value_info(f"{key}_y", onnx.TensorProto.FLOAT, None)],
        )
        for key in ("then_branch", "else_branch")
    }
    nodes = [
        weights("w", 3, 4),
        node("MatMul", ["x", "w"], ["m"]),
        node("If", ["which"], ["y"], **branches),
    ]
    stored = [numpy_helper.from_array(np.zeros(5, np.float32), "unused")]
    cost = graph_cost(helper.make_graph(nodes, "g", [], [], stored))
    assert cost.parameters == 5 + 3 * 4 + 2 * 4 * 4
    assert cost.parameter_bytes == 4 * cost.parameters
