"""RecognizeActivations and RecognizeLayerNorm: every spelling, and the near misses."""

import math
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from support.onnx_graphs import make_model, node, operators, random, to_relax
from support.relax_runs import run_module

from edgec.compiler.passes import (
    CANONICALIZE,
    FoldAffine,
    RecognizeActivations,
    RecognizeLayerNorm,
    RemoveRedundantMoves,
)

WEIGHTS = {
    "zero": np.float32(0).reshape(()),
    "one": np.float32(1).reshape(()),
    "two": np.float32(2).reshape(()),
    "three": np.float32(3).reshape(()),
    "six": np.float32(6).reshape(()),
    "half": np.float32(0.5).reshape(()),
    "sixth": np.float32(1 / 6).reshape(()),
    "root2": np.float32(math.sqrt(2)).reshape(()),
    "rsqrt2": np.float32(1.4142**-1).reshape(()),
    "cubic": np.float32(0.044715).reshape(()),
    "outer": np.float32(math.sqrt(2 / math.pi)).reshape(()),
    "1.702": np.float32(1.702).reshape(()),
    "learned": np.float32(0.37).reshape(()),
}


def canonical(nodes: list[Any], **kwargs: Any) -> tuple[Any, Any]:
    model = make_model(nodes, {"x": [2, 8]}, ["y"], WEIGHTS, **kwargs)
    module = before = to_relax(model)
    for rewrite in CANONICALIZE:
        module = rewrite(module)
    return before, module


CLIP6 = [node("Add", ["x", "three"], ["a"]), node("Clip", ["a", "zero", "six"], ["g"])]
ERF = [
    node("Div", ["x", "root2"], ["a"]),
    node("Erf", ["a"], ["e"]),
    node("Add", ["e", "one"], ["g"]),
]
TANH = [
    node("Mul", ["x", "x"], ["x2"]),
    node("Mul", ["x2", "x"], ["x3"]),
    node("Mul", ["cubic", "x3"], ["c"]),
    node("Add", ["x", "c"], ["s"]),
    node("Mul", ["s", "outer"], ["o"]),
    node("Tanh", ["o"], ["t"]),
    node("Add", ["one", "t"], ["g"]),
]

SPELLINGS = {
    "relu6": ("clip", [node("Clip", ["x", "zero", "six"], ["y"])]),
    "silu": ("silu", [node("Sigmoid", ["x"], ["s"]), node("Mul", ["s", "x"], ["y"])]),
    "hard-swish, divided last": (
        "edgec.hard_swish",
        [*CLIP6, node("Mul", ["x", "g"], ["m"]), node("Div", ["m", "six"], ["y"])],
    ),
    "hard-swish, gate scaled": (
        "edgec.hard_swish",
        [*CLIP6, node("Div", ["g", "six"], ["h"]), node("Mul", ["h", "x"], ["y"])],
    ),
    "hard-swish, x scaled": (
        "edgec.hard_swish",
        [*CLIP6, node("Mul", ["x", "sixth"], ["h"]), node("Mul", ["h", "g"], ["y"])],
    ),
    "hard-swish, operator": ("edgec.hard_swish", [node("HardSwish", ["x"], ["y"])]),
    "hard-swish, hard-sigmoid": (
        "edgec.hard_swish",
        [node("HardSigmoid", ["x"], ["h"], alpha=1 / 6), node("Mul", ["x", "h"], ["y"])],
    ),
    "hard-sigmoid": ("edgec.hard_sigmoid", [node("HardSigmoid", ["x"], ["y"])]),
    "gelu, halved last": (
        "gelu",
        [*ERF, node("Mul", ["x", "g"], ["m"]), node("Mul", ["m", "half"], ["y"])],
    ),
    "gelu, halved first": (
        "gelu",
        [*ERF, node("Mul", ["x", "half"], ["m"]), node("Mul", ["m", "g"], ["y"])],
    ),
    "gelu, gate halved": (
        "gelu",
        [*ERF, node("Mul", ["half", "g"], ["m"]), node("Mul", ["x", "m"], ["y"])],
    ),
    "gelu, rounded constant": (
        "gelu",
        [
            node("Mul", ["x", "rsqrt2"], ["a"]),
            *ERF[1:],
            node("Mul", ["x", "g"], ["m"]),
            node("Mul", ["m", "half"], ["y"]),
        ],
    ),
    "gelu by tanh": (
        "gelu_tanh",
        [*TANH, node("Mul", ["half", "x"], ["m"]), node("Mul", ["m", "g"], ["y"])],
    ),
    "gelu by tanh, power": (
        "gelu_tanh",
        [
            node("Pow", ["x", "three"], ["x3"]),
            *TANH[2:],
            node("Mul", ["half", "x"], ["m"]),
            node("Mul", ["m", "g"], ["y"]),
        ],
    ),
}


