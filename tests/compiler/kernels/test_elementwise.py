"""Elementwise chains on their own: every step, and every way to broadcast."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.kernel_runs import X86_TARGETS, Branch, check_branches
from support.onnx_graphs import node, random

LAST = ["elementwise"]


def one(op_type: str, **attributes: Any) -> Branch:
    return Branch([node(op_type, ["x"], ["y"], **attributes)], {"x": [3, 5, 7]}, LAST)


def positive(op_type: str) -> Branch:
    """Behind an exponential, for square roots and divisors."""
    return Branch([node("Exp", ["x"], ["e"]), node(op_type, ["e"], ["y"])], {"x": [3, 5, 7]}, LAST)


def number(op_type: str, *, left: bool, value: float = 1.7) -> Branch:
    """Of exp(x) and a number."""
    inputs = ["n", "e"] if left else ["e", "n"]
    nodes = [node("Exp", ["x"], ["e"]), node(op_type, inputs, ["y"])]
    return Branch(nodes, {"x": [41]}, LAST, {"n": np.float32(value).reshape(())})


def two(op_type: str, x: Sequence[int], z: Sequence[int]) -> Branch:
    """Of tanh(z) and exp(x); one of them gets a kernel of its own."""
    nodes = [
        node("Exp", ["x"], ["e"]),
        node("Tanh", ["z"], ["t"]),
        node(op_type, ["t", "e"], ["y"]),
    ]
    return Branch(nodes, {"x": x, "z": z}, ["elementwise"] * 2)


UNARY = {
    **{
        op_type.lower(): one(op_type)
        for op_type in ("Abs", "Relu", "Sigmoid", "Tanh", "Erf", "Exp", "HardSwish", "HardSigmoid")
    },
    "leaky relu": one("LeakyRelu", alpha=0.2),
    "sqrt": positive("Sqrt"),
    "clip": Branch(
        [node("Clip", ["x", "low", "high"], ["y"])],
        {"x": [3, 5, 7]},
        LAST,
        {"low": np.float32(-0.5).reshape(()), "high": np.float32(0.75).reshape(())},
    ),
    "silu": Branch(
        [node("Sigmoid", ["x"], ["s"]), node("Mul", ["s", "x"], ["y"])], {"x": [2, 9]}, LAST
    ),
}

NUMBERS = {
    f"{op_type.lower()}{', number first' * left}": number(op_type, left=left)
    for op_type in ("Add", "Sub", "Mul", "Div", "Max", "Min")
    for left in (False, True)
}

TWO = {
    **{
        f"{op_type.lower()} of equal shapes": two(op_type, [4, 9], [4, 9])
        for op_type in ("Add", "Sub", "Mul", "Div", "Max", "Min")
    },
    **{f"{n} values": two("Add", [n], [n]) for n in (1, 3, 16, 63, 4999)},
    "by columns": two("Mul", [6, 37], [37]),
    "by columns, more dimensions": two("Sub", [2, 3, 4, 21], [1, 21]),
    "by a constant row": Branch(
        [node("Mul", ["x", "w"], ["y"])], {"x": [6, 19]}, LAST, {"w": random(19)}
    ),
}


def image(other: Sequence[int], op_type: str = "Mul", steps: Sequence[Any] = ()) -> Branch:
    """A 1x1 convolution that is read twice, so that it takes no steps, and another input."""
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node(op_type, ["c", "z"], ["s"]),
        *steps,
        node("Add", ["s", "c"], ["y"]),
    ]
    weights = {"w": random(20, 6, 1, 1, seed=4)}
    return Branch(nodes, {"x": [2, 6, 5, 4], "z": other}, ["conv", "elementwise"], weights)


BLOCKED = {
    "images": image([2, 20, 5, 4]),
    "a number for each channel of each image": image([2, 20, 1, 1]),
    "on the left": Branch(
        [
            node("Conv", ["x", "w"], ["c"]),
            node("Sub", ["z", "c"], ["s"]),
            node("Mul", ["s", "c"], ["y"]),
        ],
        {"x": [2, 6, 5, 4], "z": [2, 20, 5, 4]},
        ["conv", "elementwise"],
        {"w": random(20, 6, 1, 1, seed=4)},
    ),
    "a number for each channel": Branch(
        [
            node("Conv", ["x", "w"], ["c"]),
            node("Max", ["c", "g"], ["s"]),
            node("Sub", ["s", "c"], ["y"]),
        ],
        {"x": [2, 6, 5, 4]},
        ["conv", "elementwise"],
        {"w": random(20, 6, 1, 1, seed=4), "g": random(20, 1, 1)},
    ),
}

FAMILIES = {"unary": UNARY, "numbers": NUMBERS, "two": TWO, "blocked": BLOCKED}


@pytest.mark.parametrize("target", X86_TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_elementwise(family: str, target: str, tmp_path: Path) -> None:
    check_branches(FAMILIES[family], target, tmp_path)
