"""Each converter of our own against ONNX Runtime, through the whole compile."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.frontend.converter_table import CONVERTERS
from edgec.compiler.frontend.tvm_frontend import tvm_converter


def check(
    folder: Path,
    nodes: list[Any],
    inputs: dict[str, Any],
    weights: dict[str, np.ndarray] | None = None,
    **kwargs: Any,
) -> None:
    """Compile, which compares with ONNX Runtime after each stage."""
    outputs = kwargs.pop("outputs", ["y"])
    path = save(make_model(nodes, inputs, outputs, weights, **kwargs), folder)
    compile_model(path, options=CompileOptions(check_stages=True), output=folder / "model.edgec")


def scalar(value: float) -> np.ndarray:
    return np.asarray(value, np.float32)


@pytest.mark.parametrize(
    ("inputs", "weights"),
    [
        (["x", "lo", "hi"], {"lo": scalar(-0.5), "hi": scalar(0.5)}),
        (["x", "", "hi"], {"hi": scalar(0.5)}),
        (["x", "lo"], {"lo": scalar(-0.5)}),
        (["x", "hi", "lo"], {"lo": scalar(-0.5), "hi": scalar(0.5)}),
    ],
    ids=["both", "upper", "lower", "crossed"],
)
def test_clip(tmp_path: Path, inputs: list[str], weights: dict[str, np.ndarray]) -> None:
    check(tmp_path, [node("Clip", inputs, ["y"])], {"x": [3, 5]}, weights)


def test_clip_attributes(tmp_path: Path) -> None:
    check(tmp_path, [node("Clip", ["x"], ["y"], max=0.3)], {"x": [3, 5]}, opset=9)


@pytest.mark.parametrize(
    "operator",
    [node("HardSigmoid", ["x"], ["y"], alpha=0.3, beta=0.4), node("HardSwish", ["x"], ["y"])],
)
def test_hard_activations(tmp_path: Path, operator: Any) -> None:
    check(tmp_path, [operator], {"x": [3, 50]})


@pytest.mark.parametrize("operator", ["Sum", "Mean", "Max", "Min"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_variadic(tmp_path: Path, operator: str, count: int) -> None:
    names = [f"x{index}" for index in range(count)]
    shapes = dict(zip(names, ([3, 4], [4], [3, 1], [1]), strict=False))
    check(tmp_path, [node(operator, names, ["y"])], shapes)


CONVOLUTIONS: dict[str, tuple[list[int], tuple[int, ...], dict[str, Any]]] = {
    "2d": ([1, 4, 9, 7], (6, 4, 3, 3), {}),
    "strided, dilated, padded": (
        [2, 4, 9, 7],
        (6, 4, 3, 3),
        {"strides": [2, 1], "dilations": [1, 2], "pads": [0, 1, 2, 1]},
    ),
    "grouped": ([1, 4, 6, 6], (6, 2, 3, 3), {"group": 2}),
    "depthwise": ([1, 4, 6, 6], (4, 1, 3, 3), {"group": 4, "pads": [1] * 4}),
    "same upper": ([1, 4, 6, 7], (6, 4, 3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": ([1, 4, 6, 7], (6, 4, 4, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "valid": ([1, 4, 6, 7], (6, 4, 3, 3), {"auto_pad": "VALID"}),
    "1d": ([1, 4, 20], (6, 4, 5), {"pads": [2, 1], "strides": [2]}),
    "3d": ([1, 2, 5, 6, 7], (3, 2, 3, 3, 3), {"pads": [1, 0, 1, 0, 1, 0]}),
}


@pytest.mark.parametrize(("shape", "kernel", "attributes"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_conv(
    tmp_path: Path,
    shape: list[int],
    kernel: tuple[int, ...],
    attributes: dict[str, Any],
    bias: bool,
) -> None:
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    weights = {"w": random(*kernel), "b": random(kernel[0], seed=1)}
    if not bias:
        del weights["b"]
    check(tmp_path, [node("Conv", inputs, ["y"], **attributes)], {"x": shape}, weights)


@pytest.mark.parametrize(
    ("indices", "axis"),
    [
        (np.array(1), 0),
        (np.array(-1), 1),
        (np.array([2, 0, -3]), 0),
        (np.array([[0, 1], [-1, 2]]), 1),
    ],
    ids=["scalar", "negative", "vector", "matrix"],
)
def test_gather(tmp_path: Path, indices: np.ndarray, axis: int) -> None:
    nodes = [node("Gather", ["x", "i"], ["y"], axis=axis)]
    check(tmp_path, nodes, {"x": [3, 4, 5]}, {"i": indices})


def test_gather_by_an_input(tmp_path: Path) -> None:
    from onnx import TensorProto

    nodes = [node("Gather", ["w", "i"], ["y"])]
    kinds = {"i": TensorProto.INT64}
    check(tmp_path, nodes, {"i": [2, 3]}, {"w": random(50, 4)}, dtypes=kinds)


def test_gather_out_of_range_is_refused(tmp_path: Path) -> None:
    nodes = [node("Gather", ["x", "i"], ["y"])]
    model = make_model(nodes, {"x": [3, 4]}, ["y"], {"i": np.array([3])})
    with pytest.raises(UnsupportedModelError, match="outside the 3 elements of axis 0"):
        compile_model(save(model, tmp_path), output=tmp_path / "x.edgec")


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (
            node("LSTM", ["x", "W", "R"], ["y"], hidden_size=4, activations=["Sin"] * 3),
            "activation Sin",
        ),
        (
            node("LSTM", ["x", "W", "R"], ["y"], hidden_size=4, activations=["Elu"] * 2),
            "2 activations, 3 for each direction",
        ),
        (node("Dropout", ["x", "r", "t"], ["y"]), "training mode"),
        (node("Clip", ["x", "W"], ["y"]), "input 'min' has 48 values, one is expected"),
    ],
    ids=["activation", "activations", "dropout", "clip"],
)
def test_refusals_say_what_is_not_supported(tmp_path: Path, operator: Any, message: str) -> None:
    weights = {
        "W": random(1, 16, 3),
        "R": random(1, 16, 4),
        "r": scalar(0.5),
        "t": np.array(True),
    }
    model = make_model([operator], {"x": [5, 2, 3]}, ["y"], weights)
    with pytest.raises(UnsupportedModelError, match=message):
        compile_model(
            save(model, tmp_path),
            options=CompileOptions(parity=False),
            output=tmp_path / "x.edgec",
        )


def test_half_precision_products_sum_in_single(tmp_path: Path) -> None:
    """A sum of thousands: half precision would lose its last addends."""
    half = onnx.TensorProto.FLOAT16
    weights = {"w": np.full((4096, 2), 0.5, np.float16)}
    kinds = {"x": half, "y": half}
    model = make_model(
        [node("MatMul", ["x", "w"], ["y"])], {"x": [1, 4096]}, ["y"], weights, dtypes=kinds
    )
    options = CompileOptions(inputs={"x": np.ones((1, 4096), np.float16)})
    bundle = compile_model(save(model, tmp_path), options=options, output=tmp_path / "m.edgec")
    ((inputs, _),) = bundle.vectors()
    assert bundle.run(inputs)["y"].tolist() == [[2048, 2048]]


def test_extremes_of_infinities(tmp_path: Path) -> None:
    """The maximum of nothing but minus infinity is that, not the least finite number."""
    nodes = [
        node("ReduceMax", ["x"], ["high"], axes=[1]),
        node("Neg", ["x"], ["n"]),
        node("ReduceMin", ["n"], ["low"], axes=[1]),
    ]
    x = np.full((2, 3), -np.inf, np.float32)
    x[0, 1] = 2
    path = save(make_model(nodes, {"x": [2, 3]}, ["high", "low"]), tmp_path)
    compile_model(path, options=CompileOptions(inputs={"x": x}), output=tmp_path / "m.edgec")


@pytest.mark.parametrize("op_type", ["Identity", "Dropout"])
def test_a_graph_of_nothing_but_its_input(tmp_path: Path, op_type: str) -> None:
    check(tmp_path, [node(op_type, ["x"], ["y"])], {"x": [2, 3]})


def test_names_that_are_no_identifiers(tmp_path: Path) -> None:
    nodes = [node("Relu", ["/in.0"], ["gpu_0/1"]), node("Neg", ["gpu_0/1"], ["1:y"])]
    check(tmp_path, nodes, {"/in.0": [2, 3]}, outputs=["1:y"])


def test_similar_names_stay_apart(tmp_path: Path) -> None:
    """All become the same identifier."""
    nodes = [
        node("Relu", ["x.1"], ["a.1"]),
        node("Neg", ["x_1"], ["a/1"]),
        node("Sub", ["a.1", "a/1"], ["a_1"]),
    ]
    check(tmp_path, nodes, {"x.1": [2, 3], "x_1": [2, 3]}, outputs=["a_1"])


def test_several_outputs_and_an_input_as_output(tmp_path: Path) -> None:
    nodes = [node("Split", ["x"], ["a", "b"], axis=1), node("Identity", ["x"], ["c"])]
    check(tmp_path, nodes, {"x": [2, 6]}, outputs=["b", "a", "c"], opset=13)


def test_a_constant_output(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], ["y"]), node("Neg", ["w"], ["z"])]
    check(tmp_path, nodes, {"x": [2]}, {"w": random(3)}, outputs=["y", "z"])


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    from onnx import helper

    function = helper.make_function(
        "acme",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    nodes = [node("Twice", ["x"], ["y"], domain="acme")]
    check(tmp_path, nodes, {"x": [2, 3]}, functions=[function])


def test_an_operator_of_another_domain_is_not_taken_for_onnx() -> None:
    assert tvm_converter("acme", "Relu") is None
    assert tvm_converter("", "Attention") is None
    assert ("", "Conv") in CONVERTERS
