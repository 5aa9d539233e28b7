"""Quantization, integer products and quantized operators: equal to ONNX Runtime bit by bit."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto
from support.onnx_graphs import make_model, node, save

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.errors import UnsupportedModelError

Array = np.ndarray
MS = "com.microsoft"
KINDS = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}


def quantized(dtype: str, *shape: int, seed: int = 0) -> Array:
    """Quantized values over the whole range of a type."""
    info = ml_dtypes.iinfo(dtype)
    random = np.random.default_rng(seed)
    values = random.integers(int(info.min), int(info.max) + 1, shape)
    return np.asarray(values).astype(np.dtype(dtype))


def floats(*shape: int, seed: int = 0) -> Array:
    return (4 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def scale(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(0.01, 0.1, shape).astype(np.float32)


def check(
    folder: Path,
    nodes: list[Any],
    inputs: dict[str, Array],
    weights: dict[str, Array],
    outputs: dict[str, int],
    opset: int = 25,
) -> None:
    """Compile and compare with ONNX Runtime on these inputs; integers must be equal."""
    kinds = {name: _kind(array) for name, array in inputs.items()} | outputs
    shapes = {name: array.shape for name, array in inputs.items()}
    model = make_model(nodes, shapes, list(outputs), weights, opset=opset, dtypes=kinds)
    for value in model.graph.output:
        value.type.tensor_type.elem_type = outputs[value.name]
    options = CompileOptions(inputs=inputs)
    compile_model(save(model, folder), options=options, output=folder / "model.edgec")


def _kind(array: Array) -> int:
    from onnx.helper import np_dtype_to_tensor_dtype

    return int(np_dtype_to_tensor_dtype(array.dtype))


GRANULARITIES: dict[str, tuple[dict[str, int], tuple[int, ...]]] = {
    "tensor": ({}, ()),
    "one": ({}, (1,)),
    "axis": ({"axis": -2}, (5,)),
    "blocks": ({"axis": 2, "block_size": 4}, (3, 5, 2)),
    "cut block": ({"axis": 2, "block_size": 5}, (3, 5, 2)),
}


@pytest.mark.parametrize(("attributes", "shape"), GRANULARITIES.values(), ids=GRANULARITIES)
def test_quantize_and_dequantize(
    tmp_path: Path, attributes: dict[str, int], shape: tuple[int, ...]
) -> None:
    """Every integer type, with and without zero point."""
    nodes, weights, outputs = [], {"s": scale(*shape)}, {}
    types = ("int8", "uint8", "int16", "uint16", "int4", "uint4", "int2", "uint2")
    for name in types:
        kind = _kind(quantized(name, 1))
        weights[name] = quantized(name, *shape, seed=1)
        nodes += [
            node("QuantizeLinear", ["x", "s", name], [f"q_{name}"], **attributes),
            node("DequantizeLinear", [f"q_{name}", "s", name], [f"d_{name}"], **attributes),
            node("DequantizeLinear", [f"q_{name}", "s"], [f"e_{name}"], **attributes),
            node("QuantizeLinear", ["x", "s"], [f"p_{name}"], output_dtype=kind, **attributes),
        ]
        outputs |= {f"q_{name}": kind, f"d_{name}": 1, f"e_{name}": 1, f"p_{name}": kind}
    check(tmp_path, nodes, {"x": floats(3, 5, 8)}, weights, outputs)


@pytest.mark.parametrize("name", ["e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz"])
@pytest.mark.parametrize("saturate", [0, 1])
def test_quantize_to_float8(tmp_path: Path, name: str, saturate: int) -> None:
    dtype = np.dtype(f"float8_{name}")
    kind = _kind(np.zeros(1, dtype))
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"], saturate=saturate),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
    ]
    x = floats(40, 30) * 10 ** floats(40, 30, seed=1)
    weights = {"s": np.float32(0.05).reshape(()), "z": np.zeros((), dtype)}
    # What does not saturate becomes NaN, which parity does not accept.
    x = x if saturate else np.clip(x, -10, 10)
    check(tmp_path, nodes, {"x": x}, weights, {"q": kind, "d": 1})


def test_ties_are_rounded_to_even(tmp_path: Path) -> None:
    x = np.arange(-40, 41, dtype=np.float32) / 2
    weights = {"s": np.float32(1).reshape(()), "z": np.array(3, np.int8)}
    nodes = [node("QuantizeLinear", ["x", "s", "z"], ["y"])]
    check(tmp_path, nodes, {"x": x}, weights, {"y": TensorProto.INT8})


def test_dynamic_quantization(tmp_path: Path) -> None:
    nodes = []
    inputs = {"x": floats(6, 7), "p": np.abs(floats(5)), "n": -np.abs(floats(5)), "o": np.zeros(3)}
    outputs = {}
    for name in inputs:
        nodes.append(node("DynamicQuantizeLinear", [name], [f"{name}{i}" for i in range(3)]))
        outputs |= {f"{name}0": TensorProto.UINT8, f"{name}1": 1, f"{name}2": TensorProto.UINT8}
    inputs = {name: array.astype(np.float32) for name, array in inputs.items()}
    check(tmp_path, nodes, inputs, {}, outputs)


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "2d": ((1, 4, 9, 7), (6, 4, 3, 3), {"pads": [1, 0, 1, 2], "strides": [2, 1]}),
    "grouped": ((2, 4, 6, 6), (6, 2, 3, 3), {"group": 2, "auto_pad": "SAME_UPPER"}),
    "depthwise": ((1, 6, 6, 6), (6, 1, 3, 3), {"group": 6, "pads": [1] * 4}),
    "1d": ((1, 4, 20), (6, 4, 5), {"pads": [2, 1], "strides": [2]}),
}


@pytest.mark.parametrize(("shape", "kernel", "attributes"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize(
    ("left", "right"), [("uint8", "int8"), ("uint8", "uint8"), ("int8", "int8")]
)
def test_integer_convolutions(
    tmp_path: Path,
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    attributes: dict[str, Any],
    left: str,
    right: str,
) -> None:
    """Per tensor and per channel, with and without bias."""
    channels = kernel[0]
    symmetric = np.zeros(channels, right)
    weights = {
        "xs": scale(),
        "xz": quantized(left, seed=1),
        "w": quantized(right, *kernel, seed=2),
        "ws": scale(channels),
        "wz": symmetric if right == "int8" else quantized(right, 1, seed=3).repeat(channels),
        "w1": scale(seed=4),
        "z1": quantized(right, seed=3),
        "ys": np.float32(4).reshape(()),
        "yz": quantized(left, seed=5),
        "b": np.random.default_rng(6).integers(-9999, 9999, channels).astype(np.int32),
    }
    nodes = [
        node(
            "QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["a"], **attributes
        ),
        node("QLinearConv", ["x", "xs", "xz", "w", "w1", "z1", "ys", "yz"], ["c"], **attributes),
    ]
    outputs = {"a": KINDS[left], "c": KINDS[left]}
    if left == "uint8":
        nodes += [
            node("ConvInteger", ["x", "w", "xz", "z1"], ["i"], **attributes),
            node("ConvInteger", ["x", "w"], ["j"], **attributes),
        ]
        outputs |= {"i": TensorProto.INT32, "j": TensorProto.INT32}
    check(tmp_path, nodes, {"x": quantized(left, *shape)}, weights, outputs, opset=21)


@pytest.mark.parametrize(
    ("left", "right"), [("uint8", "int8"), ("uint8", "uint8"), ("int8", "int8")]
)
def test_integer_matrix_products(tmp_path: Path, left: str, right: str) -> None:
    weights = {
        "az": quantized(left, seed=1),
        "b": quantized(right, 40, 9, seed=2),
        "bz": quantized(right, seed=3),
        "bzs": quantized(right, 9, seed=3),
        "as": scale(),
        "bs": scale(seed=1),
        "bss": scale(9, seed=1),
        "ys": np.float32(3).reshape(()),
        "yz": quantized(left, seed=5),
        "c": np.random.default_rng(6).integers(-9999, 9999, 9).astype(np.int32),
        "f": floats(9, seed=7),
    }
    nodes = [
        node("MatMulInteger", ["x", "b", "az", "bzs"], ["y0"]),
        node("MatMulInteger", ["x", "b"], ["y1"]),
        node("QLinearMatMul", ["x", "as", "az", "b", "bs", "bz", "ys", "yz"], ["y2"]),
        node("QLinearMatMul", ["x", "as", "az", "b", "bss", "bzs", "ys", "yz"], ["y3"]),
        node("MatMulIntegerToFloat", ["x", "b", "as", "bss", "az", "bzs", "f"], ["y4"], domain=MS),
        node("DynamicQuantizeMatMul", ["v", "b", "bs", "bz"], ["y5"], domain=MS),
        node(
            "QGemm",
            ["m", "as", "az", "b", "bss", "bzs", "c", "ys", "yz"],
            ["y6"],
            alpha=0.7,
            domain=MS,
        ),
        node("QGemm", ["m", "as", "az", "b", "bs", "bz"], ["y7"], domain=MS),
    ]
    inputs = {"x": quantized(left, 2, 5, 40), "m": quantized(left, 5, 40), "v": floats(5, 40)}
    outputs = {"y0": 6, "y1": 6, "y2": KINDS[left], "y3": KINDS[left], "y4": 1, "y5": 1}
    outputs |= {"y6": KINDS[left], "y7": 1}
    check(tmp_path, nodes, inputs, weights, outputs, opset=21)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_quantized_operators(tmp_path: Path, dtype: str) -> None:
    """On all pairs of quantized values where there are two operands."""
    zero = 1 if dtype == "int8" else 129
    every = np.arange(256, dtype=np.uint8).view(dtype)
    weights = {
        "s": scale(seed=1),
        "z": np.array(zero - 8, dtype),
        "t": scale(seed=2),
        "u": np.array(zero, dtype),
        "one": np.float32(1 / 256).reshape(()),
        "low": np.array(np.iinfo(dtype).min, dtype),
        "half": np.float32(0.5).reshape(()),
        "r": np.float32(0.25).reshape(()),
    }
    x, y = ["x", "s", "z"], ["y", "t", "u"]
    wide, out = ["r", "u"], ["half", "u"]
    nodes = [
        node("QLinearAdd", [*x, *y, *wide], ["add"], domain=MS),
        node("QLinearMul", [*x, *y, *out], ["mul"], domain=MS),
        node("QLinearMul", ["x", "half", "z", "y", "half", "u", "one", "u"], ["mul2"], domain=MS),
        node("QLinearSigmoid", [*x, "one", "low"], ["sigmoid"], domain=MS),
        node("QLinearLeakyRelu", [*x, "t", "u"], ["leaky"], alpha=0.2, domain=MS),
        node("QLinearConcat", ["r", "u", *x, "k", "t", "u"], ["concat"], axis=1, domain=MS),
        node("QLinearGlobalAveragePool", ["i", "s", "z", "t", "u"], ["global"], domain=MS),
        node(
            "QLinearAveragePool",
            ["i", "s", "z", "s", "u"],
            ["pool"],
            kernel_shape=[3, 2],
            pads=[1, 0, 1, 1],
            strides=[2, 1],
            domain=MS,
        ),
        node(
            "QLinearAveragePool",
            ["i", "s", "z", "t", "u"],
            ["pool2"],
            kernel_shape=[2, 2],
            pads=[1, 1, 0, 0],
            count_include_pad=1,
            domain=MS,
        ),
        node("QLinearSoftmax", ["k", "t", "u", "one", "low"], ["soft"], opset=13, domain=MS),
        node("QLinearSoftmax", ["i", "s", "z", "one", "low"], ["old"], opset=11, domain=MS),
        node("QuantizeLinear", ["v", "t", "u"], ["quantized"], domain=MS),
        node("DequantizeLinear", ["x", "s", "z"], ["dequantized"], domain=MS),
    ]
    inputs = {
        "x": every.reshape(256, 1),
        "y": every.reshape(1, 256),
        "k": quantized(dtype, 256, 20),
        "i": quantized(dtype, 2, 3, 9, 7),
        "v": floats(30),
    }
    outputs = {item.output[0]: KINDS[dtype] for item in nodes} | {"dequantized": 1}
    check(tmp_path, nodes, inputs, weights, outputs, opset=17)


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (node("QLinearSigmoid", ["x", "v", "z", "s", "z"], ["y"], domain=MS), "'scale' must be"),
        (
            node("QLinearConv", ["x", "s", "z", "w", "s", "z", "s", "z"], ["y"], channels_last=1),
            "channels last",
        ),
        (node("QuantizeLinear", ["v", "s3"], ["y"], axis=0), "does not fit axis 0"),
    ],
    ids=["dynamic scale", "channels last", "axis"],
)
def test_refusals(tmp_path: Path, operator: Any, message: str) -> None:
    weights = {
        "s": scale(),
        "s3": scale(3),
        "z": np.array(0, np.uint8),
        "w": quantized("uint8", 2, 2, 1, 1),
    }
    if operator.op_type == "QLinearConv":
        operator.domain = MS
    inputs = {"x": [1, 2, 3, 3], "v": []}
    model = make_model(
        [operator], inputs, ["y"], weights, dtypes={"x": TensorProto.UINT8, "y": TensorProto.UINT8}
    )
    if operator.op_type == "QuantizeLinear":
        model.graph.input[1].type.tensor_type.shape.dim.add().dim_value = 4
    with pytest.raises(UnsupportedModelError, match=message):
        compile_model(save(model, tmp_path), output=tmp_path / "x.edgec")
