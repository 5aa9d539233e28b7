"""Files that contradict themselves, or ask for everything, are refused in one line."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler.errors import EdgecError, LimitError, ModelFileError, UnsupportedModelError
from edgec.compiler.frontend.limits import Limits
from edgec.compiler.frontend.onnx_file import read_onnx
from edgec.compiler.frontend.simplify import simplify
from edgec.compiler.frontend.specialize import specialize


def matmul_model() -> onnx.ModelProto:
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Cast", ["m"], ["y"], to=TensorProto.FLOAT16)]
    return make_model(nodes, {"x": [1, 4]}, ["y"], {"w": random(4, 4)})


def refused(model: onnx.ModelProto, folder: Path, kind: type[EdgecError], match: str) -> None:
    path = save(model, folder)
    with pytest.raises(kind, match=match) as caught:
        read_onnx(path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code in (3, 4)


@pytest.mark.parametrize(
    ("dims", "match"),
    [
        ([4, 5], r"tensor 'w' says float \[4, 5\], but holds 64 bytes"),
        ([4, -4], "negative dimension"),
        ([4] * 100, "has 100 dimensions"),
        ([0, 2**62, 2**62], "has dimensions .* edgec takes less than"),
    ],
)
def test_dims_and_bytes_agree(tmp_path: Path, dims: list[int], match: str) -> None:
    model = matmul_model()
    model.graph.initializer[0].dims[:] = dims
    refused(model, tmp_path, EdgecError, match)


def test_typed_values_are_counted(tmp_path: Path) -> None:
    model = matmul_model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data.extend([1.0] * 15)
    refused(model, tmp_path, ModelFileError, "but holds 15 values")


def test_packed_values_are_counted(tmp_path: Path) -> None:
    """Two elements of four bits are in one number."""
    model = matmul_model()
    packed = helper.make_tensor("p", TensorProto.INT4, [3], [1, 2, 3])
    model.graph.initializer.append(packed)
    read_onnx(save(model, tmp_path))


@pytest.mark.parametrize("place", ["initializer", "input", "cast"])
@pytest.mark.parametrize(
    ("kind", "error", "match"),
    [
        (99, ModelFileError, "element type 99"),
        (TensorProto.COMPLEX64, UnsupportedModelError, "complex numbers"),
    ],
)
def test_element_types(
    tmp_path: Path, place: str, kind: int, error: type[EdgecError], match: str
) -> None:
    model = matmul_model()
    if place == "initializer":
        model.graph.initializer[0].data_type = kind
    elif place == "input":
        model.graph.input[0].type.tensor_type.elem_type = kind
    else:
        model.graph.node[1].attribute[0].i = kind
    refused(model, tmp_path, error, match)


@pytest.mark.parametrize("name", [b"weight_w", b"m"])
def test_names_are_utf8(tmp_path: Path, name: bytes) -> None:
    model = matmul_model()
    model.graph.initializer[0].name = model.graph.node[0].input[1] = "weight_w"
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString().replace(name, b"\xff" * len(name)))
    with pytest.raises(ModelFileError, match=r"is '\\\\xff.*not UTF-8"):
        read_onnx(path)


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"length": "9" * 40}, "the length of its external data"),
        ({"length": "-1"}, "the length of its external data"),
        ({"length": "128"}, "but holds 128 bytes"),
        ({"offset": str(2**40)}, "needs bytes"),
        ({"location": "/dev/zero"}, "must be a file in the model's folder"),
        ({"location": "../w.bin"}, "must be a file in the model's folder"),
        ({"location": "pipe"}, "is no regular file"),
        ({"location": "gone.bin"}, "does not exist"),
        ({"location": "nul\0.bin"}, "does not exist"),
    ],
)
def test_external_data_is_there(tmp_path: Path, entries: dict[str, str], match: str) -> None:
    model = matmul_model()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "w.bin").write_bytes(bytes(64))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    refused(model, tmp_path, ModelFileError, match)


def test_external_data_is_bounded(tmp_path: Path) -> None:
    """A sparse file says that it has a terabyte."""
    model = matmul_model()
    with (tmp_path / "w.bin").open("wb") as stream:
        stream.truncate(2**40)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    refused(model, tmp_path, LimitError, "--limit file")


@pytest.mark.parametrize("what", ["device", "folder"])
def test_the_model_is_a_regular_file(tmp_path: Path, what: str) -> None:
    with pytest.raises(ModelFileError, match=r"no regular file|a folder"):
        read_onnx(Path("/dev/zero") if what == "device" else tmp_path)


def nested_functions(depth: int) -> onnx.ModelProto:
    """Functions of which each calls the next one twice."""
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    functions = []
    for level in range(depth):
        op_type, domain = ("Relu", "") if level == depth - 1 else (f"f{level + 1}", "f")
        nodes = [
            helper.make_node(op_type, [a], [b], domain=domain) for a, b in (("a", "b"), ("b", "c"))
        ]
        functions.append(helper.make_function("f", f"f{level}", ["a"], ["c"], nodes, versions))
    # By hand: shape inference, which `make_model` does, unfolds them all.
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    call = node("f0", ["x"], ["y"], domain="f")
    graph = helper.make_graph([call], "nested", [x], [y])
    return helper.make_model(graph, opset_imports=versions, functions=functions, ir_version=10)


def test_functions_of_exponential_size(tmp_path: Path) -> None:
    refused(nested_functions(40), tmp_path, LimitError, "unfolds to 1.1e.12 nodes.*--limit nodes")


def test_functions_that_call_themselves(tmp_path: Path) -> None:
    model = nested_functions(3)
    model.functions[2].node[0].op_type, model.functions[2].node[0].domain = "f0", "f"
    refused(model, tmp_path, ModelFileError, "call themselves")


def test_thousands_of_calls_take_seconds() -> None:
    simple = simplify(nested_functions(11))
    assert len(simple.graph.node) == 2**11


def test_an_input_has_an_element_type() -> None:
    model = matmul_model()
    model.graph.input[0].type.tensor_type.elem_type = 0
    with pytest.raises(ModelFileError, match="input x has no element type"):
        specialize(model, {}, {})


def test_inputs_and_values_are_bounded() -> None:
    nodes = [node("Expand", ["x", "n"], ["e"]), node("ReduceSum", ["e"], ["y"], keepdims=0)]
    model = make_model(nodes, {"x": [1]}, ["y"], {"n": np.array([2**29], np.int64)})
    with pytest.raises(LimitError, match=r"value e \[536870912\] takes 2147 MB"):
        simplify(model)
    simplify(model, Limits(value_bytes=2**31))
    wide = make_model([node("Relu", ["x"], ["y"])], {"x": [2**30]}, ["y"])
    with pytest.raises(LimitError, match="input x"):
        simplify(wide)
