"""FoldAffine: which factors and summands go into weights, and which must stay."""

from typing import Any

import numpy as np
import pytest
import tvm_ffi
from support.onnx_graphs import make_model, node, operators, random, to_relax
from support.relax_runs import run_module

from edgec.compiler.ir.relax_helpers import shape_of
from edgec.compiler.passes import FoldAffine


def linear_model(
    operator: str, factor: np.ndarray, *, twice: bool = False, **attributes: Any
) -> Any:
    """x through a linear operator, then times a constant."""
    shapes = {
        "Conv": ([1, 4, 6, 6], (8, 4, 3, 3)),
        "ConvTranspose": ([1, 4, 6, 6], (4, 8, 3, 3)),
        "MatMul": ([2, 4], (4, 8)),
    }
    x, w = shapes[operator]
    groups = attributes.get("group", 1)
    w = (w[0], w[1] // groups, *w[2:]) if groups > 1 else w
    nodes = [node(operator, ["x", "w"], ["c"], **attributes), node("Mul", ["c", "f"], ["m"])]
    nodes.append(node("Add", ["m", "c"] if twice else ["m", "m"], ["y"]))
    return to_relax(make_model(nodes, {"x": x}, ["y"], {"w": random(*w), "f": factor}))


PER_CHANNEL = random(8, seed=6).reshape(1, 8, 1, 1)


@pytest.mark.parametrize(
    ("operator", "factor", "attributes"),
    [
        ("Conv", PER_CHANNEL, {}),
        ("Conv", np.float32(2), {}),
        ("Conv", random(8).reshape(8, 1, 1), {"group": 2}),
        ("ConvTranspose", PER_CHANNEL, {}),
        ("ConvTranspose", PER_CHANNEL, {"group": 2}),
        ("MatMul", random(8), {}),
    ],
    ids=["conv", "scalar", "grouped", "transposed", "grouped-transposed", "matmul"],
)
def test_a_factor_goes_into_the_weight(
    operator: str, factor: np.ndarray, attributes: dict[str, Any]
) -> None:
    module = linear_model(operator, np.asarray(factor), **attributes)
    folded = FoldAffine()(module)
    assert operators(module)["multiply"] == 1
    assert operators(folded)["multiply"] == 0
    _check_same_values(module, folded)


@pytest.mark.parametrize(
    "case",
    [
        linear_model("Conv", random(4).reshape(1, 1, 4, 1)),
        linear_model("Conv", random(1, 8, 4, 4)),
        linear_model("Conv", PER_CHANNEL, twice=True),
        linear_model("MatMul", random(2, 1)),
    ],
    ids=["other-axis", "per-element", "two-uses", "rows"],
)
def test_near_misses_stay(case: Any) -> None:
    assert operators(FoldAffine()(case)) == operators(case)


def test_a_broadcasting_factor_stays() -> None:
    """It would change the shape: [1, 8, 1, 1] * [1, 1, 5, 5]."""
    model = make_model(
        [node("GlobalAveragePool", ["x"], ["p"]), node("Mul", ["p", "f"], ["y"])],
        {"x": [1, 8, 4, 4]},
        ["y"],
        {"f": random(1, 1, 5, 5)},
    )
    module = FoldAffine()(to_relax(model))
    assert operators(module)["multiply"] == 1
    assert shape_of(module["main"].body.body) == (1, 8, 5, 5)


def test_integers_stay() -> None:
    from onnx import TensorProto

    model = make_model(
        [node("Mul", ["x", "f"], ["a"]), node("Mul", ["a", "f"], ["y"])],
        {"x": [4]},
        ["y"],
        {"f": np.array([3, 5, 7, 9])},
        dtypes={"x": TensorProto.INT64, "y": TensorProto.INT64},
    )
    assert operators(FoldAffine()(to_relax(model)))["multiply"] == 2


def test_chains_collapse_and_ones_vanish() -> None:
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Mul", ["r", "two"], ["a"]),
        node("Add", ["a", "two"], ["b"]),
        node("Div", ["b", "two"], ["c"]),
        node("Sub", ["c", "one"], ["d"]),
        node("Mul", ["one", "d"], ["y"]),
    ]
    weights = {"two": np.float32([2]), "one": np.float32([1])}
    module = to_relax(make_model(nodes, {"x": [1, 4]}, ["y"], weights))
    folded = FoldAffine()(module)
    # (2 r + 2) / 2 - 1 = r
    assert operators(folded) == {"relu": 1}
    _check_same_values(module, folded)


@pytest.mark.parametrize("operator", ["Conv", "MatMul"])
def test_idempotent(operator: str) -> None:
    factor = PER_CHANNEL if operator == "Conv" else random(8)
    once = FoldAffine()(linear_model(operator, factor))
    assert tvm_ffi.structural_equal(FoldAffine()(once), once)


def _check_same_values(before: Any, after: Any) -> None:
    np.testing.assert_allclose(run_module(before), run_module(after), rtol=1e-4, atol=1e-4)
