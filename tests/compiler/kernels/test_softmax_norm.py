"""Softmax and normalizations of rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from support.kernel_runs import X86_TARGETS, Branch, LoadedKernels, check_branches
from support.onnx_graphs import node, random

from edgec.compiler.kernels.softmax_norm import SoftmaxNormWorkload, emit_softmax_norm
from edgec.targets import load_target


def softmax(shape: Sequence[int], op_type: str = "Softmax", axis: int = -1) -> Branch:
    return Branch([node(op_type, ["x"], ["y"], axis=axis)], {"x": shape}, ["rows"])


def layer_norm(shape: Sequence[int], axis: int = -1, *, bias: bool = True) -> Branch:
    extents = shape[axis:]
    weights = {"g": random(*extents, seed=1), "b": random(*extents, seed=2)}
    inputs = ["x", "g", "b"] if bias else ["x", "g"]
    nodes = [node("LayerNormalization", inputs, ["y"], axis=axis, epsilon=1e-4)]
    return Branch(nodes, {"x": shape}, ["rows"], {name: weights[name] for name in inputs[1:]})


COLUMNS = (2, 3, 7, 8, 15, 16, 17, 40, 333)
ROWS = {
    **{f"softmax of {n}": softmax([3, n]) for n in COLUMNS},
    **{f"logarithm of {n}": softmax([5, n], "LogSoftmax") for n in (2, 16, 37)},
    "softmax of attention": softmax([2, 3, 5, 9]),
    "softmax of a vector": softmax([70]),
    **{f"softmax along axis {a}": softmax([3, 5, 7, 9], axis=a) for a in range(3)},
    "softmax of three columns": softmax([2, 16, 3], axis=1),
    "logarithm along an axis": softmax([2, 16, 37], "LogSoftmax", axis=1),
    **{f"layer norm of {n}": layer_norm([4, n]) for n in COLUMNS[1:]},
    "layer norm of two dimensions": layer_norm([3, 5, 7], -2),
    "layer norm without bias": layer_norm([2, 4, 20], bias=False),
}


@pytest.mark.parametrize("target", X86_TARGETS)
def test_rows(target: str, tmp_path: Path) -> None:
    check_branches(ROWS, target, tmp_path)


@pytest.mark.parametrize("target", X86_TARGETS)
def test_large_values_do_not_overflow(target: str, tmp_path: Path) -> None:
    workloads = {
        name: SoftmaxNormWorkload(operation, 2, 21)
        for name, operation in (("k0", "softmax"), ("k1", "log_softmax"))
    }
    machine = load_target(target)
    kernels = LoadedKernels(
        {name: emit_softmax_norm(work, machine, name) for name, work in workloads.items()},
        target,
        tmp_path,
    )
    x = 1000 * random(2, 21)
    wide = x.astype(np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True)
    logarithm = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    assert logarithm.min() < -1000
    np.testing.assert_allclose(kernels("k0", x, size=42), np.exp(logarithm).ravel(), atol=1e-7)
    np.testing.assert_allclose(kernels("k1", x, size=42), logarithm.ravel(), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("target", X86_TARGETS)
@pytest.mark.parametrize("columns", [1, 5, 16, 50])
def test_root_mean_square(columns: int, target: str, tmp_path: Path) -> None:
    work = SoftmaxNormWorkload("rms_norm", 3, columns, 1e-3)
    kernels = LoadedKernels(
        {"k": emit_softmax_norm(work, load_target(target), "k")}, target, tmp_path
    )
    x, gamma = random(3, columns), random(columns, seed=1)
    wide = x.astype(np.float64)
    root = np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-3)
    actual = kernels("k", x, gamma, size=x.size).reshape(x.shape)
    np.testing.assert_allclose(actual, wide / root * gamma, rtol=2e-6)
    # Not the layer norm, which subtracts the mean: the check tells them apart.
    centered = (wide - wide.mean(axis=1, keepdims=True)) / root * gamma
    assert not np.allclose(actual, centered, rtol=2e-6)
