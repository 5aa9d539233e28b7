"""Instance and group normalization in one kernel, with what follows."""

from pathlib import Path

import numpy as np
from onnx import TensorProto
from support.kernel_runs import compile_graph
from support.onnx_graphs import make_model, node, random

from edgec.compiler.parity.oracle import run_original

WEIGHTS = {"s": random(6), "b": random(6, seed=1), "near": np.float32(30)}
NODES = (
    node("InstanceNormalization", ["x", "s", "b"], ["i"]),
    node("Relu", ["i"], ["y0"]),
    node("GroupNormalization", ["x", "s", "b"], ["g"], num_groups=2, epsilon=1e-2),
    node("Sigmoid", ["g"], ["y1"]),
    node("Add", ["x", "near"], ["far"]),
    node("InstanceNormalization", ["far", "s", "b"], ["y2"]),
    # Its rows hold no whole plane of a channel: scale and bias are steps of their own.
    node("GroupNormalization", ["line", "s", "b"], ["y3"], num_groups=3),
)


def test_against_onnx_runtime(tmp_path: Path) -> None:
    inputs = {"x": (2, 6, 5, 13), "line": (2, 6, 1)}
    names = [f"y{number}" for number in range(4)]
    dtypes = {"y1": TensorProto.FLOAT}
    model = make_model(NODES, inputs, names, WEIGHTS, opset=21, dtypes=dtypes)
    built = compile_graph(model, "native", tmp_path)
    arrays = {name: random(*shape, seed=2) for name, shape in inputs.items()}
    found, expected = built.open(threads=1).run(arrays), run_original(built.model, arrays)
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], 1e-3, 2e-5, err_msg=name)
    arrays["x"][1, 2] *= np.float32(1.1)
    arrays["x"][1, 3, 0] += np.float32(0.1)
    assert not np.allclose(found["y1"], run_original(built.model, arrays)["y1"], 1e-3, 2e-5)
    assert built.templates_of("y0") == ["standardize"]
    assert built.templates_of("y1") == ["standardize"]
