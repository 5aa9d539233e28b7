"""Folded constants are what ONNX Runtime computes, and no larger than allowed."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.onnx_graphs import make_model, node, random

from edgec.compiler.errors import LimitError
from edgec.compiler.frontend.fold_constants import EXACT, by_onnx_runtime, by_reference
from edgec.compiler.frontend.limits import Limits
from edgec.compiler.frontend.simplify import simplify
from edgec.compiler.parity.oracle import run_original

IMAGE = random(1, 2, 5, 5)
SCALES = np.array([1, 1, 1.6, 1.3], np.float32)
NUMBERS = np.array([3, 1, 3, 2, 1], np.float32)
HALVES = np.array([7, -7, 8], np.int64)

# Operator set, node, constants: each is one that the reference evaluator gets wrong, or a sibling.
FOLDED = {
    "softmax-11": (11, node("Softmax", ["a"], ["c"], axis=1), {"a": IMAGE}),
    "log-softmax-11": (11, node("LogSoftmax", ["a"], ["c"], axis=1), {"a": IMAGE}),
    "hardmax-11": (11, node("Hardmax", ["a"], ["c"], axis=1), {"a": IMAGE}),
    "softmax-13": (13, node("Softmax", ["a"], ["c"], axis=1), {"a": IMAGE}),
    "average-pool-ceil": (
        17,
        node("AveragePool", ["a"], ["c"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        {"a": IMAGE},
    ),
    "max-pool-same-lower": (
        17,
        node("MaxPool", ["a"], ["c"], kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_LOWER"),
        {"a": IMAGE},
    ),
    "resize-align-corners": (
        17,
        node(
            "Resize",
            ["a", "", "s"],
            ["c"],
            mode="linear",
            coordinate_transformation_mode="align_corners",
        ),
        {"a": IMAGE, "s": SCALES},
    ),
    "unique-unsorted": (17, node("Unique", ["a"], ["c"], sorted=0), {"a": NUMBERS}),
    "integer-division": (
        17,
        node("Div", ["a", "b"], ["c"]),
        {"a": HALVES, "b": np.array([2, 2, -3], np.int64)},
    ),
    "lrn": (17, node("LRN", ["a"], ["c"], size=3), {"a": IMAGE}),
    "split": (
        13,
        node("Split", ["a", "n"], ["c", "d"], axis=2),
        {"a": IMAGE, "n": np.array([2, 3], np.int64)},
    ),
    "top-k": (
        13,
        node("TopK", ["a", "k"], ["d", "c"], axis=0),
        {"a": NUMBERS, "k": np.array([3], np.int64)},
    ),
}


@pytest.mark.parametrize("case", FOLDED)
def test_folds_to_what_onnx_runtime_computes(case: str) -> None:
    opset, folded, weights = FOLDED[case]
    # A cast, so that the types of operands agree, and an input that nothing can fold.
    nodes = [
        folded,
        node("Cast", ["c"], ["f"], to=TensorProto.FLOAT),
        node("Add", ["f", "x"], ["y"]),
    ]
    model = make_model(nodes, {"x": [1]}, ["y"], weights, opset=opset)
    simple = simplify(model)
    assert [item.op_type for item in simple.graph.node] == ["Add"]
    x = {"x": np.zeros(1, np.float32)}
    expected, actual = run_original(model, x), run_original(simple, x)
    np.testing.assert_array_equal(actual["y"], expected["y"])


INDEX = np.array([1, 0], np.int64)
BINARY = {"Add", "Sub", "Mul", "Equal"}


def _operands(op_type: str, data: np.ndarray) -> tuple[list[np.ndarray], dict[str, object]]:
    one, axis = np.array([1], np.int64), np.array([0], np.int64)
    if op_type in BINARY:
        return [data, data[:1]], {}
    if op_type == "Concat":
        return [data, data], {"axis": 1}
    if op_type == "Where":
        return [np.array([[True], [False]]), data, data[:, :1]], {}
    second = {
        "Expand": np.array([3, 2, 3], np.int64),
        "Gather": INDEX,
        "Reshape": np.array([3, -1], np.int64),
        "Squeeze": axis,
        "Unsqueeze": one,
    }
    if op_type in second:
        return [data[None] if op_type == "Squeeze" else data, second[op_type]], {}
    if op_type == "Slice":
        return [data, -one, np.array([-9], np.int64), one, -one], {}
    return [data], {}


@pytest.mark.parametrize("op_type", sorted(EXACT))
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int64", "int32", "uint8"])
def test_the_reference_evaluator_is_exact_where_it_folds(op_type: str, dtype: str) -> None:
    data = (random(2, 3) * 100).astype(dtype)
    arrays, attributes = _operands(op_type, data)
    names = [f"i{index}" for index in range(len(arrays))]
    inputs = dict(zip(names, arrays, strict=True))
    values = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in inputs.items()
    ]
    graph = helper.make_graph(
        [helper.make_node(op_type, names, ["y"], **attributes)],
        "one",
        values,
        [onnx.ValueInfoProto(name="y")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    (expected,) = by_onnx_runtime(model, inputs)
    (actual,) = by_reference(model, inputs)
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


def test_folds_types_that_onnx_runtime_lacks() -> None:
    weights = {"a": np.ones(3, ml_dtypes.bfloat16), "b": np.full(3, 2, ml_dtypes.bfloat16)}
    nodes = [node("Add", ["a", "b"], ["c"]), node("Mul", ["c", "x"], ["y"])]
    kinds = {"x": TensorProto.BFLOAT16}
    model = make_model(nodes, {"x": [3]}, ["y"], weights, dtypes=kinds)
    assert [item.op_type for item in simplify(model).graph.node] == ["Mul"]


@pytest.mark.parametrize(
    "nodes",
    [
        [node("ConstantOfShape", ["n"], ["c"])],
        [node("Expand", ["one", "n"], ["c"])],
        [node("Tile", ["one", "n"], ["c"])],
        [node("Range", ["zero", "scalar", "step"], ["c"])],
    ],
    ids=lambda nodes: nodes[0].op_type,
)
def test_constants_are_bounded_before_they_are_made(nodes: list[onnx.NodeProto]) -> None:
    weights = {
        "n": np.array([2**40], np.int64),
        "one": np.ones(1, np.float32),
        "zero": np.array(0, np.float32),
        "scalar": np.array(2**40, np.float32),
        "step": np.array(1, np.float32),
    }
    model = make_model([*nodes, node("Add", ["c", "x"], ["y"])], {"x": [1]}, ["y"], weights)
    with pytest.raises(LimitError, match=r"takes 4.4e\+06 MB.*--limit value"):
        simplify(model)


def test_all_constants_together_are_bounded() -> None:
    doubled = [node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(40)]
    last = [node("ReduceSum", ["c40"], ["s"], keepdims=0), node("Add", ["s", "x"], ["y"])]
    model = make_model([*doubled, *last], {"x": [1]}, ["y"], {"c0": np.ones(8, np.float32)})
    with pytest.raises(LimitError, match="constant and takes"):
        simplify(model, Limits(value_bytes=2**16))
