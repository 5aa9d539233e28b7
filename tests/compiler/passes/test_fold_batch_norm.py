"""FoldBatchNorm: what it makes of a normalization, and what it must leave."""

from typing import Any

import numpy as np
import pytest
import tvm_ffi
from support.onnx_graphs import make_model, node, operators, random, to_relax

from edgec.compiler.ir.relax_helpers import value_of
from edgec.compiler.passes import FoldAffine, FoldBatchNorm


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


def test_idempotent() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("BatchNormalization", ["c", *NORM], ["n"]),
        node("Relu", ["n"], ["y"]),
    ]
    weights = {"w": random(8, 3, 3, 3), **norm_weights(8)}
    once = FoldBatchNorm()(to_relax(make_model(nodes, {"x": [1, 3, 8, 8]}, ["y"], weights)))
    assert tvm_ffi.structural_equal(FoldBatchNorm()(once), once)
