"""Rows of a cache replaced from an offset on: in models, turned on their way, and in place."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cache_graphs import appended, by_legalization, host_model, load_kernel, rotated
from support.onnx_graphs import random
from tvm import relax

from edgec.compiler.ir.cache_operators import append_rows, rotary
from edgec.compiler.kernels.attention.append_rows import AppendRowsWorkload, emit_append_rows
from edgec.targets import load_target

# All new rows inside, at both ends, and some beyond.
OFFSETS = ((0, 3), (7, 6), (8, 9), (-2, 100))


def tensors(size: int) -> dict[str, np.ndarray]:
    return {
        "past": random(2, 3, 9, size),
        "new": random(2, 2, 3, size, seed=1),
        "offset": np.array([0, 0]),
    }


@pytest.mark.parametrize(("size", "interleaved"), [(16, False), (22, True)])
def test_rows_of_token_major_tensors_are_turned_and_appended(size: int, interleaved: bool) -> None:
    """By one kernel; 16 of the features are turned, positions 8 and 9 have no angles any more."""
    clear = interleaved
    arrays, angles = tensors(size), {"cos": random(8, 8), "sin": random(8, 8, seed=2)}

    def build(emit: Any, past: Any, new: Any, offset: Any, cos: Any, sin: Any) -> Any:
        rows = emit(relax.op.permute_dims(new, [0, 2, 1, 3]))
        turned = emit(rotary(rows, cos, sin, offset, interleaved=interleaved))
        return emit(append_rows(past, turned, offset, clear=clear))

    model = host_model(arrays, build, ["cache_append"], **angles)
    for offset in map(np.array, OFFSETS):
        arrays["offset"] = offset
        turned = rotated(arrays["new"].transpose(0, 2, 1, 3), *angles.values(), offset, interleaved)
        expected = appended(arrays["past"], turned, offset, clear)
        found = model.run(arrays)["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
        # The negative control: one row later is another result.
        assert not np.allclose(found, appended(arrays["past"], turned, offset + 1, clear))
    (reference,) = by_legalization(arrays, build, **angles)
    np.testing.assert_allclose(reference, expected, rtol=1e-6, atol=1e-6)


def test_in_place_only_new_rows_are_written(tmp_path: Path) -> None:
    machine = load_target("native")
    workload = AppendRowsWorkload(2, 3, 9, 2, 7, in_place=True)
    run = load_kernel(emit_append_rows(workload, machine, "k"), machine, tmp_path)
    arrays = tensors(7)
    new = np.ascontiguousarray(arrays["new"].transpose(0, 2, 1, 3))
    for offset in map(np.array, OFFSETS):
        cache = arrays["past"].copy()
        run(cache, new, offset, cache)
        np.testing.assert_array_equal(cache, appended(arrays["past"], new, offset))
        # What is not in place reads the old cache and leaves it alone.
    elsewhere = np.zeros_like(cache)
    run(np.full_like(cache, np.nan), new, np.array([1, 1]), elsewhere)
    np.testing.assert_array_equal(elsewhere, appended(0 * cache, new, np.array([1, 1])))
