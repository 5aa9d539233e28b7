"""Transposed convolutions as ordinary ones: where, and the numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.kernel_runs import compile_graph
from support.onnx_graphs import make_model, node, operators, random, to_relax

from edgec.compiler.parity.oracle import run_original
from edgec.compiler.passes import ConvTransposeByPhases

# Weight, and attributes: groups, dilation with and without stride, gaps between windows, one
# and three dimensions, outputs that are cut off and added.
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "groups": ((4, 3, 4, 3), {"group": 2, "strides": [2, 1], "pads": [1, 0, 1, 0]}),
    "depthwise": ((4, 1, 3, 4), {"group": 4, "strides": [2, 2], "output_padding": [1, 0]}),
    "dilation": ((4, 3, 3, 2), {"dilations": [2, 3], "pads": [1, 2, 2, 1]}),
    "both": ((4, 3, 3, 3), {"dilations": [2, 3], "strides": [4, 2], "pads": [0, 1, 3, 0]}),
    "gaps": ((4, 3, 1, 2), {"strides": [2, 3], "output_padding": [1, 1]}),
    "signal": ((4, 2, 3), {"dilations": [3], "strides": [2], "pads": [1, 2]}),
    "volume": ((4, 2, 2, 2, 2), {"strides": [2, 2, 2]}),
    "overlap": ((4, 2, 3, 2, 3), {"strides": [2, 1, 2], "pads": [1, 0, 1, 0, 1, 1]}),
}
INPUTS = {1: (2, 4, 7), 2: (1, 4, 5, 4), 3: (1, 4, 3, 3, 2)}


def test_numbers(tmp_path: Path) -> None:
    nodes, weights, inputs = [], {}, {}
    for number, (shape, attributes) in enumerate(CASES.values()):
        weights[f"w{number}"] = random(*shape, seed=number)
        rank = len(shape) - 2
        inputs[f"x{rank}"] = INPUTS[rank]
        nodes.append(
            node("ConvTranspose", [f"x{rank}", f"w{number}"], [f"y{number}"], **attributes)
        )
    names = [f"y{number}" for number in range(len(CASES))]
    built = compile_graph(make_model(nodes, inputs, names, weights), "native", tmp_path)
    arrays = {name: random(*shape, seed=9) for name, shape in inputs.items()}
    found, expected = built.open(threads=1).run(arrays), run_original(built.model, arrays)
    for case, name in zip(CASES, names, strict=True):
        np.testing.assert_allclose(found[name], expected[name], 1e-4, 1e-4, err_msg=case)
    other = run_original(built.model, {name: a + np.float32(0.01) for name, a in arrays.items()})
    assert not any(np.allclose(found[name], other[name], 1e-4, 1e-4) for name in names)


@pytest.mark.parametrize(
    ("shape", "attributes", "left"),
    [
        ((4, 3, 2, 2), {"strides": [2, 2]}, 1),
        ((4, 3, 3, 3), {"strides": [1, 2], "pads": [1] * 4}, 1),
        (*CASES["groups"], 0),
        (*CASES["gaps"], 0),
    ],
)
def test_those_with_a_kernel_are_left(
    shape: tuple[int, ...], attributes: dict[str, Any], left: int
) -> None:
    nodes = [node("ConvTranspose", ["x", "w"], ["y"], **attributes)]
    module = to_relax(make_model(nodes, {"x": INPUTS[2]}, ["y"], {"w": random(*shape)}))
    assert operators(ConvTransposeByPhases()(module))["conv2d_transpose"] == left
