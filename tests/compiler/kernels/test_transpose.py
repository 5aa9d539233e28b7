"""Permutations of axes, exactly, in every way that the kernel moves values."""

from pathlib import Path

import numpy as np
import pytest
from support.kernel_runs import LoadedKernels

from edgec.compiler.kernels.transpose import TransposeWorkload, emit_transpose
from edgec.targets import load_target

# Runs of memory; squares with blocks that overlap; short axes that interleave and come apart, with
# whole vectors and without; several axes; nothing that moves.
CASES = (
    ((3, 5, 20), (1, 0, 2)),
    ((3, 5, 2), (1, 0, 2)),
    ((40, 19), (1, 0)),
    ((2, 3, 33, 17), (2, 1, 3, 0)),
    ((2, 33, 3), (0, 2, 1)),
    ((2, 3, 33), (0, 2, 1)),
    ((3, 5), (1, 0)),
    ((4, 3, 2, 5, 2), (4, 2, 0, 3, 1)),
    ((1, 7, 1, 9), (2, 1, 0, 3)),
    ((300, 300), (1, 0)),
)


@pytest.mark.parametrize("target", ["native", "x86-64-v2"])
def test_moves_every_value(tmp_path: Path, target: str) -> None:
    machine = load_target(target)
    kernels = {
        f"k{number}": emit_transpose(TransposeWorkload(*case), machine, f"k{number}")
        for number, case in enumerate(CASES)
    }
    loaded = LoadedKernels(kernels, target, tmp_path)
    for number, (shape, axes) in enumerate(CASES):
        data = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        found = loaded(f"k{number}", data, size=data.size)
        expected = data.transpose(axes)
        np.testing.assert_array_equal(found.reshape(expected.shape), expected, err_msg=str(shape))


@pytest.mark.parametrize("size", [1, 2, 8])
def test_values_of_other_sizes(tmp_path: Path, size: int) -> None:
    shapes = ((40, 19), (33, 3), (5, 6, 20))
    dtype = {1: np.uint8, 2: np.uint16, 8: np.uint64}[size]
    kernels = {
        f"k{i}": emit_transpose(
            TransposeWorkload(shape, tuple(range(len(shape)))[::-1], size),
            load_target("native"),
            f"k{i}",
        )
        for i, shape in enumerate(shapes)
    }
    loaded = LoadedKernels(kernels, "native", tmp_path)
    for i, shape in enumerate(shapes):
        data = np.random.default_rng(0).integers(0, 99, shape).astype(dtype)
        words = -(-data.nbytes // 4)
        raw = np.frombuffer(data.tobytes().ljust(4 * words, b"\0"), np.float32)
        found = loaded(f"k{i}", raw, size=words).tobytes()[: data.nbytes]
        assert found == data.transpose().tobytes()
