"""Models that ONNX Runtime quantized: they run as integers, and give what it gives."""

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.onnx_graphs import make_model, node, random

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.parity.compare import compare, tolerance_for
from edgec.compiler.parity.oracle import run_original
from edgec.compiler.runtime.session import StaticSession, why_not_here
from edgec.compiler.support.silent_onnxruntime import onnxruntime
from edgec.targets import load_target

quantization = importlib.import_module(f"{onnxruntime.__name__}.quantization")

HERE = [name for name in ("x86-64-v3", "x86-64-v4-vnni") if not why_not_here(load_target(name))]
SHAPE = (1, 3, 19, 17)

# What products and windows of quantized values are computed by.
ON_QUANTIZED = {"integer_conv": 3, "integer_matmul": 1}


def network() -> onnx.ModelProto:
    """Floats: three convolutions, of which one is depthwise, and what stands between them."""
    weights = {
        "w0": random(16, 3, 3, 3, seed=1) / 3,
        "b0": random(16, seed=2),
        "w1": random(16, 1, 3, 3, seed=3) / 2,
        "b1": random(16, seed=4),
        "w2": random(16, 16, 1, 1, seed=5) / 4,
        "w3": random(24, 32, 3, 3, seed=7) / 16,
        "b3": random(24, seed=8),
        "w4": random(24, 10, seed=9) / 4,
        "b4": random(10, seed=10),
    }
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], strides=[2, 2], pads=[1] * 4),
        node("Relu", ["c0"], ["a0"]),
        node("Conv", ["a0", "w1", "b1"], ["c1"], group=16, pads=[1] * 4),
        node("Conv", ["c1", "w2"], ["c2"]),
        node("Add", ["c2", "a0"], ["s"]),
        node("MaxPool", ["s"], ["m"], kernel_shape=[3, 3], pads=[1] * 4),
        node("Concat", ["m", "s"], ["k"], axis=1),
        node("Conv", ["k", "w3", "b3"], ["c3"]),
        node("Relu", ["c3"], ["a3"]),
        node("GlobalAveragePool", ["a3"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "w4", "b4"], ["y"]),
    ]
    return make_model(nodes, {"x": list(SHAPE)}, ["y"], weights)


