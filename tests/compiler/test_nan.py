"""NaN passes through maxima, minima and clips as in ONNX; test inputs lie in the domain."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from support.onnx_graphs import make_model, node, save

from edgec.compiler import CompileOptions, compile_model

LOW, HIGH = np.float32(-0.5).reshape(()), np.float32(0.5).reshape(())

# Each with a bound first and last, behind a kernel of ours (Exp) and as a loop nest of TVM's.
NODES = {
    "relu": [node("Relu", ["x"], ["y"])],
    "clip": [node("Clip", ["x", "low", "high"], ["y"])],
    "max": [node("Max", ["x", "z"], ["y"])],
    "min": [node("Min", ["z", "x"], ["y"])],
    "max-number": [node("Max", ["low", "x"], ["y"])],
    "max-three": [node("Max", ["x", "z", "low"], ["y"])],
    "hard-sigmoid": [node("HardSigmoid", ["x"], ["y"])],
    "hard-swish": [node("HardSwish", ["x"], ["y"])],
    "reduce-max": [node("ReduceMax", ["x"], ["y"], axes=[1])],
    "reduce-max-all": [node("ReduceMax", ["x"], ["y"])],
    "reduce-min": [node("ReduceMin", ["x"], ["y"], axes=[0])],
    "exp-max": [node("Exp", ["x"], ["e"]), node("Max", ["e", "z"], ["y"])],
    "exp-clip": [node("Exp", ["x"], ["e"]), node("Clip", ["e", "low", "high"], ["y"])],
    "sign": [node("Sign", ["x"], ["y"])],
    "conv-relu": [
        node("Conv", ["i", "w"], ["c"]),
        node("Relu", ["c"], ["y"]),
    ],
}


@pytest.mark.parametrize("case", NODES)
def test_nan_passes(case: str, tmp_path: Path) -> None:
    nodes = NODES[case]
    random = np.random.default_rng(0)
    shapes = {"x": [6, 40], "z": [6, 40], "i": [1, 8, 6, 6]}
    used = {name for item in nodes for name in item.input}
    inputs = {
        n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items() if n in used
    }
    for array in inputs.values():
        array.reshape(-1)[[3, 17, 38, 61]] = np.nan
    weights = {
        "low": LOW,
        "high": HIGH,
        "w": random.standard_normal((8, 8, 1, 1)).astype(np.float32),
    }
    model = make_model(
        nodes,
        {name: shapes[name] for name in inputs},
        ["y"],
        {name: array for name, array in weights.items() if name in used},
    )
    # The compile compares with ONNX Runtime, NaN too; but what that makes of NaN in a reduction
    # depends on the place.
    reduces = case.startswith("reduce")
    options = CompileOptions(inputs=inputs, parity=not reduces)
    bundle = compile_model(save(model, tmp_path), options=options, output=tmp_path / "b.edgec")
    found = np.isnan(bundle.run(inputs)["y"])
    assert found.any()
    if reduces:
        axis = {"reduce-max": 1, "reduce-min": 0}.get(case)
        expected = np.isnan(inputs["x"]).any(axis=axis, keepdims=True)
        np.testing.assert_array_equal(found, expected)


def test_positions_of_extremes(tmp_path: Path) -> None:
    """As in ONNX Runtime: NaN stands as the first value, and is passed over elsewhere."""
    nan, low = np.nan, -np.inf
    rows = [[1, nan, 3, 2], [nan, 1, 2, 3], [nan] * 4, [3, nan, 3, nan], [low, nan, low, low]]
    x = np.array(rows, np.float32)
    nodes = [
        node(kind, ["x"], [f"{kind}{axis}{last}"], axis=axis - 2, select_last_index=last)
        for kind in ("ArgMax", "ArgMin")
        for axis in (0, 1)
        for last in (0, 1)
    ]
    outputs = [item.output[0] for item in nodes]
    dtypes = dict.fromkeys(outputs, onnx.TensorProto.INT64)
    model = save(make_model(nodes, {"x": [5, 4]}, outputs, dtypes=dtypes), tmp_path)
    # The compile compares with ONNX Runtime.
    options = CompileOptions(inputs={"x": x})
    bundle = compile_model(model, options=options, output=tmp_path / "b.edgec")
    found = bundle.run({"x": x})
    assert found["ArgMax10"].ravel().tolist() == [2, 0, 0, 0, 0]
    assert found["ArgMax11"].ravel().tolist() == [2, 0, 0, 2, 3]


@pytest.mark.parametrize("op_type", ["Log", "Sqrt", "Asin"])
def test_inputs_are_in_the_domain(op_type: str, tmp_path: Path) -> None:
    model = make_model([node(op_type, ["x"], ["y"])], {"x": [5, 7]}, ["y"])
    bundle = compile_model(save(model, tmp_path), output=tmp_path / "b.edgec")
    ((_, expected),) = bundle.vectors()
    assert np.isfinite(expected["y"]).all()
