"""Pooling in ceil mode whose last window would start in the padding, below operator set 22."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import compile_model
from edgec.compiler.frontend.resolve_ceil_mode import resolve_ceil_mode
from edgec.compiler.support.silent_onnxruntime import onnxruntime


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ([1, 2, 14, 14], {"kernel_shape": [3, 3], "strides": [3, 3], "pads": [1] * 4}),
        ([1, 2, 5, 6, 7], {"kernel_shape": [2, 3, 3], "strides": [2, 2, 2], "pads": [1] * 6}),
        ([1, 2, 5, 6, 7], {"kernel_shape": [2, 3, 3], "strides": [2, 2, 2]}),
    ],
)
def test_pooling_in_ceil_mode(
    tmp_path: Path, operator: str, shape: list[int], attributes: dict[str, Any]
) -> None:
    """Another pooling and a Flatten follow, which need the right shape."""
    pool = [
        node(operator, [x], [y], ceil_mode=1, **attributes) for x, y in (("x", "p"), ("p", "q"))
    ]
    nodes = [*pool, node("Flatten", ["q"], ["f"]), node("Relu", ["f"], ["y"])]
    model = make_model(nodes, {"x": shape}, ["y"])
    bundle = compile_model(save(model, tmp_path), output=tmp_path / "m.edgec")
    data = random(*shape, seed=7)
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": data})
    np.testing.assert_allclose(bundle.run({"x": data})["y"], expected, atol=1e-5)


def test_padding_that_counts(tmp_path: Path) -> None:
    """The last window of the columns starts in the padding, that of the rows does not end in it."""
    attributes = {"kernel_shape": [3, 3], "strides": [3, 2], "ceil_mode": 1, "pads": [1] * 4}
    pool = node("AveragePool", ["x"], ["p"], count_include_pad=1, **attributes)
    nodes = [pool, node("Flatten", ["p"], ["f"]), node("Relu", ["f"], ["y"])]
    # 14 rows: five windows, not six. 8 columns: five windows, the last with a column more.
    model = make_model(nodes, {"x": [1, 2, 14, 8]}, ["y"])
    resolved = resolve_ceil_mode(model).graph.node[0]
    found = {item.name: onnx.helper.get_attribute_value(item) for item in resolved.attribute}
    assert found["pads"] == [1, 1, 0, 1]
    assert found["ceil_mode"] == 1
    compile_model(save(model, tmp_path), output=tmp_path / "m.edgec")


def test_pads_instead_of_ceil_mode() -> None:
    attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [1] * 4}
    plain = make_model([node("MaxPool", ["x"], ["y"], **attributes)], {"x": [1, 1, 8, 8]}, ["y"])
    (resolved,) = resolve_ceil_mode(plain).graph.node
    found = {item.name: onnx.helper.get_attribute_value(item) for item in resolved.attribute}
    assert found["pads"] == [1, 1, 2, 2]
    assert "ceil_mode" not in found
