"""Operators compute in every dtype that ONNX allows them, not in float32 alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, reference
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import compile_model

FLOAT, DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE
HALF, BRAIN = TensorProto.FLOAT16, TensorProto.BFLOAT16
BOOL, INT64 = TensorProto.BOOL, TensorProto.INT64

# By dtype: how far a result may be off that was rounded once or twice.
TOLERANCES = {FLOAT: 1e-6, DOUBLE: 1e-12, HALF: 2e-3, BRAIN: 1.6e-2}


def compile_and_run(
    nodes: list[Any],
    inputs: dict[str, np.ndarray],
    dtype: int,
    folder: Path,
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 22,
) -> np.ndarray:
    """Output y, of a dtype; compiling compares it with ONNX Runtime or ONNX's reference, too."""
    dtypes = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in inputs.items()}
    shapes = {name: value.shape for name, value in inputs.items()}
    model = make_model(nodes, shapes, ["y"], weights, opset=opset, dtypes={**dtypes, "y": dtype})
    bundle = compile_model(save(model, folder), output=folder / "x.edgec")
    result = bundle.run(inputs)["y"]
    assert result.dtype == helper.tensor_dtype_to_np_dtype(dtype)
    return result


def samples(dtype: int) -> np.ndarray:
    """Extents that fill vectors."""
    return random(4, 32).astype(helper.tensor_dtype_to_np_dtype(dtype))


ACTIVATIONS = {
    "Selu": (
        {},
        lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
    ),
    "Celu": ({"alpha": 0.5}, lambda x: np.maximum(x, 0) + np.minimum(0, 0.5 * np.expm1(x / 0.5))),
    "ThresholdedRelu": ({"alpha": 0.5}, lambda x: np.where(x > 0.5, x, 0)),
}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str, dtype: int, tmp_path: Path) -> None:
    attributes, formula = ACTIVATIONS[name]
    x = samples(dtype)
    found = compile_and_run([node(name, ["x"], ["y"], **attributes)], {"x": x}, dtype, tmp_path)
    expected = formula(x.astype(np.float64))
    # Selu's factors are float32 numbers by definition.
    bound = max(TOLERANCES[dtype], 1e-7 if name == "Selu" else 0)
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", [TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT64])
def test_sign_of_unsigned_numbers(dtype: int, tmp_path: Path) -> None:
    x = np.array([[0, 1, 2, 200] * 8], helper.tensor_dtype_to_np_dtype(dtype))
    found = compile_and_run([node("Sign", ["x"], ["y"])], {"x": x}, dtype, tmp_path)
    np.testing.assert_array_equal(found, np.minimum(x, 1))


@pytest.mark.parametrize("dtype", [HALF, BRAIN], ids=TensorProto.DataType.Name)
def test_sign_of_nan(dtype: int, tmp_path: Path) -> None:
    x = samples(dtype)
    x[1, 3], x[2, 5] = np.nan, 0
    found = compile_and_run([node("Sign", ["x"], ["y"])], {"x": x}, dtype, tmp_path)
    np.testing.assert_array_equal(found.astype(np.float32), np.sign(x.astype(np.float32)))


def test_equal_truths(tmp_path: Path) -> None:
    x, z = random(4, 32) > 0, random(4, 32, seed=1) > 0
    found = compile_and_run([node("Equal", ["x", "z"], ["y"])], {"x": x, "z": z}, BOOL, tmp_path)
    np.testing.assert_array_equal(found, x == z)


@pytest.mark.parametrize("dtype", [HALF, BRAIN], ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("name", ["IsNaN", "ArgMax", "ArgMin", "Hardmax", "Pow"])
def test_in_sixteen_bits(name: str, dtype: int, tmp_path: Path) -> None:
    x = np.abs(samples(dtype))
    inputs = {"x": x, "z": samples(dtype)[::-1].copy()} if name == "Pow" else {"x": x}
    attributes = {"axis": 1, "keepdims": 0} if name.startswith("Arg") else {}
    results = {"IsNaN": BOOL, "ArgMax": INT64, "ArgMin": INT64}
    nodes = [node(name, list(inputs), ["y"], **attributes)]
    found = compile_and_run(nodes, inputs, results.get(name, dtype), tmp_path)
    wide = x.astype(np.float64)
    expected = {
        "IsNaN": lambda: np.isnan(wide),
        "ArgMax": lambda: wide.argmax(1),
        "ArgMin": lambda: wide.argmin(1),
        "Hardmax": lambda: np.eye(32)[wide.argmax(1)],
        "Pow": lambda: wide ** inputs["z"].astype(np.float64),
    }[name]()
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=TOLERANCES[dtype])


def test_regions_in_half_floats(tmp_path: Path) -> None:
    corners = np.array([[0, 0, 5, 5], [1, 2, 7, 6]], np.float16)
    inputs = {"x": random(1, 2, 8, 8).astype(np.float16), "rois": corners}
    size = {"output_height": 3, "output_width": 4, "sampling_ratio": 2}
    nodes = [node("RoiAlign", ["x", "rois", "batch"], ["y"], **size)]
    weights = {"batch": np.array([0, 0])}
    found = compile_and_run(nodes, inputs, HALF, tmp_path, weights)
    assert found.shape == (2, 2, 3, 4)


def test_layer_normalization_of_doubles(tmp_path: Path) -> None:
    x = random(4, 32).astype(np.float64)
    weights = {
        "s": random(32, seed=1).astype(np.float64),
        "b": random(32, seed=2).astype(np.float64),
    }
    nodes = [node("LayerNormalization", ["x", "s", "b"], ["y"], epsilon=1e-5)]
    found = compile_and_run(nodes, {"x": x}, DOUBLE, tmp_path, weights)
    centred = x - x.mean(1, keepdims=True)
    expected = centred / np.sqrt(x.var(1, keepdims=True) + np.float32(1e-5))
    np.testing.assert_allclose(found, expected * weights["s"] + weights["b"], atol=1e-12)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_of_doubles(name: str, tmp_path: Path) -> None:
    gates, hidden = {"LSTM": 4, "GRU": 3, "RNN": 1}[name], 8
    weights = {
        "w": random(1, gates * hidden, 5) * 0.3,
        "r": random(1, gates * hidden, hidden, seed=1) * 0.3,
        "b": random(1, 2 * gates * hidden, seed=2),
    }
    weights = {key: value.astype(np.float64) for key, value in weights.items()}
    nodes = [node(name, ["x", "w", "r", "b"], ["y"], hidden_size=hidden)]
    x = random(3, 2, 5).astype(np.float64)
    found = compile_and_run(nodes, {"x": x}, DOUBLE, tmp_path, weights)
    model = make_model(nodes, {"x": x.shape}, ["y"], weights, dtypes={"x": DOUBLE, "y": DOUBLE})
    (expected,) = reference.ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(found, expected, atol=1e-12)
