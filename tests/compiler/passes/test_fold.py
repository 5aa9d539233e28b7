"""FoldBatchNorm and FoldAffine: what they remove, what they must leave, and the numbers."""

from typing import Any

import numpy as np
import pytest
import tvm_ffi
from support.onnx_graphs import make_model, node, operators, random, to_relax

from edgec.compiler.ir.relax_helpers import shape_of, value_of
from edgec.compiler.passes import FoldAffine, FoldBatchNorm
from edgec.compiler.passes.base import Pass


def fold(module: Any) -> Any:
    for rewrite in (FoldBatchNorm(), FoldAffine()):
        module = rewrite(module)
    return module


def norm_weights(channels: int) -> dict[str, np.ndarray]:
    return {
        "scale": random(channels, seed=1),
        "bias": random(channels, seed=2),
        "mean": random(channels, seed=3),
        "var": np.abs(random(channels, seed=4)) + 0.1,
    }


NORM = ["scale", "bias", "mean", "var"]


def constants(module: Any) -> list[np.ndarray]:
    """Constants of `main` in the order of their use."""
    return [
        value
        for block in module["main"].body.blocks
        for binding in block.bindings
        if hasattr(binding.value, "args")
        for value in map(value_of, binding.value.args)
        if value is not None
    ]


@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_goes_into_the_convolution(bias: bool) -> None:
    weights = {"w": random(8, 3, 3, 3), **norm_weights(8)}
    if bias:
        weights["b"] = random(8, seed=5)
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    nodes = [node("Conv", inputs, ["c"]), node("BatchNormalization", ["c", *NORM], ["y"])]
    module = fold(to_relax(make_model(nodes, {"x": [1, 3, 8, 8]}, ["y"], weights)))
    assert operators(module) == {"conv2d": 1, "add": 1}
    scale = weights["scale"] / np.sqrt(weights["var"] + 1e-5)
    shift = weights["bias"] + (weights.get("b", 0) - weights["mean"]) * scale
    kernel, summand = constants(module)
    np.testing.assert_allclose(kernel, weights["w"] * scale[:, None, None, None], rtol=1e-5)
    np.testing.assert_allclose(summand.ravel(), shift, rtol=1e-4, atol=1e-6)


def test_batch_norm_without_a_convolution_becomes_affine() -> None:
    model = make_model(
        [node("Relu", ["x"], ["r"]), node("BatchNormalization", ["r", *NORM], ["y"])],
        {"x": [1, 8, 4, 4]},
        ["y"],
        norm_weights(8),
    )
    assert operators(fold(to_relax(model))) == {"relu": 1, "multiply": 1, "add": 1}


def test_batch_norm_with_computed_parameters_stays() -> None:
    nodes = [node("BatchNormalization", ["x", "s", "bias", "mean", "var"], ["y"])]
    model = make_model(nodes, {"x": [1, 8, 4, 4], "s": [8]}, ["y"], norm_weights(8))
    module = to_relax(model)
    assert tvm_ffi.structural_equal(FoldBatchNorm()(module), module)


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


@pytest.mark.parametrize("rewrite", [FoldBatchNorm(), FoldAffine()], ids=repr)
def test_idempotent(rewrite: Pass) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("BatchNormalization", ["c", *NORM], ["n"]),
        node("Relu", ["n"], ["y"]),
    ]
    weights = {"w": random(8, 3, 3, 3), **norm_weights(8)}
    once = rewrite(to_relax(make_model(nodes, {"x": [1, 3, 8, 8]}, ["y"], weights)))
    assert tvm_ffi.structural_equal(rewrite(once), once)


def _check_same_values(before: Any, after: Any) -> None:
    from support.relax_runs import run_module

    np.testing.assert_allclose(run_module(before), run_module(after), rtol=1e-4, atol=1e-4)
