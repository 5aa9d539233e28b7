"""Tensor types decode to the numbers that the package `gguf` gives, bit for bit."""

from dataclasses import replace

import gguf
import numpy as np
import pytest

from edgec.compiler.language.gguf_types import TYPES, decode
from edgec.compiler.language.grouped_weight import GroupedWeight

RANDOM = np.random.default_rng(0)
TYPE_OF = {kind.name: kind for kind in TYPES.values()}


def random_rows(name: str) -> np.ndarray:
    return RANDOM.integers(0, 256, (5, TYPE_OF[name].size * 6), dtype=np.uint8)


def values_of(name: str, rows: np.ndarray) -> np.ndarray:
    matrix = decode(TYPE_OF[name], rows)
    return matrix.dequantize() if isinstance(matrix, GroupedWeight) else matrix


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("name", [name for name in TYPE_OF if name != "Q8_K"])
def test_random_bytes_mean_what_gguf_says(name: str) -> None:
    rows = random_rows(name)
    expected = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name])
    values = values_of(name, rows)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(~np.isnan(values), numbers)
    bits = np.ascontiguousarray(expected)[numbers].view(np.uint32)
    np.testing.assert_array_equal(values[numbers].view(np.uint32), bits)
    # One bit of the last row changed is another row.
    other = rows.copy()
    other[-1, -1] ^= 1
    assert (values_of(name, other)[-1] != values[-1]).any()


def test_blocks_of_q8_k() -> None:
    # The package has none: a float32 scale, 256 codes, and sums of which nothing depends.
    rows = random_rows("Q8_K").reshape(-1, 292)
    scales = RANDOM.normal(size=(len(rows), 1)).astype(np.float32)
    rows[:, :4] = scales.view(np.uint8)
    expected = scales * rows[:, 4:260].view(np.int8)
    np.testing.assert_array_equal(values_of("Q8_K", rows), expected)


@pytest.mark.parametrize("name", [name for name in TYPE_OF if name not in ("F32", "F16", "BF16")])
def test_zero_points_and_packed_codes_mean_the_same(name: str) -> None:
    weight = decode(TYPE_OF[name], random_rows(name))
    assert isinstance(weight, GroupedWeight)
    assert weight.codes.max() < 1 << weight.bits
    # Scales are -2 ... 2, so that some groups are constant.
    scales = RANDOM.integers(-2, 3, weight.scales.shape).astype(np.float32)
    minima = RANDOM.normal(size=scales.shape).astype(np.float32)
    weight = replace(weight, scales=scales, minima=None if weight.minima is None else minima)
    moved, zeros = weight.with_zero_points()
    codes = moved.packed()
    if moved.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(moved.shape)
    if zeros is None:
        zeros = np.full(scales.shape, 1 << moved.bits - 1, np.float32)
    spread = [np.repeat(part, moved.group, axis=1) for part in (moved.scales, zeros)]
    values = spread[0] * (codes.astype(np.float32) - spread[1])
    np.testing.assert_allclose(values, weight.dequantize(), rtol=0, atol=1e-4)
