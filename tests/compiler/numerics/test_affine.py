import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.compiler.numerics.affine import (
    QuantizedType,
    Scale,
    affine_scale,
    dequantize_array,
    log2_values,
    pack_nibbles,
    quantize_array,
    quantize_channels,
    quantize_groups,
    quantize_log2,
    quantize_to_log2,
    shrink_to_pair_sums,
    sqnr_db,
    unpack_nibbles,
)
from edgec.compiler.numerics.pair_sums import DOT_WIDTH, INT8_LIMIT, UINT8_LIMIT, SumLimit

UINT8, INT8 = QuantizedType.of("uint8", 8), QuantizedType.of("int8", 8)
RANDOM = np.random.default_rng(0)


def test_codes_saturate_and_ties_go_to_even() -> None:
    scale = Scale(1.0, 0, INT8)
    values = np.float32([-np.inf, -128.5, -0.5, 0.5, 1.5, 2.5, 127.4, 127.5, np.inf])
    assert quantize_array(values, scale).tolist() == [-128, -128, 0, 0, 2, 2, 127, 127, 127]


@pytest.mark.parametrize(
    "qtype", [UINT8, INT8, QuantizedType.of("uint8", 7), QuantizedType.of("int8", 7)]
)
@pytest.mark.parametrize("symmetric", [False, True])
@given(low=st.floats(-1e4, 1e4), width=st.floats(1e-3, 1e4))
@settings(max_examples=40)
def test_zero_is_exact_and_the_range_is_covered_to_a_step(
    qtype: QuantizedType, symmetric: bool, low: float, width: float
) -> None:
    scale = affine_scale(low, low + width, qtype, symmetric=symmetric)
    values = np.float32([0, low, low + width])
    back = dequantize_array(quantize_array(values, scale), scale)
    assert back[0] == 0
    assert np.all(np.abs(back - values) <= scale.scale * 1.001)


def test_an_empty_range_has_scale_one() -> None:
    assert affine_scale(0.0, 0.0, UINT8, symmetric=False) == Scale(1.0, 0, UINT8)


def test_symmetric_codes_have_their_zero_in_the_middle() -> None:
    assert affine_scale(-1, 1, UINT8, symmetric=True).zero_point == 128
    assert (
        affine_scale(-1, 1, QuantizedType.of("int8", 8, narrow=True), symmetric=True).zero_point
        == 0
    )


@pytest.mark.parametrize("largest", [127, 63])
def test_channels_are_off_by_half_a_step_at_most(largest: int) -> None:
    weight = RANDOM.standard_normal((5, 3, 3, 3)).astype(np.float32)
    weight[2] = 0
    packed_weight = quantize_channels(weight, 0, largest)
    assert np.abs(packed_weight.quantized).max() == largest
    assert packed_weight.scales[2] == 1
    step = packed_weight.scales.reshape(-1, 1, 1, 1)
    assert np.all(np.abs(packed_weight.values - weight) <= step * 0.5001)


def test_scales_are_not_below_the_least() -> None:
    """So the bias of a channel that training let die is an int32 in units of its products."""
    weight = np.float32([[1e-12, -1e-12], [127, 1]])
    packed_weight = quantize_channels(weight, 0, 127, least=np.float32([1e-6, 1e-6]))
    assert packed_weight.scales.tolist() == [np.float32(1e-6), 1]
    assert packed_weight.quantized.tolist() == [[0, 0], [127, 1]]


@pytest.mark.parametrize("limit", [UINT8_LIMIT, INT8_LIMIT])
@pytest.mark.parametrize(
    ("shape", "axis", "reduced_axis"),
    [((40, 30, 3, 3), 0, 1), ((64, 1, 5, 5), 0, -1), ((50, 20), 1, -2), ((8, 6, 3), 0, 1)],
)
def test_weights_that_meet_in_an_int16_keep_to_its_range(
    shape: tuple[int, ...], axis: int, reduced_axis: int, limit: SumLimit
) -> None:
    weight = RANDOM.standard_normal(shape).astype(np.float32) + 0.5
    free = quantize_channels(weight, axis, 127)
    assert limit.sums(free.quantized, reduced_axis).max() > limit.largest
    packed_weight = quantize_channels(weight, axis, 127, reduced_axis, limit=limit)
    most = limit.sums(packed_weight.quantized, reduced_axis).max()
    assert limit.largest - 8 < most <= limit.largest
    step = np.expand_dims(packed_weight.scales, [i for i in range(weight.ndim) if i != axis])
    assert np.all(np.abs(packed_weight.values - weight) <= step * 0.5001)
    shrunk = shrink_to_pair_sums(free.quantized, reduced_axis, limit)
    assert limit.sums(shrunk, reduced_axis).max() <= limit.largest
    np.testing.assert_array_equal(
        shrink_to_pair_sums(packed_weight.quantized, reduced_axis, limit), packed_weight.quantized
    )
    # The largest sum there can be: every value of the data 255, or of either sign.
    together = np.moveaxis(packed_weight.quantized, reduced_axis, -1).reshape(
        -1, shape[reduced_axis]
    )[:, :DOT_WIDTH]
    meeting = together[:, :: 2 if limit.in_halves else 1][:, :2].astype(int)
    most = 128 * np.abs(meeting).sum(1) if limit.in_halves else np.abs(meeting @ [255, 255])
    assert most.max() <= np.iinfo(np.int16).max


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("columns", [7, 64, 130])
@pytest.mark.parametrize("symmetric", [False, True])
def test_groups_of_4_bits(group: int, columns: int, symmetric: bool) -> None:
    rows = RANDOM.standard_normal((6, columns)).astype(np.float32)
    packed_weight = quantize_groups(rows, group, symmetric=symmetric)
    assert packed_weight.packed.dtype == np.uint8
    assert packed_weight.scales.shape == (6, -(-columns // group))
    assert packed_weight.values.shape == rows.shape
    assert sqnr_db(rows, packed_weight.values) > 16
    quantized = unpack_nibbles(packed_weight.packed)
    assert quantized.min() >= (1 if symmetric else 0)


def test_nibbles_come_back() -> None:
    quantized = RANDOM.integers(0, 16, (3, 10)).astype(np.uint8)
    assert np.array_equal(unpack_nibbles(pack_nibbles(quantized)), quantized)


def test_powers_of_two_take_the_nearest() -> None:
    known = log2_values(np.arange(16))
    ratios = np.linspace(-1.3, 1.3, 1001).astype(np.float32)
    chosen = log2_values(quantize_to_log2(ratios))
    nearest = np.abs(ratios[:, None] - known).min(axis=1)
    assert np.allclose(np.abs(ratios - chosen), nearest, atol=1e-7)


def test_log2_weights_are_powers_of_two_times_their_scale() -> None:
    rows = RANDOM.standard_normal((4, 32)).astype(np.float32)
    packed_weight = quantize_log2(rows, 32)
    ratio = np.abs(packed_weight.values / packed_weight.scales)
    exponents = np.log2(ratio[ratio > 0])
    assert np.allclose(exponents, np.rint(exponents))
    assert sqnr_db(rows, packed_weight.values) > 13


def test_sqnr_is_the_ratio_of_powers() -> None:
    assert sqnr_db(np.float32([10, 0]), np.float32([10, 1])) == pytest.approx(20)
    assert sqnr_db(np.float32([1]), np.float32([1])) == np.inf
