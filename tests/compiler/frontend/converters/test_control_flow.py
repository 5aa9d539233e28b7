"""Loops, scans and branches against ONNX Runtime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.frontend.control_flow import MAX_TRIPS

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def body(nodes: Sequence[Any], inputs: dict[str, Any], outputs: dict[str, Any]) -> Any:
    """A subgraph; each value is a pair of dtype and shape."""

    def values(kinds: dict[str, Any]) -> list[Any]:
        return [helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()]

    return helper.make_graph(list(nodes), "body", values(inputs), values(outputs))


def check(folder: Path, nodes: Sequence[Any], inputs: Any, outputs: list[str], **kw: Any) -> None:
    path = save(make_model(nodes, inputs, outputs, **kw), folder)
    compile_model(path, options=CompileOptions(), output=folder / "model.edgec")


LOOP_INPUTS = {"i": (INT64, []), "go": (BOOL, []), "s": (FLOAT, [2, 3])}


def test_loops(tmp_path: Path) -> None:
    """Three trips with stacked values and one of a loop inside; one that ends by counting."""
    inner = body(
        [node("Mul", ["t", "scale"], ["t2"]), node("Identity", ["go2"], ["on2"])],
        {"j": (INT64, []), "go2": (BOOL, []), "t": (FLOAT, [2, 3])},
        {"on2": (BOOL, []), "t2": (FLOAT, [2, 3])},
    )
    counted = body(
        [
            node("Identity", ["go"], ["on"]),
            node("Add", ["s", "x"], ["s1"]),
            node("Loop", ["two", "", "s1"], ["s2"], body=inner),
            node("Cast", ["i"], ["f"], to=FLOAT),
            node("Add", ["s2", "f"], ["row"]),
        ],
        LOOP_INPUTS,
        {"on": (BOOL, []), "s2": (FLOAT, [2, 3]), "row": (FLOAT, [2, 3])},
    )
    until = body(
        [
            node("Add", ["n", "two"], ["n1"]),
            node("Less", ["n1", "seven"], ["on"]),
            node("Sin", ["s"], ["s1"]),
        ],
        {"i": (INT64, []), "go": (BOOL, []), "n": (INT64, []), "s": (FLOAT, [2, 3])},
        {"on": (BOOL, []), "n1": (INT64, []), "s1": (FLOAT, [2, 3])},
    )
    nodes = [
        node("Loop", ["three", "", "x"], ["a", "rows"], body=counted),
        node("Loop", ["", "yes", "two", "a"], ["count", "b"], body=until),
        node("Loop", ["zero", "", "x"], ["c", "none"], body=counted),
    ]
    weights = {
        "zero": np.array(0, np.int64),
        "two": np.array(2, np.int64),
        "three": np.array(3, np.int64),
        "seven": np.array(7, np.int64),
        "yes": np.array(True),
        "scale": random(2, 3),
    }
    outputs = ["a", "rows", "count", "b", "c", "none"]
    check(
        tmp_path, nodes, {"x": [2, 3]}, outputs, weights=weights, dtypes={"count": INT64}, opset=16
    )


@pytest.mark.parametrize("opset", [11, 17])
def test_scan_of_several_directions_and_axes(tmp_path: Path, opset: int) -> None:
    step = body(
        [
            node("Add", ["s", "p"], ["s1"]),
            node("Mul", ["q", "w"], ["row"]),
            node("Identity", ["s1"], ["s2"]),
        ],
        {"s": (FLOAT, [3]), "p": (FLOAT, [3]), "q": (FLOAT, [3])},
        {"s1": (FLOAT, [3]), "row": (FLOAT, [3]), "s2": (FLOAT, [3])},
    )
    scan = node(
        "Scan",
        ["s0", "x", "z"],
        ["last", "rows", "sums"],
        body=step,
        num_scan_inputs=2,
        scan_input_axes=[0, 1],
        scan_input_directions=[0, 1],
        scan_output_axes=[1, 0],
        scan_output_directions=[1, 0],
    )
    inputs = {"s0": [3], "x": [4, 3], "z": [3, 4]}
    check(tmp_path, [scan], inputs, ["last", "rows", "sums"], weights={"w": random(3)}, opset=opset)


def branch(op_type: str, shape: list[int], count: int = 1) -> Any:
    names = ["x", *(f"{op_type}_{index}" for index in range(count))]
    nodes = [node(op_type, [names[i]], [names[i + 1]]) for i in range(count)]
    return body(nodes, {}, {names[-1]: (FLOAT, shape)})


def test_a_cheap_branch_at_run_time(tmp_path: Path) -> None:
    nodes = [
        node("ReduceSum", ["x"], ["sum"], keepdims=1),
        node("Greater", ["sum", "zero"], ["c2"]),
        node("Reshape", ["c2", "one"], ["c"]),
        node("If", ["c"], ["y"], then_branch=branch("Relu", [4]), else_branch=branch("Neg", [4])),
    ]
    weights = {"zero": np.zeros(1, np.float32), "one": np.array([1], np.int64)}
    check(tmp_path, nodes, {"x": [4]}, ["y"], weights=weights)


ENDLESS = body(
    [node("Identity", ["go"], ["on"]), node("Sin", ["s"], ["s1"])],
    LOOP_INPUTS,
    {"on": (BOOL, []), "s1": (FLOAT, [2, 3])},
)
BY_DATA = body(
    [
        node("Sin", ["s"], ["s1"]),
        node("ReduceSum", ["s1"], ["sum"], keepdims=0),
        node("Greater", ["sum", "limit"], ["on"]),
    ],
    LOOP_INPUTS,
    {"on": (BOOL, []), "s1": (FLOAT, [2, 3])},
)
REFUSALS = {
    "endless": (node("Loop", ["", "", "x"], ["y"], body=ENDLESS), "it never ends"),
    "long": (node("Loop", ["many", "", "x"], ["y"], body=ENDLESS), f"{MAX_TRIPS + 1} times"),
    "by data": (node("Loop", ["many", "", "x"], ["y"], body=BY_DATA), "depends on data"),
    "trip count": (node("Loop", ["n", "", "x"], ["y"], body=ENDLESS), "'M' must be constant"),
    "expensive": (
        node(
            "If",
            ["c"],
            ["y"],
            then_branch=branch("Relu", [2, 3], 30),
            else_branch=branch("Neg", [2, 3], 3),
        ),
        "its branches are 33 nodes",
    ),
    "shapes": (
        node(
            "If",
            ["c"],
            ["y"],
            then_branch=branch("Relu", [2, 3]),
            else_branch=branch("Flatten", [2, 3]),
        ),
        None,
    ),
}


@pytest.mark.parametrize(("operator", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals_name_the_reason(tmp_path: Path, operator: Any, message: str | None) -> None:
    weights = {"many": np.array(MAX_TRIPS + 1, np.int64), "limit": np.array(0, np.float32)}
    inputs = {"x": [2, 3], "n": [], "c": []}
    model = make_model([operator], inputs, ["y"], weights, dtypes={"n": INT64, "c": BOOL})
    path, output = save(model, tmp_path), tmp_path / "model.edgec"
    if message is None:
        compile_model(path, options=CompileOptions(), output=output)
        return
    with pytest.raises(UnsupportedModelError, match=message):
        compile_model(path, options=CompileOptions(), output=output)
