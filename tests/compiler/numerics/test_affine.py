import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.compiler.numerics.affine import (
    TOGETHER,
    Codes,
    Scale,
    affine_scale,
    dequantize_array,
    log2_codes,
    log2_values,
    pack_nibbles,
    quantize_array,
    quantize_channels,
    quantize_groups,
    quantize_log2,
    sqnr_db,
    unpack_nibbles,
    within_sums,
)
from edgec.compiler.numerics.pair_sums import GROUP, LARGEST_SUM, pair_sums

UINT8, INT8 = Codes.of("uint8", 8), Codes.of("int8", 8)
RANDOM = np.random.default_rng(0)


def test_codes_saturate_and_ties_go_to_even() -> None:
    scale = Scale(1.0, 0, INT8)
    values = np.float32([-np.inf, -128.5, -0.5, 0.5, 1.5, 2.5, 127.4, 127.5, np.inf])
    assert quantize_array(values, scale).tolist() == [-128, -128, 0, 0, 2, 2, 127, 127, 127]


@pytest.mark.parametrize("codes", [UINT8, INT8, Codes.of("uint8", 7), Codes.of("int8", 7)])
@pytest.mark.parametrize("symmetric", [False, True])
@given(low=st.floats(-1e4, 1e4), width=st.floats(1e-3, 1e4))
@settings(max_examples=40)
def test_zero_is_exact_and_the_range_is_covered_to_a_step(
    codes: Codes, symmetric: bool, low: float, width: float
) -> None:
    scale = affine_scale(low, low + width, codes, symmetric=symmetric)
    values = np.float32([0, low, low + width])
    back = dequantize_array(quantize_array(values, scale), scale)
    assert back[0] == 0
    assert np.all(np.abs(back - values) <= scale.scale * 1.001)


def test_an_empty_range_has_scale_one() -> None:
    assert affine_scale(0.0, 0.0, UINT8, symmetric=False) == Scale(1.0, 0, UINT8)


def test_symmetric_codes_have_their_zero_in_the_middle() -> None:
    assert affine_scale(-1, 1, UINT8, symmetric=True).zero_point == 128
    assert affine_scale(-1, 1, Codes.of("int8", 8, narrow=True), symmetric=True).zero_point == 0


@pytest.mark.parametrize("largest", [127, 63])
def test_channels_are_off_by_half_a_step_at_most(largest: int) -> None:
    weight = RANDOM.standard_normal((5, 3, 3, 3)).astype(np.float32)
    weight[2] = 0
    stored = quantize_channels(weight, 0, largest)
    assert np.abs(stored.codes).max() == largest
    assert stored.scales[2] == 1
    step = stored.scales.reshape(-1, 1, 1, 1)
    assert np.all(np.abs(stored.values - weight) <= step * 0.5001)


@pytest.mark.parametrize(
    ("shape", "axis", "summed"),
    [((40, 30, 3, 3), 0, 1), ((64, 1, 5, 5), 0, -1), ((50, 20), 1, -2), ((8, 6, 3), 0, 1)],
)
def test_weights_that_meet_in_an_int16_keep_to_its_range(
    shape: tuple[int, ...], axis: int, summed: int
) -> None:
    weight = RANDOM.standard_normal(shape).astype(np.float32) + 0.5
    free = quantize_channels(weight, axis, 127)
    assert pair_sums(free.codes.astype(int), summed, TOGETHER).max() > LARGEST_SUM
    stored = quantize_channels(weight, axis, 127, summed)
    assert LARGEST_SUM - 8 < pair_sums(stored.codes, summed, TOGETHER).max() <= LARGEST_SUM
    step = np.expand_dims(stored.scales, [i for i in range(weight.ndim) if i != axis])
    assert np.all(np.abs(stored.values - weight) <= step * 0.5001)
    shrunk = within_sums(free.codes, summed)
    assert pair_sums(shrunk, summed, TOGETHER).max() <= LARGEST_SUM
    np.testing.assert_array_equal(within_sums(stored.codes, summed), stored.codes)
    # The largest sum there can be: every code of the data 255.
    data = np.full(GROUP, 255)
    together = np.moveaxis(stored.codes, summed, -1).reshape(-1, shape[summed])[:, :GROUP]
    assert np.abs(together[:, :2].astype(int) @ data[:2]).max() <= np.iinfo(np.int16).max


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("columns", [7, 64, 130])
@pytest.mark.parametrize("symmetric", [False, True])
def test_groups_of_4_bits(group: int, columns: int, symmetric: bool) -> None:
    rows = RANDOM.standard_normal((6, columns)).astype(np.float32)
    stored = quantize_groups(rows, group, symmetric=symmetric)
    assert stored.packed.dtype == np.uint8
    assert stored.scales.shape == (6, -(-columns // group))
    assert stored.values.shape == rows.shape
    assert sqnr_db(rows, stored.values) > 16
    codes = unpack_nibbles(stored.packed)
    assert codes.min() >= (1 if symmetric else 0)


def test_nibbles_come_back() -> None:
    codes = RANDOM.integers(0, 16, (3, 10)).astype(np.uint8)
    assert np.array_equal(unpack_nibbles(pack_nibbles(codes)), codes)


def test_powers_of_two_take_the_nearest() -> None:
    known = log2_values(np.arange(16))
    ratios = np.linspace(-1.3, 1.3, 1001).astype(np.float32)
    chosen = log2_values(log2_codes(ratios))
    nearest = np.abs(ratios[:, None] - known).min(axis=1)
    assert np.allclose(np.abs(ratios - chosen), nearest, atol=1e-7)


def test_log2_weights_are_powers_of_two_times_their_scale() -> None:
    rows = RANDOM.standard_normal((4, 32)).astype(np.float32)
    stored = quantize_log2(rows, 32)
    ratio = np.abs(stored.values / stored.scales)
    exponents = np.log2(ratio[ratio > 0])
    assert np.allclose(exponents, np.rint(exponents))
    assert sqnr_db(rows, stored.values) > 13


def test_sqnr_is_the_ratio_of_powers() -> None:
    assert sqnr_db(np.float32([10, 0]), np.float32([10, 1])) == pytest.approx(20)
    assert sqnr_db(np.float32([1]), np.float32([1])) == np.inf
