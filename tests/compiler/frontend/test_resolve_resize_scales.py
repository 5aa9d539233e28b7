"""Resize by scales whose products ONNX's shape inference rounds down by one."""

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import compile_model
from edgec.compiler.frontend.resolve_resize_scales import resolve_resize_scales
from edgec.compiler.support.silent_onnxruntime import onnxruntime


@pytest.mark.parametrize("opset", [10, 13, 18])
@pytest.mark.parametrize(("scale", "extent"), [(0.35, 20), (0.7, 10), (0.9, 30)])
def test_extents_of_runtimes(scale: float, extent: int, opset: int, tmp_path: Path) -> None:
    """Twice, so that the second depends on the first; then what needs the right shape."""
    inputs = ["s"] if opset == 10 else ["", "s"]
    nodes = [
        node("Resize", ["x", *inputs], ["r"], mode="linear"),
        node("Resize", ["r", *inputs], ["t"], mode="linear"),
        node("Flatten", ["t"], ["f"]),
        node("Relu", ["f"], ["y"]),
    ]
    weights = {"s": np.array([1, 1, scale, 1], np.float32)}
    model = make_model(nodes, {"x": [1, 2, extent, 4]}, ["y"], weights, opset=opset)
    for dim in model.graph.output[0].type.tensor_type.shape.dim:
        dim.ClearField("dim_value")
    bundle = compile_model(save(model, tmp_path), output=tmp_path / "m.edgec")
    x = random(1, 2, extent, 4)
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    found = bundle.run({"x": x})["y"]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_other_scales_stay() -> None:
    weights = {"s": np.array([1, 1, 0.5, 0.7], np.float32)}
    nodes = [node("Resize", ["x", "", "s"], ["y"], mode="linear")]
    model = make_model(nodes, {"x": [1, 1, 8, 9]}, ["y"], weights)
    assert resolve_resize_scales(model) == model
    model = make_model(nodes, {"x": [1, 1, 8, 10]}, ["y"], weights)
    changed = resolve_resize_scales(model)
    (scales,) = (
        numpy_helper.to_array(item)
        for item in changed.graph.initializer
        if item.name == changed.graph.node[0].input[2]
    )
    assert scales.dtype == np.float32
    np.testing.assert_array_equal(scales[:3], weights["s"][:3])
    assert 0 < scales[3] - weights["s"][3] < 2e-7
