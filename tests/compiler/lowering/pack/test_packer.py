"""PackLayouts: which operators become kernels, where layouts change, what joins an epilogue."""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.kernel_runs import Branch, check_branches
from support.onnx_graphs import make_model, node, operators, random, to_relax

from edgec.compiler.ir.relax_helpers import op_name
from edgec.compiler.lowering.legalize import lower
from edgec.compiler.lowering.pack import Notes, PackLayouts
from edgec.compiler.passes import CANONICALIZE
from edgec.targets import load_target

LANES = 8


def packed(
    nodes: Sequence[Any],
    inputs: Mapping[str, Sequence[int]],
    outputs: Sequence[str] = ("y",),
    weights: Mapping[str, np.ndarray] | None = None,
) -> Any:
    """The module after the pass."""
    return PackLayouts(LANES)(canonical(nodes, inputs, outputs, weights))


def canonical(
    nodes: Sequence[Any],
    inputs: Mapping[str, Sequence[int]],
    outputs: Sequence[str] = ("y",),
    weights: Mapping[str, np.ndarray] | None = None,
) -> Any:
    """The module before it."""
    used = {tensor for item in nodes for tensor in item.input}
    chosen = {name: array for name, array in (weights or WEIGHTS).items() if name in used}
    module = to_relax(make_model(nodes, inputs, outputs, chosen))
    for rewrite in CANONICALIZE:
        module = rewrite(module)
    return module


def counts(module: Any) -> dict[str, int]:
    """Kernels by template; `pack` and `unpack` apart; operators that stay by their own name."""
    found: Counter[str] = Counter()
    for name, number in operators(module).items():
        if name != "edgec.pack":
            found[name.removeprefix("edgec.")] += number
    for _, workload in workloads(module, "edgec.pack"):
        found["unpack" if workload["unpack"] else "pack"] += 1
    return dict(found)


def workloads(module: Any, operator: str) -> list[tuple[str, dict[str, Any]]]:
    """Names and workloads of the calls of one kernel."""
    bindings = [b for block in module["main"].body.blocks for b in block.bindings]
    return [
        (binding.var.name, json.loads(str(binding.value.attrs["workload"])))
        for binding in bindings
        if op_name(binding.value) == operator
    ]


def steps(module: Any, operator: str) -> list[list[str]]:
    """The epilogue of each call of one kernel."""
    field = "steps" if operator == "edgec.elementwise" else "epilogue"
    return [[s["op"] for s in w[field]] for _, w in workloads(module, operator)]


WEIGHTS = {
    "first": random(24, 3, 3, 3),
    "dense": random(24, 24, 3, 3),
    "depthwise": random(24, 1, 3, 3),
    "point": random(24, 24, 1, 1),
    "odd": random(21, 24, 1, 1),
    "bias": random(24),
    "up": random(24, 24, 2, 2),
    "wide": random(24, 10),
    "grown": np.array([1, 24, 16, 16]),
    "row": np.array([1, 24]),
    "halves": np.array([12, 12]),
    "three": np.array([3]),
    "eleven": np.array([11]),
    "axis": np.array([1]),
    "split": np.array([1, 4, 6, 8, 8]),
    "whole": np.array([1, 24, 8, 8]),
}
FIRST = node("Conv", ["x", "first"], ["a"], pads=[1] * 4)
IMAGE = {"x": [1, 3, 8, 8]}


def block(source: str, result: str) -> list[Any]:
    """Two convolutions and a way around them."""
    return [
        node("Conv", [source, "dense", "bias"], [f"{result}1"], pads=[1] * 4),
        node("Relu", [f"{result}1"], [f"{result}2"]),
        node("Conv", [f"{result}2", "dense", "bias"], [f"{result}3"], pads=[1] * 4),
        node("Add", [f"{result}3", source], [f"{result}4"]),
        node("Relu", [f"{result}4"], [result]),
    ]


RESIDUAL = [FIRST, *block("a", "b"), *block("b", "c"), *block("c", "d")]
HEAD = [
    node("GlobalAveragePool", ["d"], ["e"]),
    node("Reshape", ["e", "row"], ["f"]),
    node("MatMul", ["f", "wide"], ["y"]),
]


def test_a_residual_network_changes_layout_only_at_its_edges() -> None:
    # The input has few channels and is read as it is; one pixel in full blocks is the same bytes.
    module = packed([*RESIDUAL, *HEAD], IMAGE)
    kernels = counts(module)
    reshapes = kernels.pop("reshape")
    assert kernels == {"conv": 7, "global_pool": 1, "matmul": 1}
    assert reshapes <= 2
    block_steps = [["add", "relu"], ["add", "add", "relu"]]
    assert steps(module, "edgec.conv") == [[], *block_steps * 3]


