"""Operators on quantized values become operators on floats with the same result, or stay."""

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto
from support.onnx_graphs import make_model, node, random

from edgec.compiler.frontend.simplify import simplify
from edgec.compiler.support.silent_onnxruntime import onnxruntime

MS = "com.microsoft"
QUANTIZED = ("s", "z")
WEIGHTS = {
    "s": np.float32(0.05),
    "z": np.uint8(120),
    "t": np.float32(0.07),
    "u": np.uint8(100),
    "w": np.random.default_rng(1).integers(-127, 128, (6, 4, 3, 3)).astype(np.int8),
    "ws": np.linspace(0.001, 0.003, 6).astype(np.float32),
    "wz": np.zeros(6, np.int8),
    "bias": np.arange(-300, 300, 100).astype(np.int32),
    "m": np.random.default_rng(2).integers(0, 256, (9, 5)).astype(np.uint8),
    "ms": np.float32(0.01),
    "mz": np.uint8(128),
    "mb": np.arange(5).astype(np.int32) * 1000,
    "p": np.float32(1 / 256),
    "low": np.uint8(0),
}

CASES: dict[str, list[Any]] = {
    "QLinearConv": [
        node(
            "QLinearConv", ["x", *QUANTIZED, "w", "ws", "wz", "t", "u", "bias"], ["y"], pads=[1] * 4
        )
    ],
    "no bias": [node("QLinearConv", ["x", *QUANTIZED, "w", "ws", "wz", "t", "u"], ["y"])],
    "QLinearMatMul": [node("QLinearMatMul", ["x", *QUANTIZED, "m", "ms", "mz", "t", "u"], ["y"])],
    "QGemm": [
        node("Reshape", ["x", "flat"], ["f"]),
        node(
            "QGemm", ["f", *QUANTIZED, "m", "ms", "mz", "mb", "t", "u"], ["y"], alpha=0.5, domain=MS
        ),
    ],
    "QLinearAdd": [
        node("QLinearAdd", ["x", *QUANTIZED, "x", *QUANTIZED, "t", "u"], ["y"], domain=MS)
    ],
    "QLinearMul": [
        node("QLinearMul", ["x", *QUANTIZED, "x", *QUANTIZED, "t", "u"], ["y"], domain=MS)
    ],
    "QLinearConcat": [
        node(
            "QLinearConcat", ["t", "u", "x", *QUANTIZED, "x", *QUANTIZED], ["y"], axis=1, domain=MS
        )
    ],
    "QLinearSigmoid": [node("QLinearSigmoid", ["x", *QUANTIZED, "p", "low"], ["y"], domain=MS)],
    "QLinearLeakyRelu": [
        node("QLinearLeakyRelu", ["x", *QUANTIZED, "t", "u"], ["y"], alpha=0.2, domain=MS)
    ],
    "QLinearSoftmax": [
        node("QLinearSoftmax", ["x", *QUANTIZED, "p", "low"], ["y"], opset=17, domain=MS)
    ],
    "QLinearGlobalAveragePool": [
        node("QLinearGlobalAveragePool", ["x", *QUANTIZED, "t", "u"], ["y"], domain=MS)
    ],
    "QLinearAveragePool": [
        node(
            "QLinearAveragePool", ["x", *QUANTIZED, "t", "u"], ["y"], kernel_shape=[2, 2], domain=MS
        )
    ],
    "moves": [
        node("MaxPool", ["x"], ["a"], kernel_shape=[2, 2]),
        node("Transpose", ["a"], ["b"], perm=[0, 2, 1, 3]),
        node("Flatten", ["b"], ["y"]),
    ],
}
SCALES = {"QLinearSigmoid": ["p", "low"], "QLinearSoftmax": ["p", "low"], "moves": ["s", "z"]}


def model_of(case: str, weights: dict[str, Any] | None = None) -> ModelProto:
    """Floats in, floats out, quantized values between."""
    arrays = {
        **{name: np.asarray(array) for name, array in WEIGHTS.items()},
        "flat": np.array([-1, 9], np.int64),
        **(weights or {}),
    }
    nodes = [
        node("QuantizeLinear", ["data", "s", "z"], ["x"]),
        *CASES[case],
        node("DequantizeLinear", ["y", *SCALES.get(case, ["t", "u"])], ["result"]),
    ]
    return make_model(nodes, {"data": [1, 4, 9, 9]}, ["result"], arrays)


def run(model: ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return np.asarray(session.run(None, {"data": 3 * random(1, 4, 9, 9)})[0])


def kinds(model: ModelProto) -> set[str]:
    return {item.op_type for item in model.graph.node}


@pytest.mark.parametrize("case", CASES)
def test_the_same_codes(case: str) -> None:
    model = model_of(case)
    expanded = simplify(model)
    assert not {kind for kind in kinds(expanded) if kind.startswith("Q") and "Linear" in kind} - {
        "QuantizeLinear"
    }
    assert "QGemm" not in kinds(expanded)
    for item in expanded.graph.node:
        # Nothing but DequantizeLinear reads quantized values.
        if any(
            "QuantizeLinear" in n.op_type and n.output[0] in item.input for n in model.graph.node
        ):
            assert item.op_type == "DequantizeLinear"
    step = float(WEIGHTS["p" if case in ("QLinearSigmoid", "QLinearSoftmax") else "t"])
    off = np.abs(run(expanded) - run(model)) / step
    assert off.max() < 1.01
    assert (off > 0.01).mean() < 0.02


def test_another_scale_would_be_seen() -> None:
    right, wrong = (
        run(simplify(model_of("QLinearConv", {"ws": WEIGHTS["ws"] * factor})))
        for factor in (1, 1.05)
    )
    assert np.abs(right - wrong).max() > 1.01 * float(WEIGHTS["t"])


def test_a_model_that_returns_codes_stays() -> None:
    arrays = {name: np.asarray(array) for name, array in WEIGHTS.items()}
    model = make_model(
        CASES["QLinearConv"],
        {"x": [1, 4, 9, 9]},
        ["y"],
        arrays,
        dtypes={"x": TensorProto.UINT8, "y": TensorProto.UINT8},
    )
    assert kinds(simplify(model)) == {"QLinearConv"}


def test_a_scale_that_a_run_computes_stays() -> None:
    model = model_of("QLinearAdd")
    model.graph.input.append(
        make_model([], {"t": []}, [], {}).graph.input[0],
    )
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "t"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    assert "QLinearAdd" in kinds(simplify(model))


def test_weights_stay_codes() -> None:
    nodes = [
        node("DequantizeLinear", ["w", "ws", "wz"], ["fw"], axis=0),
        node("Conv", ["x", "fw"], ["y"]),
    ]
    arrays = {name: np.asarray(array) for name, array in WEIGHTS.items()}
    model = make_model(nodes, {"x": [1, 4, 9, 9]}, ["y"], arrays, opset=21)
    assert [item.op_type for item in simplify(model).graph.node] == ["DequantizeLinear", "Conv"]
