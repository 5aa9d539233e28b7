"""RemoveRedundantLayoutOps: reshapes and transposes that move nothing."""

from typing import Any

import numpy as np
import pytest
import tvm_ffi
from support.onnx_graphs import make_model, node, operators, to_relax
from support.relax_runs import run_module

from edgec.compiler.passes import RemoveRedundantLayoutOps

LAYOUT_OPS = {
    "reshape of reshape": (
        [node("Reshape", ["x", "s1"], ["a"]), node("Reshape", ["a", "s2"], ["y"])],
        {"reshape": 1},
    ),
    "reshape and back": (
        [node("Reshape", ["x", "s1"], ["a"]), node("Reshape", ["a", "s0"], ["b"])],
        {},
    ),
    "transpose and back": (
        [
            node("Transpose", ["x"], ["a"], perm=[1, 2, 0]),
            node("Transpose", ["a"], ["b"], perm=[2, 0, 1]),
        ],
        {},
    ),
    "two transposes": (
        [
            node("Transpose", ["x"], ["a"], perm=[1, 2, 0]),
            node("Transpose", ["a"], ["b"], perm=[1, 2, 0]),
        ],
        {"permute_dims": 1},
    ),
    "unit dimension": (
        [
            node("Unsqueeze", ["x", "axis"], ["a"]),
            node("Transpose", ["a"], ["b"], perm=[1, 2, 3, 0]),
        ],
        {"reshape": 1},
    ),
    "a real transpose": ([node("Transpose", ["x"], ["b"], perm=[0, 2, 1])], {"permute_dims": 1}),
}


@pytest.mark.parametrize(("nodes", "expected"), LAYOUT_OPS.values(), ids=LAYOUT_OPS)
def test_moves(nodes: list[Any], expected: dict[str, int]) -> None:
    last = nodes[-1].output[0]
    nodes = [*nodes, node("Relu", [last], ["out"])]
    weights = {
        "s0": np.array([2, 5, 8]),
        "s1": np.array([10, 8]),
        "s2": np.array([80]),
        "axis": np.array([0]),
    }
    before = to_relax(make_model(nodes, {"x": [2, 5, 8]}, ["out"], weights))
    after = RemoveRedundantLayoutOps()(before)
    assert operators(after) == {**expected, "relu": 1}
    np.testing.assert_array_equal(run_module(before), run_module(after))
    assert tvm_ffi.structural_equal(RemoveRedundantLayoutOps()(after), after)
