"""Pooling of volumes, through the matcher, against ONNX Runtime."""

from pathlib import Path

import numpy as np
import pytest
from support.kernel_runs import compile_graph
from support.onnx_graphs import make_model, node, random

from edgec.compiler.parity.oracle import run_original

# Strides that shuffle, that do not; padding that windows share with values; dilation; ceil mode;
# rows shorter than a vector and longer.
CASES = (
    ("MaxPool", {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]}),
    ("MaxPool", {"kernel_shape": [3, 3, 3], "pads": [1] * 6}),
    ("MaxPool", {"kernel_shape": [3, 2, 3], "strides": [2, 1, 3], "pads": [1, 0, 1, 1, 1, 0]}),
    ("MaxPool", {"kernel_shape": [2, 2, 3], "dilations": [2, 1, 3], "pads": [1, 0, 2, 0, 0, 1]}),
    ("MaxPool", {"kernel_shape": [2, 2, 3], "strides": [2, 2, 6], "ceil_mode": 1}),
    ("AveragePool", {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]}),
    ("AveragePool", {"kernel_shape": [3, 3, 3], "pads": [1] * 6}),
    ("AveragePool", {"kernel_shape": [2, 3, 2], "pads": [1] * 6, "count_include_pad": 1}),
)


@pytest.mark.parametrize("columns", [5, 45])
def test_against_onnx_runtime(tmp_path: Path, columns: int) -> None:
    nodes = [
        node(operator, ["x"], [f"y{number}"], **attributes)
        for number, (operator, attributes) in enumerate(CASES)
    ]
    names = [f"y{number}" for number in range(len(CASES))]
    shape = (2, 2, 5, 4, columns)
    built = compile_graph(make_model(nodes, {"x": shape}, names), "native", tmp_path)
    # All negative: padding would be the largest value if it counted.
    data = -np.abs(random(*shape)) - 1
    session = built.open(threads=1)
    found, expected = session.run({"x": data}), run_original(built.model, {"x": data})
    for case, name in zip(CASES, names, strict=True):
        np.testing.assert_allclose(found[name], expected[name], 1e-5, err_msg=str(case))
    assert set(built.templates()) == {"volume_pool"}
    other = run_original(built.model, {"x": data * np.float32(1.01)})
    assert not np.allclose(found["y1"], other["y1"], 1e-5)
    data[0, 0, 2, 2, 3] = np.nan
    assert np.isnan(session.run({"x": data})["y1"]).sum() == 27