@pytest.mark.parametrize(("expected", "nodes"), SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_becomes_one_operator(expected: str, nodes: list[Any]) -> None:
    before, after = canonical(nodes)
    assert operators(after) == {expected: 1}
    np.testing.assert_allclose(run_module(before), run_module(after), rtol=1e-3, atol=1e-5)


def test_a_learned_scale_stays_behind_the_activation() -> None:
    nodes = [
        *CLIP6,
        node("Mul", ["x", "g"], ["m"]),
        node("Div", ["m", "six"], ["h"]),
        node("Mul", ["h", "learned"], ["y"]),
    ]
    before, after = canonical(nodes)
    assert operators(after) == {"edgec.hard_swish": 1, "multiply": 1}
    np.testing.assert_allclose(run_module(before), run_module(after), rtol=1e-5, atol=1e-6)


NEAR_MISSES = {
    "sigmoid of another value": [
        node("Neg", ["x"], ["n"]),
        node("Sigmoid", ["n"], ["s"]),
        node("Mul", ["s", "x"], ["y"]),
    ],
    "quick gelu": [
        node("Mul", ["x", "1.702"], ["a"]),
        node("Sigmoid", ["a"], ["s"]),
        node("Mul", ["s", "x"], ["y"]),
    ],
    "gate over 2": [
        node("Add", ["x", "two"], ["a"]),
        node("Clip", ["a", "zero", "six"], ["g"]),
        node("Mul", ["x", "g"], ["y"]),
    ],
    "erf of x itself": [
        node("Erf", ["x"], ["e"]),
        node("Add", ["e", "one"], ["g"]),
        node("Mul", ["x", "g"], ["m"]),
        node("Mul", ["m", "half"], ["y"]),
    ],
    "crossed bounds": [node("Clip", ["x", "six", "zero"], ["y"])],
}


@pytest.mark.parametrize("nodes", NEAR_MISSES.values(), ids=NEAR_MISSES)
def test_near_misses_keep_their_values(nodes: list[Any]) -> None:
    before, after = canonical(nodes)
    found = set(operators(after))
    assert not found & {"silu", "gelu", "gelu_tanh", "edgec.hard_swish"}
    np.testing.assert_allclose(run_module(before), run_module(after), rtol=1e-5, atol=1e-6)


def test_an_intermediate_with_another_use_stays() -> None:
    nodes = [node("Sigmoid", ["x"], ["s"]), node("Mul", ["s", "x"], ["m"])]
    nodes.append(node("Add", ["m", "s"], ["y"]))
    _, after = canonical(nodes)
    assert operators(after) == {"sigmoid": 1, "multiply": 1, "add": 1}


def layer_norm(axes: list[int], *, square: str = "Pow", keep: int = 1) -> list[Any]:
    power = node("Pow", ["d", "two"], ["q"]) if square == "Pow" else node("Mul", ["d", "d"], ["q"])
    return [
        node("ReduceMean", ["x"], ["m"], axes=axes, keepdims=keep),
        node("Sub", ["x", "m"], ["d"]),
        power,
        node("ReduceMean", ["q"], ["v"], axes=axes, keepdims=keep),
        node("Add", ["v", "eps"], ["ve"]),
        node("Sqrt", ["ve"], ["root"]),
        node("Div", ["d", "root"], ["n"]),
        node("Mul", ["n", "gamma"], ["s"]),
        node("Add", ["s", "beta"], ["y"]),
    ]


def norm_model(nodes: list[Any], parameters: tuple[int, ...]) -> Any:
    weights = {
        "two": np.float32(2).reshape(()),
        "eps": np.float32(1e-5).reshape(()),
        "gamma": random(*parameters, seed=1),
        "beta": random(*parameters, seed=2),
    }
    return to_relax(make_model(nodes, {"x": [2, 5, 8]}, ["y"], weights))


@pytest.mark.parametrize("square", ["Pow", "Mul"])
@pytest.mark.parametrize(("axes", "parameters"), [([-1], (8,)), ([1, 2], (5, 8))])
def test_layer_norm(square: str, axes: list[int], parameters: tuple[int, ...]) -> None:
    before = norm_model(layer_norm(axes, square=square), parameters)
    after = RecognizeLayerNorm()(before)
    assert operators(after) == {"layer_norm": 1}
    np.testing.assert_allclose(run_module(before), run_module(after), rtol=1e-4, atol=1e-5)


def test_a_norm_over_other_axes_stays() -> None:
    before = norm_model(layer_norm([1]), (8,))
    assert tvm_ffi.structural_equal(RecognizeLayerNorm()(before), before)


def test_parameters_of_another_shape_stay_outside() -> None:
    before = norm_model(layer_norm([-1]), (5, 8))
    after = RecognizeLayerNorm()(before)
    assert operators(after) == {"layer_norm": 1, "multiply": 1, "add": 1}
    np.testing.assert_allclose(run_module(before), run_module(after), rtol=1e-4, atol=1e-5)


MOVES = {
    "reshape of reshape": (
        [node("Reshape", ["x", "s1"], ["a"]), node("Reshape", ["a", "s2"], ["y"])],
        {"reshape": 1},
    ),
    "reshape and back": (
        [node("Reshape", ["x", "s1"], ["a"]), node("Reshape", ["a", "s0"], ["b"])],
        {},
    ),
    "transpose and back": (
        [
            node("Transpose", ["x"], ["a"], perm=[1, 2, 0]),
            node("Transpose", ["a"], ["b"], perm=[2, 0, 1]),
        ],
        {},
    ),
    "two transposes": (
        [
            node("Transpose", ["x"], ["a"], perm=[1, 2, 0]),
            node("Transpose", ["a"], ["b"], perm=[1, 2, 0]),
        ],
        {"permute_dims": 1},
    ),
    "unit dimension": (
        [
            node("Unsqueeze", ["x", "axis"], ["a"]),
            node("Transpose", ["a"], ["b"], perm=[1, 2, 3, 0]),
        ],
        {"reshape": 1},
    ),
    "a real transpose": ([node("Transpose", ["x"], ["b"], perm=[0, 2, 1])], {"permute_dims": 1}),
}


@pytest.mark.parametrize(("nodes", "expected"), MOVES.values(), ids=MOVES)
def test_moves(nodes: list[Any], expected: dict[str, int]) -> None:
    last = nodes[-1].output[0]
    nodes = [*nodes, node("Relu", [last], ["out"])]
    weights = {
        "s0": np.array([2, 5, 8]),
        "s1": np.array([10, 8]),
        "s2": np.array([80]),
        "axis": np.array([0]),
    }
    before = to_relax(make_model(nodes, {"x": [2, 5, 8]}, ["out"], weights))
    after = RemoveRedundantMoves()(before)
    assert operators(after) == {**expected, "relu": 1}
    np.testing.assert_array_equal(run_module(before), run_module(after))
    assert tvm_ffi.structural_equal(RemoveRedundantMoves()(after), after)


@pytest.mark.parametrize("rewrite", [RecognizeActivations(), FoldAffine()], ids=repr)
def test_idempotent(rewrite: Any) -> None:
    _, module = canonical(SPELLINGS["gelu, halved last"][1])
    assert tvm_ffi.structural_equal(rewrite(module), module)
