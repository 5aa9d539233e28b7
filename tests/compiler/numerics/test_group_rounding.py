"""Rounding to few bits in groups: exact where it can be, and minding what products make of it."""

import numpy as np

from edgec.compiler.numerics.group_rounding import RoundedGroups, round_groups

NUMBERS = np.random.default_rng(0)
ROWS = NUMBERS.normal(size=(40, 128)).astype(np.float32)
# Columns that depend on each other, and are used unequally.
MIXED = NUMBERS.normal(size=(500, 24)) @ NUMBERS.normal(size=(24, 128)) * np.geomspace(0.1, 4, 128)
SECOND = MIXED.T @ MIXED / len(MIXED)


def values(found: RoundedGroups, group: int) -> np.ndarray:
    scales, minima = (np.repeat(each, group, axis=1) for each in (found.scales, found.minima))
    return found.codes * scales + minima


def expected_error(found: RoundedGroups, group: int) -> float:
    change = values(found, group) - ROWS
    return float(np.sum((change @ SECOND) * change))


def test_weights_that_are_codes_stay() -> None:
    codes = NUMBERS.integers(0, 16, (8, 64))
    codes[:, ::32], codes[:, 1::32] = 0, 15
    scales, minima = (2.0 ** NUMBERS.integers(-3, 3, (2, 8, 2))).astype(np.float32)
    rows = codes * np.repeat(scales, 32, axis=1) - np.repeat(minima, 32, axis=1)
    rows[0, :32] = 0.5
    for second in (None, SECOND[:64, :64]):
        found = round_groups(rows.astype(np.float32), second, 32, 4)
        np.testing.assert_array_equal(values(found, 32), rows)


def test_scales_and_minima_are_half_floats() -> None:
    found = round_groups(ROWS * np.float32(1e3), SECOND, 32, 4)
    for numbers in (found.scales, found.minima):
        np.testing.assert_array_equal(numbers, numbers.astype(np.float16).astype(np.float32))
    assert found.codes.max() == 15


def test_it_minds_what_a_product_makes_of_the_errors() -> None:
    """The range of a group alone, then least squares, then column by column."""
    blocks = ROWS.reshape(40, -1, 32)
    low, high = blocks.min(axis=2), blocks.max(axis=2)
    scale = (high - low) / 15
    codes = np.rint((blocks - low[..., None]) / scale[..., None]).astype(np.uint8)
    plain = expected_error(RoundedGroups(codes.reshape(ROWS.shape), scale, low), 32)
    nearest = expected_error(round_groups(ROWS, None, 32, 4), 32)
    best = expected_error(round_groups(ROWS, SECOND, 32, 4), 32)
    assert nearest < plain
    assert best < nearest / 2
