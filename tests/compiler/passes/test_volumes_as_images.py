"""Volumes as stacks of images: what is left of them, and the numbers."""

from pathlib import Path
from typing import Any

import numpy as np
from support.kernel_runs import compile_graph
from support.onnx_graphs import make_model, node, operators, random

from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.parity.oracle import run_original


def convolution(y: str, x: str, w: str, **attributes: Any) -> Any:
    return node("Conv", [x, w], [y], **attributes)


WEIGHTS = {
    "w": random(5, 3, 3, 2, 3),
    "b": random(5, seed=1),
    "grouped": random(6, 1, 3, 3, 3, seed=2),
    "dense": random(4, 5, 1, 1, 1, seed=3),
    "wide": random(12, 5, 1, 1, 1, seed=3),
    "next": random(5, 5, 2, 1, 1, seed=4),
    "per channel": random(1, 5, 1, 1, 1, seed=5),
}


def model() -> Any:
    nodes = [
        # A chain that stays on images: bias, activation, residual, concatenation.
        node("Conv", ["x", "w", "b"], ["c"], pads=[1, 0, 1, 1, 1, 0]),
        node("Relu", ["c"], ["r"]),
        node("Mul", ["r", "per channel"], ["m"]),
        convolution("n", "m", "next", pads=[0, 0, 0, 1, 0, 0]),
        node("Add", ["n", "r"], ["s"]),
        node("Concat", ["s", "r"], ["y0"], axis=1),
        # Strides, dilation and padding that reaches further on one side; groups.
        convolution(
            "y1", "x", "w", strides=[2, 1, 2], dilations=[2, 1, 1], pads=[2, 1, 0, 1, 0, 2]
        ),
        node("Concat", ["x", "x"], ["xx"], axis=1),
        convolution("y2", "xx", "grouped", group=6, strides=[2, 1, 1], pads=[1] * 6),
        # Windows of one value, of images, of volumes with few channels and with more.
        convolution("y3", "s", "dense"),
        convolution("y4", "z", "dense"),
        convolution("y5", "z", "wide"),
    ]
    inputs = {"x": (2, 3, 5, 4, 6), "z": (1, 5, 2, 3, 4)}
    return make_model(nodes, inputs, [f"y{i}" for i in range(6)], WEIGHTS)


def test_numbers(tmp_path: Path) -> None:
    built = compile_graph(model(), "native", tmp_path)
    arrays = {"x": random(2, 3, 5, 4, 6), "z": random(1, 5, 2, 3, 4, seed=1)}
    found, expected = built.open(threads=1).run(arrays), run_original(built.model, arrays)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, 1e-4, 1e-4, err_msg=name)
    # The comparison notices other inputs.
    arrays["x"] += np.float32(0.01)
    for name, array in run_original(built.model, arrays).items():
        same = np.allclose(found[name], array, 1e-4, 1e-4)
        assert same == (name in ("y4", "y5")), name
    assert "conv" in built.templates()


def test_a_chain_stays_on_images() -> None:
    found = operators(canonical_model(model()).module)
    assert "conv3d" not in found
    # Two inputs become images, one of them side by side; three results become volumes again.
    assert found["permute_dims"] <= 7, found
