"""RecognizeActivations: every spelling, and the near misses."""

import math
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from support.onnx_graphs import make_model, node, operators, to_relax
from support.relax_runs import run_module

from edgec.compiler.passes import CANONICALIZE, FoldAffine, RecognizeActivations

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


@pytest.mark.parametrize("rewrite", [RecognizeActivations(), FoldAffine()], ids=repr)
def test_idempotent(rewrite: Any) -> None:
    _, module = canonical(SPELLINGS["gelu, halved last"][1])
    assert tvm_ffi.structural_equal(rewrite(module), module)
