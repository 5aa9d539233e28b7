"""Matrix products: by constants and by other inputs, of all shapes, with what follows them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.kernel_runs import X86_TARGETS, Branch, check_branches, random_decisions
from support.onnx_graphs import node, random


def by_constant(left: Sequence[int], right: Sequence[int]) -> Branch:
    nodes = [node("MatMul", ["x", "w"], ["y"])]
    return Branch(nodes, {"x": left}, ["matmul"], {"w": random(*right, seed=5)})


def by_input(left: Sequence[int], right: Sequence[int], uses: str = "matmul") -> Branch:
    return Branch([node("MatMul", ["x", "z"], ["y"])], {"x": left, "z": right}, [uses])


BY_CONSTANTS = {
    "tall": by_constant([131, 24], [24, 17]),
    "wide": by_constant([3, 20], [20, 300]),
    "square": by_constant([64, 64], [64, 64]),
    "odd": by_constant([29, 31], [31, 37]),
    "a row": by_constant([1, 77], [77, 100]),
    "a row to a number": by_constant([1, 50], [50, 1]),
    "a column": by_constant([37, 1], [1, 33]),
    "fewer columns than lanes": by_constant([23, 19], [19, 3]),
    "a column more than lanes": by_constant([6, 9], [9, 17]),
    "long sums": by_constant([2, 3000], [3000, 20]),
    "batch": by_constant([2, 3, 7, 21], [21, 18]),
    "batch of one": by_constant([2, 5, 10], [1, 10, 12]),
}

BY_INPUTS = {
    "square": by_input([32, 32], [32, 32]),
    "odd": by_input([13, 11], [11, 37]),
    "a row": by_input([1, 40], [40, 50]),
    "a column": by_input([40, 50], [50, 1]),
    "fewer columns than lanes": by_input([7, 8], [8, 3]),
    "7 columns": by_input([5, 6], [6, 7]),
    "batch": by_input([3, 9, 10], [3, 10, 19]),
    "two batch dimensions": by_input([2, 3, 5, 8], [2, 3, 8, 33]),
    "batch by one matrix": by_input([4, 5, 6], [6, 21]),
    "transposed": Branch(
        [node("Transpose", ["z"], ["t"], perm=[0, 2, 1]), node("MatMul", ["x", "t"], ["y"])],
        {"x": [2, 9, 16], "z": [2, 21, 16]},
        ["transpose", "matmul"],
    ),
}


def gemm(steps: Sequence[Any] = (), extra: Sequence[str] = (), **attributes: Any) -> Branch:
    """[11, 14] by [14, 35] plus bias to `p`, then nodes that make `y` of it."""
    result = "p" if steps else "y"
    shape = (35, 14) if attributes.get("transB") else (14, 35)
    nodes = [node("Gemm", ["x", "w", "b"], [result], **attributes), *steps]
    weights = {"w": random(*shape, seed=5), "b": random(35, seed=6)}
    used = {tensor for item in nodes for tensor in item.input}
    weights |= {n: a for n, a in NUMBERS.items() if n in used}
    return Branch(nodes, {"x": [11, 14], **{n: [11, 35] for n in extra}}, ["matmul"], weights)


NUMBERS = {
    "one": np.float32(1).reshape(()),
    "half": np.float32(0.5).reshape(()),
    "root2": np.float32(2**0.5).reshape(()),
}
GELU = [
    node("Div", ["p", "root2"], ["d"]),
    node("Erf", ["d"], ["e"]),
    node("Add", ["e", "one"], ["f"]),
    node("Mul", ["p", "f"], ["g"]),
    node("Mul", ["g", "half"], ["y"]),
]
EPILOGUES = {
    "bias": gemm(),
    "transposed weight": gemm(transB=1),
    "scaled bias": gemm(beta=1.9),
    "relu": gemm([node("Relu", ["p"], ["y"])]),
    "gelu": gemm(GELU),
    "tanh": gemm([node("Tanh", ["p"], ["y"])]),
    "residual": gemm([node("Add", ["r", "p"], ["s"]), node("Relu", ["s"], ["y"])], ["r"]),
    "quotient": gemm(
        [
            node("Sigmoid", ["p"], ["s"]),
            node("Add", ["s", "half"], ["t"]),
            node("Div", ["r", "t"], ["y"]),
        ],
        ["r"],
    ),
    "by inputs, bias": Branch(
        [node("MatMul", ["x", "z"], ["p"]), node("Add", ["p", "b"], ["y"])],
        {"x": [2, 9, 8], "z": [2, 8, 21]},
        ["matmul"],
        {"b": random(21)},
    ),
    "by inputs, a matrix of biases": Branch(
        [node("MatMul", ["x", "z"], ["p"]), node("Add", ["p", "b"], ["y"])],
        {"x": [2, 9, 8], "z": [2, 8, 21]},
        ["matmul", "elementwise"],
        {"b": random(9, 21)},
    ),
    "by inputs, softmax scale": Branch(
        [node("MatMul", ["x", "z"], ["p"]), node("Mul", ["p", "half"], ["y"])],
        {"x": [2, 9, 8], "z": [2, 8, 5]},
        ["matmul"],
        {"half": NUMBERS["half"]},
    ),
}

FAMILIES = {"by constants": BY_CONSTANTS, "by inputs": BY_INPUTS, "epilogues": EPILOGUES}


@pytest.mark.parametrize("target", X86_TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_default_decision(family: str, target: str, tmp_path: Path) -> None:
    check_branches(FAMILIES[family], target, tmp_path)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", FAMILIES)
def test_any_decision(family: str, seed: int, tmp_path: Path) -> None:
    target = X86_TARGETS[seed % len(X86_TARGETS)]
    check_branches(FAMILIES[family], target, tmp_path, random_decisions(seed))
