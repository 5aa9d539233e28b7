"""Reductions of rows, of every length around a vector, in the model and alone."""

from pathlib import Path

import numpy as np
import pytest
from support.kernel_runs import X86_TARGETS, Branch, LoadedKernels, check_branches
from support.onnx_graphs import node, random

from edgec.compiler.kernels.row_reduce import Operation, RowReduceWorkload, emit_row_reduce
from edgec.targets import load_target

ONNX = {"sum": "ReduceSum", "mean": "ReduceMean", "max": "ReduceMax", "min": "ReduceMin"}
NUMPY = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min, "prod": np.prod}
COLUMNS = (1, 2, 3, 7, 8, 16, 17, 40, 333, 5000)


def reduction(operation: str, shape: list[int], axes: list[int], keep: int = 0) -> Branch:
    kind = ONNX[operation]
    if kind == "ReduceSum":
        made = node(kind, ["x", "axes"], ["y"], keepdims=keep)
        return Branch([made], {"x": shape}, ["row_reduce"], {"axes": np.array(axes, np.int64)})
    made = node(kind, ["x"], ["y"], axes=axes, keepdims=keep)
    return Branch([made], {"x": shape}, ["row_reduce"])


BRANCHES = {
    **{f"{name} of the last axis": reduction(name, [5, 37], [-1]) for name in ONNX},
    **{f"{name} of two axes, kept": reduction(name, [3, 4, 5, 6], [2, 3], 1) for name in ONNX},
    **{f"{name} in the middle": reduction(name, [3, 4, 5, 19], [1, 2]) for name in ONNX},
    "mean of axes that one of extent 1 parts": reduction("mean", [1, 3, 4, 5], [0, 2, 3]),
    "sum of short rows side by side": reduction("sum", [70, 3], [0]),
    "products": Branch(
        [node("ReduceProd", ["x"], ["y"], axes=[1])], {"x": [3, 4, 19]}, ["row_reduce"]
    ),
}


@pytest.mark.parametrize("target", X86_TARGETS)
def test_models_take_the_kernel(target: str, tmp_path: Path) -> None:
    check_branches(BRANCHES, target, tmp_path)


@pytest.mark.parametrize("operation", NUMPY)
def test_every_length(operation: Operation, tmp_path: Path) -> None:
    works = {f"k{n}": RowReduceWorkload(operation, 7, n) for n in COLUMNS}
    machine = load_target("x86-64-v3")
    found = {name: emit_row_reduce(work, machine, name) for name, work in works.items()}
    kernels = LoadedKernels(found, "x86-64-v3", tmp_path)
    for name, work in works.items():
        x = random(7, work.columns)
        expected = NUMPY[operation](x.astype(np.float64), axis=1)
        np.testing.assert_allclose(kernels(name, x, size=7), expected, rtol=2e-5, atol=2e-5)
        # A value left out, the last of a row, is noticed.
        if operation == "sum":
            short = x[:, :-1].astype(np.float64).sum(axis=1)
            assert not np.allclose(kernels(name, x, size=7), short, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("operation", NUMPY)
def test_not_a_number_passes(operation: Operation, tmp_path: Path) -> None:
    work = RowReduceWorkload(operation, 3, 19)
    kernels = LoadedKernels(
        {"k": emit_row_reduce(work, load_target("x86-64-v3"), "k")}, "x86-64-v3", tmp_path
    )
    x = random(3, 19)
    x[1, 18] = x[2, 0] = np.nan
    assert np.isnan(kernels("k", x, size=3)).tolist() == [False, True, True]
