"""The forms in which weights of a few bits are kept: the smallest that holds the same values."""

import numpy as np
import pytest
from numpy.typing import NDArray

from edgec.compiler.numerics.grouped_codes import (
    PLANES,
    UNIT_VALUES,
    GroupedCodes,
    grouped_codes,
    pack_codes,
    unpack_codes,
)

Array = NDArray[np.generic]
ROWS, COLUMNS = 5, 512


def random_codes(bits: int, low: int = 0) -> NDArray[np.uint8]:
    numbers = np.random.default_rng(bits)
    codes = numbers.integers(low, low + (1 << bits), (ROWS, COLUMNS), np.uint8)
    codes[0, :2] = low, low + (1 << bits) - 1
    return codes


def values(weight: GroupedCodes) -> NDArray[np.float32]:
    """Return what arrays stand for, as the module says it."""
    form, arrays = weight.form, weight.arrays

    def by_value(name: str, units: str) -> NDArray[np.float32]:
        numbers = np.repeat(arrays[name].astype(np.float32), form.group, axis=1)
        if units in arrays:
            numbers *= np.repeat(arrays[units].astype(np.float32), UNIT_VALUES, axis=1)
        return numbers

    codes = unpack_codes(arrays["codes"], form.bits).astype(np.float32)
    scales = by_value("scales", "scale_units")
    if form.minima:
        return codes * scales + by_value("minima", "minimum_units")
    middle = by_value("zeros", "") if form.zeros else np.float32(1 << form.bits - 1)
    return (codes - middle) * scales


@pytest.mark.parametrize("bits", PLANES)
def test_planes_hold_codes(bits: int) -> None:
    codes = random_codes(bits)
    packed = pack_codes(codes, bits)
    assert packed.shape == (ROWS, COLUMNS * bits // 8)
    np.testing.assert_array_equal(unpack_codes(packed, bits), codes)


def halves(group: int, seed: int) -> NDArray[np.float32]:
    found = np.random.default_rng(seed).normal(size=(ROWS, COLUMNS // group))
    return found.astype(np.float16).astype(np.float32)


def in_units(group: int, seed: int, low: int, high: int) -> NDArray[np.float32]:
    """Return numbers as the K types have them: whole numbers times a float16."""
    whole = np.random.default_rng(seed).integers(low, high, (ROWS, COLUMNS // group))
    shared = np.repeat(halves(UNIT_VALUES, seed), UNIT_VALUES // group, axis=1)
    return (whole.astype(np.float32) * shared).astype(np.float32)


# By the types of GGUF files: bits and first code as imported, group, scales, minima; bits, scales
# and minima as kept.
TYPES = {
    "Q4_0": (4, 0, 4, 32, halves(32, 1), None, 4, "float16", ""),
    "Q4_1": (4, 0, 4, 32, halves(32, 1), halves(32, 2), 4, "float16", "float16"),
    "Q5_0": (8, 112, 5, 32, halves(32, 1), None, 5, "float16", ""),
    "Q8_0": (8, 0, 8, 32, halves(32, 1), None, 8, "float16", ""),
    "Q2_K": (4, 0, 2, 16, in_units(16, 3, 0, 16), in_units(16, 4, 0, 16), 2, "int8", "int8"),
    "Q3_K": (4, 4, 3, 16, in_units(16, 3, -32, 32), None, 4, "int8", ""),
    "Q4_K": (4, 0, 4, 32, in_units(32, 3, 0, 64), in_units(32, 4, 0, 64), 4, "int8", "int8"),
    "Q6_K": (8, 96, 6, 16, in_units(16, 3, -128, 128), None, 6, "int8", ""),
    "floats": (4, 0, 4, 32, halves(32, 1) * np.float32(1.0001), None, 4, "float32", ""),
}


@pytest.mark.parametrize("kind", TYPES)
def test_values_stay_in_fewer_bytes(kind: str) -> None:
    given, low, bits, group, scales, minima, kept, scale_kind, minimum_kind = TYPES[kind]
    codes = random_codes(bits, low)
    zeros = None
    points: NDArray[np.float32] = np.full(scales.shape, 1 << given - 1, np.float32)
    if minima is not None:
        # As decoder graphs say it, in which a group without a scale is its minimum alone.
        none = scales == 0
        codes = np.where(np.repeat(none, group, axis=1), np.uint8(0), codes)
        scales, points = (
            np.where(none, minima, scales),
            np.where(none, np.float32(-1), -minima / np.where(none, np.float32(1), scales)),
        )
        zeros = points
    packed = codes if given == 8 else pack_codes(codes, 4)
    found = grouped_codes(packed, scales, zeros, given, group)
    form = found.form
    assert (form.bits, form.scales, form.minima) == (kept, scale_kind, minimum_kind)
    wide = [np.repeat(each, group, axis=1) for each in (scales, points)]
    expected = (codes.astype(np.float32) - wide[1]) * wide[0]
    if minima is None:
        np.testing.assert_array_equal(values(found), expected)
    else:
        np.testing.assert_allclose(values(found), expected, rtol=1e-5, atol=1e-6)
        moved = np.repeat(minima, group, axis=1)
        scale = np.where(np.repeat(none, group, axis=1), np.float32(0), wide[0])
        np.testing.assert_array_equal(values(found), codes.astype(np.float32) * scale + moved)


def test_whole_zero_points_stay() -> None:
    codes, scales = random_codes(4), halves(32, 1)
    zeros = np.random.default_rng(0).integers(0, 16, scales.shape, np.uint8)
    found = grouped_codes(pack_codes(codes, 4), scales, zeros, 4, 32)
    assert found.form.zeros
    assert not found.form.minima
    np.testing.assert_array_equal(found.arrays["zeros"], zeros)