def test_an_image_comes_out_in_plain_layout() -> None:
    assert counts(packed(RESIDUAL, IMAGE, ["d"])) == {"conv": 7, "unpack": 1}


def test_an_input_of_many_channels_is_packed_once() -> None:
    nodes = [
        node("Conv", ["x", "point"], ["a"]),
        node("Conv", ["x", "dense"], ["b"], pads=[1] * 4),
        node("Add", ["a", "b"], ["y"]),
    ]
    kernels = counts(packed(nodes, {"x": [1, 24, 8, 8]}))
    assert kernels == {"pack": 1, "conv": 2, "unpack": 1}


# What keeps the blocked layout between two convolutions, and the kernels that it costs.
THROUGH: dict[str, tuple[list[Any], dict[str, int]]] = {
    "depthwise": ([node("Conv", ["a", "depthwise"], ["b"], pads=[1] * 4, group=24)], {"pool": 1}),
    "max pool": ([node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2])], {"pool": 1}),
    "mean pool": ([node("AveragePool", ["a"], ["b"], kernel_shape=[2, 2])], {"pool": 1}),
    "resize": (
        [node("Resize", ["a", "", "", "grown"], ["b"], mode="nearest")],
        {"resize": 1},
    ),
    "transposed": (
        [node("ConvTranspose", ["a", "up"], ["b"], strides=[2, 2])],
        {"conv_transpose": 1},
    ),
    "activation": ([node("HardSwish", ["a"], ["b"])], {}),
    "concat and split": (
        [
            node("Concat", ["a", "a"], ["c"], axis=1),
            node("Split", ["c"], ["d", "b"], axis=1),
        ],
        {"channel_map": 2},
    ),
    "halves, swapped": (
        [
            node("Split", ["a", "halves"], ["c", "d"], axis=1),
            node("Concat", ["d", "c"], ["b"], axis=1),
        ],
        {"channel_map": 3},
    ),
    "slice and concat": (
        [
            node("Slice", ["a", "three", "eleven", "axis"], ["c"]),
            node("Concat", ["c", "a", "a"], ["d"], axis=1),
            node("Slice", ["d", "three", "grown24", "axis"], ["b"]),
        ],
        {"channel_map": 3},
    ),
    "channel shuffle": (
        [
            node("Reshape", ["a", "split"], ["c"]),
            node("Transpose", ["c"], ["d"], perm=[0, 2, 1, 3, 4]),
            node("Reshape", ["d", "whole"], ["b"]),
        ],
        {"channel_map": 1},
    ),
    "squeeze and excite": (
        [
            node("GlobalAveragePool", ["a"], ["m"]),
            node("Conv", ["m", "point", "bias"], ["n"]),
            node("Sigmoid", ["n"], ["g"]),
            node("Mul", ["a", "g"], ["b"]),
        ],
        {"global_pool": 1, "conv": 1, "elementwise": 1},
    ),
}


@pytest.mark.parametrize("name", THROUGH)
def test_stays_blocked(name: str) -> None:
    middle, kernels = THROUGH[name]
    weights = WEIGHTS | {"grown24": np.array([27])}
    nodes = [FIRST, *middle, node("Conv", ["b", "odd"], ["y"])]
    expected = Counter(kernels) + Counter({"conv": 2, "unpack": 1})
    found = counts(packed(nodes, IMAGE, weights=weights))
    # Parts that nobody reads any more are left to dead code elimination.
    leftover = {"unpack", "reshape", "permute_dims", "split"}
    assert {k: n for k, n in found.items() if k not in leftover} == {
        k: n for k, n in expected.items() if k not in leftover
    }
    check_layout_changes(name, nodes, weights)


def check_layout_changes(name: str, nodes: Sequence[Any], weights: Mapping[str, Any]) -> None:
    """After lowering, which removes dead code, only the output is unpacked."""
    target = load_target("x86-64-v3")
    assert target.float_lanes == LANES
    lowered = lower(packed(nodes, IMAGE, weights=weights), target)
    assert counts(lowered).get("unpack", 0) == 1, name
    assert counts(lowered).get("pack", 0) == 0, name


def test_an_operator_without_kernel_is_between_two_changes() -> None:
    """The control: the check does see changes."""
    nodes = [FIRST, node("Sin", ["a"], ["b"]), node("Conv", ["b", "odd"], ["y"])]
    assert counts(packed(nodes, IMAGE)) == {"conv": 2, "sin": 1, "pack": 1, "unpack": 2}