class Samples(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
    """Eight of them."""

    def __init__(self) -> None:
        self.left = iter([{"x": random(*SHAPE, seed=100 + seed)} for seed in range(8)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


def quantized(folder: Path, form: str, activations: str, weights: str, **options: Any) -> Path:
    """The network as `quantize_static` writes it."""
    source, result = folder / "float.onnx", folder / "quantized.onnx"
    onnx.save(network(), source)
    quantization.quantize_static(
        str(source),
        str(result),
        Samples(),
        quant_format=quantization.QuantFormat[form],
        activation_type=quantization.QuantType[activations],
        weight_type=quantization.QuantType[weights],
        **options,
    )
    return result


def compiled(model: Path, target: str, folder: Path) -> Bundle:
    """With parity checked on a sample of another seed."""
    options = CompileOptions(inputs={"x": random(*SHAPE, seed=1)})
    return compile_model(model, target, options, output=folder / f"{target}.edgec")


def kernels(bundle: Bundle) -> Counter[str]:
    session = bundle.open(1)
    assert isinstance(session, StaticSession)
    return Counter(step.template for step in session.steps())


FORMS: dict[str, dict[str, Any]] = {
    "QDQ": {"form": "QDQ", "activations": "QUInt8", "weights": "QInt8", "per_channel": True},
    "per tensor": {"form": "QDQ", "activations": "QUInt8", "weights": "QInt8"},
    "int8": {"form": "QDQ", "activations": "QInt8", "weights": "QInt8", "per_channel": True},
    "QOperator": {
        "form": "QOperator",
        "activations": "QUInt8",
        "weights": "QInt8",
        "per_channel": True,
    },
    "QOperator int8": {"form": "QOperator", "activations": "QInt8", "weights": "QInt8"},
}


@pytest.mark.parametrize("form", FORMS)
def test_integers_from_end_to_end(tmp_path: Path, form: str) -> None:
    """Weights of 7 bits, which every target multiplies; the same result on each."""
    model = quantized(tmp_path, **FORMS[form], reduce_range=True)
    results = []
    for target in HERE:
        bundle = compiled(model, target, tmp_path)
        used = kernels(bundle)
        assert used["generic"] == 0
        assert used["conv"] == used["matmul"] == 0
        assert {name: used[name] for name in ON_QUANTIZED} == ON_QUANTIZED
        results.append(bundle.run({"x": random(*SHAPE, seed=2)})["y"])
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_nothing_saturates(tmp_path: Path) -> None:
    """Data and weights of 8 bits at the ends of their ranges."""
    weight = np.full((8, 16, 3, 3), 127, np.int8)
    weight[1::2] = -127
    arrays = {
        "s": np.float32(1),
        "z": np.uint8(0),
        "w": weight,
        "ws": np.full(8, 1 / 127, np.float32),
        "wz": np.zeros(8, np.int8),
        "t": np.float32(16 * 9),
        "u": np.uint8(128),
    }
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["f"], axis=0),
        node("Conv", ["d", "f"], ["c"]),
        node("QuantizeLinear", ["c", "t", "u"], ["p"]),
        node("DequantizeLinear", ["p", "t", "u"], ["y"]),
    ]
    shape = [1, 16, 7, 7]
    model = make_model(nodes, {"x": shape}, ["y"], {k: np.asarray(v) for k, v in arrays.items()})
    onnx.save(model, tmp_path / "model.onnx")
    x = np.full(shape, 255, np.float32)
    options = CompileOptions(inputs={"x": x})
    for target in HERE:
        bundle = compile_model(
            tmp_path / "model.onnx", target, options, output=tmp_path / f"{target}.edgec"
        )
        # 255 * 144 / 144 steps either way, cut to the 127 above and 128 below zero.
        quantized = bundle.run({"x": x})["y"][0, :, 0, 0] / (16 * 9)
        np.testing.assert_array_equal(quantized, np.resize([127, -128], 8))


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_uint8_weights(tmp_path: Path, form: str) -> None:
    """Their zero points may be anywhere: what is no int8 less its zero point becomes floats."""
    model = quantized(tmp_path, form, "QUInt8", "QUInt8")
    assert kernels(compiled(model, HERE[0], tmp_path))["generic"] == 0


def test_codes_that_a_run_gives_out_are_exact(tmp_path: Path) -> None:
    """A quantization whose quantized values are seen divides, as ONNX says; others multiply."""
    random_quantized = np.random.default_rng(0).integers(-100, 100, 4000)
    arrays = {"s": np.array(0.3, np.float32), "z": np.array(3, np.int8)}
    x = ((random_quantized + 0.5).astype(np.float32) * np.float32(0.3)).reshape(1, -1)
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    kinds = {"q": onnx.TensorProto.INT8}
    model = make_model(nodes, {"x": list(x.shape)}, ["q", "y"], arrays, dtypes=kinds)
    onnx.save(model, tmp_path / "model.onnx")
    multiplied = np.rint(x * (np.float32(1) / np.float32(0.3)))
    assert np.any(multiplied != np.rint(x / np.float32(0.3)))
    compile_model(
        tmp_path / "model.onnx", HERE[0], CompileOptions(inputs={"x": x}), output=tmp_path / "b"
    )


def test_a_wrong_scale_fails_parity(tmp_path: Path) -> None:
    """What the checks above would say if a weight had another scale."""
    model = quantized(tmp_path, **FORMS["QDQ"])
    inputs = {"x": random(*SHAPE, seed=1)}
    expected = run_original(onnx.load(model), inputs)
    broken = onnx.load(model)
    for tensor in broken.graph.initializer:
        if tensor.name == "w3_scale":
            scale = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(scale * np.float32(1.3), tensor.name))
    onnx.save(broken, tmp_path / "broken.onnx")
    result = compiled(tmp_path / "broken.onnx", HERE[0], tmp_path).run(inputs)
    assert not compare(expected, result, tolerance_for("float32", 20, quantizes=True)).passed
