from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from support.onnx_graphs import make_model, node, random

from edgec.compiler.errors import ShapeError, TensorInputError
from edgec.compiler.frontend.simplify import simplify
from edgec.compiler.frontend.specialize import specialize
from edgec.compiler.ir.signature import graph_signature


def two_inputs(**kwargs: Any) -> onnx.ModelProto:
    shapes = {"a": ["batch", 3], "b": ["batch", 3]}
    return make_model([node("Add", ["a", "b"], ["y"])], shapes, ["y"], **kwargs)


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    return {spec.name: spec.shape for spec in graph_signature(model.graph).inputs}


def test_a_named_dimension_is_fixed_everywhere() -> None:
    special = specialize(two_inputs(), {"a": (2, 3)}, {})
    assert shapes_of(special.proto) == {"a": (2, 3), "b": (2, 3)}


def test_the_given_model_stays_as_it_is() -> None:
    model = two_inputs()
    before = model.SerializeToString()
    specialize(model, {"a": (2, 3)}, {})
    assert model.SerializeToString() == before


def test_initializers_are_no_inputs() -> None:
    model = make_model(
        [node("MatMul", ["x", "w"], ["y"])],
        {"x": [1, 3], "w": [3, 2]},
        ["y"],
        {"w": random(3, 2)},
    )
    assert shapes_of(specialize(model, {}, {}).proto) == {"x": (1, 3)}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({}, r"input a: dimension 0 \(batch\) not fixed; pass --shape a=\?,3.*input b:"),
        ({"a": (0, 3)}, "dimension 0 is 0; it must be at least 1"),
        ({"a": (-1, 3)}, "dimension 0 is -1; it must be at least 1"),
        ({"a": (1, -1)}, "dimension 1 is -1; it must be at least 0"),
        ({"a": (1,)}, "has 1 dimensions, the input has 2"),
        ({"a": (1, 4)}, "dimension 1 is 4, the model fixes it to 3"),
        ({"aa": (1, 3)}, r"'aa', which is no input of the model.*\(inputs: a, b\)"),
        ({"a": (1, 3), "b": (2, 3)}, r"dimension 0 \(batch\) is 2, another input makes it 1"),
    ],
    ids=["missing", "zero", "negative", "negative inside", "rank", "fixed", "name", "tied"],
)
def test_wrong_shapes(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        specialize(two_inputs(), shapes, {})


def test_an_unknown_rank_is_named() -> None:
    model = make_model([node("Relu", ["x"], ["y"])], {"x": None}, ["y"])
    with pytest.raises(ShapeError, match="input x has no shape"):
        specialize(model, {}, {})
    assert shapes_of(specialize(model, {"x": (2, 5)}, {}).proto) == {"x": (2, 5)}


def test_a_zero_that_the_model_declares_can_be_confirmed() -> None:
    model = make_model([node("Relu", ["x"], ["y"])], {"x": [2, 0]}, ["y"])
    with pytest.raises(ShapeError):
        specialize(model, {}, {})
    assert shapes_of(specialize(model, {"x": (2, 0)}, {}).proto) == {"x": (2, 0)}


def branching_model() -> onnx.ModelProto:
    """Relu or Neg, as an input says."""
    then = onnx.helper.make_graph([node("Relu", ["x"], ["t"])], "then", [], [_info("t")])
    other = onnx.helper.make_graph([node("Neg", ["x"], ["e"])], "else", [], [_info("e")])
    nodes = [node("If", ["flag"], ["y"], then_branch=then, else_branch=other)]
    return make_model(nodes, {"x": [1, 4], "flag": []}, ["y"], dtypes={"flag": TensorProto.BOOL})


def _info(name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4])


@pytest.mark.parametrize(("flag", "operator"), [(True, "Relu"), (False, "Neg")])
def test_freezing_an_input_decides_a_branch(flag: bool, operator: str) -> None:
    special = specialize(branching_model(), {}, {"flag": np.array(flag)})
    graph = simplify(special.proto).graph
    assert [item.op_type for item in graph.node] == [operator]
    assert special.frozen["flag"].dtype == np.bool_


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.array([[1, 2]]), r"shape \[1, 2\] does not fit \[2\]"), (np.array([0.5, 1]), "int64")],
    ids=["shape", "dtype"],
)
def test_a_frozen_value_must_fit(value: np.ndarray, message: str) -> None:
    model = make_model(
        [node("Reshape", ["x", "shape"], ["y"])],
        {"x": [1, 4], "shape": [2]},
        ["y"],
        dtypes={"shape": TensorProto.INT64},
    )
    with pytest.raises(TensorInputError, match=message):
        specialize(model, {}, {"shape": value})


def test_shape_chains_fold() -> None:
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"]),
        node("Unsqueeze", ["batch", "axes"], ["first"]),
        node("Concat", ["first", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"]),
    ]
    weights = {
        "zero": np.int64(0).reshape(()),
        "axes": np.array([0]),
        "rest": np.array([-1]),
    }
    model = make_model(nodes, {"x": ["n", 2, 3]}, ["y"], weights)
    graph = simplify(specialize(model, {"x": (4, 2, 3)}, {}).proto).graph
    assert [item.op_type for item in graph.node] == ["Reshape"]
    assert graph_signature(graph).outputs[0].shape == (4, 6)


def test_an_output_that_is_an_input_keeps_its_shape_and_name() -> None:
    model = make_model([node("Relu", ["x"], ["y"])], {"x": ["n", 3]}, ["y"])
    model.graph.output.add().CopyFrom(model.graph.input[0])
    simple = simplify(specialize(model, {"x": (2, 3)}, {}).proto)
    signature = graph_signature(simple.graph)
    assert [(s.name, s.shape) for s in signature.inputs] == [("x", (2, 3))]
    assert [(s.name, s.shape) for s in signature.outputs] == [("y", (2, 3)), ("x", (2, 3))]


def test_an_output_that_is_listed_twice_is_kept_once() -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("Neg", ["r"], ["q"])]
    model = make_model(nodes, {"x": [2, 3]}, ["r", "q"])
    model.graph.output.add().CopyFrom(model.graph.output[0])
    special = specialize(model, {}, {}).proto
    assert [value.name for value in special.graph.output] == ["r", "q"]
    assert [value.name for value in model.graph.output] == ["r", "q", "r"]