CHAIN = [node("Conv", ["x", "first", "bias"], ["a"])]
EPILOGUES: dict[str, tuple[list[Any], list[str], list[list[str]], list[list[str]]]] = {
    "a chain": (
        [node("Relu", ["a"], ["b"]), node("Mul", ["b", "two"], ["c"]), node("Tanh", ["c"], ["y"])],
        ["y"],
        [["add", "relu", "multiply_number", "tanh"]],
        [],
    ),
    "not what is returned too": (
        [node("Relu", ["a"], ["y"])],
        ["a", "y"],
        [["add"]],
        [["relu"]],
    ),
    "not what is read twice": (
        [node("Relu", ["a"], ["b"]), node("Tanh", ["a"], ["c"]), node("Sub", ["b", "c"], ["y"])],
        ["y"],
        [["add"]],
        [["tanh"], ["relu", "subtract"]],
    ),
    "one of two convolutions takes the sum": (
        [node("Conv", ["x", "first"], ["b"]), node("Add", ["a", "b"], ["y"])],
        ["y"],
        [[], ["add", "add"]],
        [],
    ),
}


@pytest.mark.parametrize("name", EPILOGUES)
def test_epilogues(name: str) -> None:
    nodes, outputs, convolutions, chains = EPILOGUES[name]
    weights = WEIGHTS | {"two": np.float32(2).reshape(())}
    module = packed([*CHAIN, *nodes], IMAGE, outputs, weights)
    found = steps(module, "edgec.conv"), steps(module, "edgec.elementwise")
    assert found == (convolutions, chains)


# Passes rewrite these into what templates cover.
REWRITTEN = {
    "three dimensions": Branch(
        [node("Conv", ["x", "w"], ["y"])],
        {"x": [1, 2, 5, 6, 7]},
        ["transpose", "generic", "conv"],
        {"w": random(3, 2, 3, 3, 3)},
    ),
    "grouped transposed": Branch(
        [node("ConvTranspose", ["x", "w"], ["y"], group=2)],
        {"x": [1, 4, 5, 5]},
        ["conv"],
        {"w": random(4, 3, 3, 3)},
    ),
    "transposed with gaps": Branch(
        [node("ConvTranspose", ["x", "w"], ["y"], strides=[3, 3])],
        {"x": [1, 4, 5, 5]},
        ["conv", "conv", "channel_map", "transpose", "generic"],
        {"w": random(4, 3, 2, 2)},
    ),
}

# No template covers these; they stay right on the generic path.
FALLBACKS = {
    "weights at run time": Branch(
        [node("Conv", ["x", "w"], ["y"])], {"x": [1, 4, 6, 6], "w": [5, 4, 3, 3]}, ["generic"]
    ),
    "an operator that no kernel knows": Branch(
        [node("Conv", ["x", "w"], ["c"]), node("Sin", ["c"], ["y"])],
        {"x": [1, 4, 5, 5]},
        ["conv", "generic"],
        {"w": random(9, 4, 1, 1)},
    ),
    "products of a constant": Branch(
        [node("MatMul", ["w", "x"], ["y"])], {"x": [6, 7]}, ["matmul"], {"w": random(5, 6)}
    ),
    "products that broadcast": Branch(
        [node("MatMul", ["x", "z"], ["y"])], {"x": [3, 1, 4, 5], "z": [2, 5, 6]}, ["generic"]
    ),
    "blocked and along lines": Branch(
        [node("Conv", ["x", "w"], ["c"]), node("Add", ["c", "z"], ["y"])],
        {"x": [1, 4, 5, 6], "z": [6]},
        ["conv", "generic"],
        {"w": random(9, 4, 1, 1)},
    ),
}


def test_what_is_rewritten_stays_right(tmp_path: Path) -> None:
    check_branches(REWRITTEN, "native", tmp_path)


def test_what_no_template_covers_stays_right(tmp_path: Path) -> None:
    check_branches(FALLBACKS, "native", tmp_path)


def test_a_declined_operator_is_logged_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    # Lines of the image, not channels.
    nodes = [FIRST, node("Slice", ["a", "axis", "three", "two"], ["y"])]
    notes = Notes()
    module = canonical(nodes, IMAGE, weights={**WEIGHTS, "two": np.array([2])})
    with caplog.at_level(logging.DEBUG, "edgec.pack"):
        PackLayouts(LANES, notes=notes)(module)
    (decline,) = [d for d in notes.declines if d.generic]
    assert decline.operator == "relax.strided_slice"
    assert "whole channels" in decline.reason
    assert f"{decline.label}: {decline.operator}: {decline.reason}" in caplog.text
    assert f"strided_slice: {decline.reason}: {decline.label}" in notes.describe()


def test_nothing_is_told_of_operators_that_have_kernels() -> None:
    notes = Notes()
    PackLayouts(LANES, notes=notes)(canonical(RESIDUAL, IMAGE, ["d"]))
    assert notes.describe() == ""
