"""Concatenations and splits without copies: what is left out, what must stay, and the results."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.kernel_runs import Branch, check_branches, compile_graph
from support.onnx_graphs import make_model, node, random

from edgec.compiler.codegen.in_place import move_channels_in_place
from edgec.compiler.codegen.memory import plan_memory
from edgec.compiler.ir.program import KernelCall, Program, Value
from edgec.compiler.kernels.layout import ChannelMapWorkload
from edgec.compiler.kernels.template import to_text

SHAPE = [1, 3, 6, 4]


def conv(source: str, name: str) -> Any:
    return node("Conv", [source, f"w_{name}"], [name], pads=[1] * 4)


def network(nodes: list[Any], uses: int, maps: int = 0, **channels: tuple[int, int]) -> Branch:
    """A graph of convolutions (output and input channels by name) and as many channel maps."""
    weights = {
        f"w_{name}": random(*sizes, 3, 3, seed=i) / np.float32(sizes[1])
        for i, (name, sizes) in enumerate(channels.items())
    }
    weights["half"] = np.array([16, 16])
    order = ["conv"] * uses + ["channel_map"] * maps
    return Branch(nodes, {"x": SHAPE}, order, weights)


BRANCHES = {
    "two parts, the last not full": network(
        [conv("x", "a"), conv("a", "b"), node("Concat", ["a", "b"], ["y"], axis=1)],
        2,
        a=(32, 3),
        b=(21, 32),
    ),
    # What grows is read while its next part is written, and lies in what it grows to.
    "dense block": network(
        [
            conv("x", "a"),
            conv("a", "b"),
            node("Concat", ["a", "b"], ["ab"], axis=1),
            conv("ab", "c"),
            node("Concat", ["a", "b", "c"], ["abc"], axis=1),
            conv("abc", "d"),
            node("Concat", ["abc", "d"], ["y"], axis=1),
        ],
        4,
        a=(16, 3),
        b=(32, 16),
        c=(16, 48),
        d=(16, 64),
    ),
    # As in YOLO: both halves of a split go into the concatenation, in their places.
    "split and joined": network(
        [
            conv("x", "a"),
            node("Split", ["a", "half"], ["p", "q"], axis=1),
            conv("q", "b"),
            node("Concat", ["p", "q", "b"], ["y"], axis=1),
        ],
        2,
        a=(32, 3),
        b=(16, 16),
    ),
    "parts that are not whole blocks are copied": network(
        [conv("x", "a"), conv("a", "b"), node("Concat", ["a", "b"], ["y"], axis=1)],
        2,
        1,
        a=(21, 3),
        b=(16, 21),
    ),
    "one part twice": network(
        [conv("x", "a"), node("Concat", ["a", "a"], ["y"], axis=1)], 1, 1, a=(16, 3)
    ),
    # The halves change places: the first is a view, the result a copy.
    "halves the other way round": network(
        [
            conv("x", "a"),
            node("Split", ["a", "half"], ["p", "q"], axis=1),
            node("Concat", ["q", "p"], ["y"], axis=1),
        ],
        1,
        1,
        a=(32, 3),
    ),
}


def test_against_onnx_runtime(tmp_path: Path) -> None:
    """With the templates that each branch is left with."""
    check_branches(BRANCHES, "native", tmp_path)


def test_what_the_caller_owns_is_no_part(tmp_path: Path) -> None:
    """A result of the network lies in its caller's memory, so that its concatenation is a copy."""
    weights = {"w_a": random(16, 3, 3, 3), "w_b": random(16, 16, 3, 3)}
    nodes = [
        conv("x", "a"),
        node("GlobalAveragePool", ["a"], ["m"]),
        node("Concat", ["m", "m2"], ["y"], axis=1),
        node("Relu", ["m"], ["m2"]),
    ]
    nodes[2], nodes[3] = nodes[3], nodes[2]
    model = make_model(nodes, {"x": SHAPE}, ["m", "y"], weights)
    built = compile_graph(model, "native", tmp_path)
    outputs = built.open().run(built.inputs())
    joined = np.concatenate([outputs["m"], np.maximum(outputs["m"], 0)], axis=1)
    np.testing.assert_array_equal(outputs["y"], joined)


def program(gap: int, size: int) -> Program:
    """Two parts of a concatenation, so many other steps of a size between them."""
    part = [Value("temporary", (1, 1, 4, 4, 16), "float32", label=name) for name in "ab"]
    result = Value("temporary", (1, 2, 4, 4, 16), "float32", label="ab")
    between = [Value("temporary", (size,), "float32") for _ in range(gap)]
    picks = tuple((number, channel) for number in range(2) for channel in range(16))
    work = to_text(ChannelMapWorkload(1, 16, (16, 16), picks))
    chain = [part[0], *between, part[1]]
    steps = [KernelCall("k", pair, 1, "", "conv") for pair in pairwise(chain)]
    steps.append(KernelCall("map", (*part, result), 1, "", "channel_map", workload=work))
    steps.append(KernelCall("k", (result,), 1, "", "conv"))
    return Program([], [], steps)


@pytest.mark.parametrize(("size", "stays"), [(16, False), (512, True)])
def test_no_room_is_kept_for_what_comes_late(size: int, stays: bool) -> None:
    """Between the parts lives more than they need: the result would have to live beside it."""
    made = program(3, size)
    before = plan_memory(made).arena_bytes
    move_channels_in_place(made)
    assert any(step.template == "channel_map" for step in made.steps) == stays
    assert plan_memory(made).arena_bytes <= 1.1 * before
