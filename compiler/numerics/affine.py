"""Provide the arithmetic of quantization; only NumPy.

A quantized value x stands for `(x - zero_point) * scale`. Quantized values are rounded to the
nearest, ties to even, and saturated, as ONNX's QuantizeLinear does it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.numerics.pair_sums import UINT8_LIMIT, SumLimit

Floats = NDArray[np.float32]

# A scale below this gives products of scales that are no normal float32.
SMALLEST_SCALE = 2.0**-60

# Clipping thresholds that the search for the least squared error tries, as shares of the range.
_SHARES = np.linspace(0.3, 1.0, 36)


@dataclass(frozen=True)
class QuantizedType:
    """A quantized type describes the integers of one format.

    Attributes:
        dtype: the dtype that holds them.
        low: smallest quantized value in use.
        high: largest quantized value in use.

    >>> QuantizedType.of("uint8", 7), QuantizedType.of("int8", 8, narrow=True)
    (QuantizedType(dtype='uint8', low=0, high=127), QuantizedType(dtype='int8', low=-127, high=127))
    """

    dtype: str
    low: int
    high: int

    @classmethod
    def of(cls, dtype: str, bits: int, *, narrow: bool = False) -> "QuantizedType":
        """Return quantized values of so many bits.

        A narrow signed range is symmetric about zero.
        """
        if dtype.startswith("u"):
            return cls(dtype, 0, 2**bits - 1)
        half = 2 ** (bits - 1)
        return cls(dtype, 1 - half if narrow else -half, half - 1)

    def halved(self) -> "QuantizedType":
        """Return quantized values of one bit less.

        >>> QuantizedType("int8", -128, 127).halved()
        QuantizedType(dtype='int8', low=-64, high=63)
        """
        return QuantizedType(self.dtype, -(-self.low // 2), self.high // 2)


@dataclass(frozen=True)
class Scale:
    """A scale describes per-tensor parameters; `zero_point` is a quantized value."""

    scale: float
    zero_point: int
    qtype: QuantizedType


def affine_scale(low: float, high: float, qtype: QuantizedType, *, symmetric: bool) -> Scale:
    """Return scale and zero point that cover [low, high] and represent 0 exactly.

    The range is widened to hold 0: padding is zero. Where it is [0, 0] the scale is 1.
    A symmetric scale has its zero point in the middle of the quantized values.

    >>> affine_scale(0.0, 255.0, QuantizedType("uint8", 0, 255), symmetric=False)
    Scale(scale=1.0, zero_point=0, qtype=QuantizedType(dtype='uint8', low=0, high=255))
    """
    low, high = min(low, 0.0), max(high, 0.0)
    middle = (qtype.low + qtype.high + 1) // 2
    if low == high:
        return Scale(1.0, middle if symmetric else qtype.low, qtype)
    if symmetric:
        scale = max(-low / (middle - qtype.low), high / (qtype.high - middle))
        return Scale(_float32(scale), middle, qtype)
    scale = _float32((high - low) / (qtype.high - qtype.low))
    zero_point = int(np.clip(qtype.low + np.rint(-low / scale), qtype.low, qtype.high))
    return Scale(scale, zero_point, qtype)


def _float32(scale: float) -> float:
    return float(np.float32(max(scale, SMALLEST_SCALE)))


def quantize_array(values: NDArray[Any], scale: Scale) -> NDArray[Any]:
    """Return quantized values.

    >>> scale = Scale(1.0, 0, QuantizedType("uint8", 0, 255))
    >>> quantize_array(np.float32([-9, 0.5, 1.5, 300]), scale)
    array([  0,   0,   2, 255], dtype=uint8)
    """
    whole = np.rint(values.astype(np.float32) / np.float32(scale.scale)) + scale.zero_point
    return np.clip(whole, scale.qtype.low, scale.qtype.high).astype(scale.qtype.dtype)


def dequantize_array(quantized: NDArray[Any], scale: Scale) -> Floats:
    """Return values of quantized values."""
    return ((quantized.astype(np.int32) - scale.zero_point) * np.float32(scale.scale)).astype(
        np.float32
    )


@dataclass(frozen=True)
class ChannelWeight:
    """A channel weight is int8 with a scale for each index of one axis and zero point 0.

    Attributes:
        quantized: int8, in the shape of the weights.
        scales: float32 [extent of the axis].
        axis: the axis of the output channels.
    """

    quantized: NDArray[np.int8]
    scales: Floats
    axis: int

    @property
    def values(self) -> Floats:
        """Return what the quantized values stand for."""
        return (self.quantized * _along(self.scales, self.axis, self.quantized.ndim)).astype(
            np.float32
        )


def channel_scales(weight: Floats, axis: int, largest: int) -> Floats:
    """Return the scales that bring each channel's largest magnitude to the largest value.

    1 if all 0.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    peak = np.abs(weight).max(axis=others, initial=0.0).astype(np.float64)
    scales = np.where(peak > 0, np.maximum(peak / largest, SMALLEST_SCALE), 1.0)
    return scales.astype(np.float32)


def quantize_channels(
    weight: Floats,
    axis: int,
    largest: int,
    reduced_axis: int | None = None,
    least: Floats | None = None,
    limit: SumLimit = UINT8_LIMIT,
) -> ChannelWeight:
    """Return symmetric quantized values in [-largest, largest], rounded to the nearest.

    Args:
        weight: the weight of any shape.
        axis: the axis of the output channels.
        largest: quantized value.
        reduced_axis: axis along which quantized values keep to the limit, by a larger scale of the
            channel; None: they need not.
        least: what scales are not below, float32 by channel.
        limit: of values whose products meet.

    >>> quantize_channels(np.float32([[127, 1], [0, 0]]), 0, 127).quantized.tolist()
    [[127, 1], [0, 0]]
    """
    axis %= weight.ndim
    scales = channel_scales(weight, axis, largest)
    if reduced_axis is not None:
        ratio = np.moveaxis(weight / _along(scales, axis, weight.ndim), axis, 0)
        place = reduced_axis % weight.ndim
        sums = limit.sums(ratio, place + (place < axis))
        most = sums.reshape(len(scales), -1).max(axis=1, initial=0)
        # Rounding can add a half to each of the weights.
        room = limit.largest - limit.products / 2
        scales = (scales * np.maximum(most / room, 1)).astype(np.float32)
    if least is not None:
        scales = np.maximum(scales, least)
    whole = np.rint(weight / _along(scales, axis, weight.ndim))
    return ChannelWeight(np.clip(whole, -largest, largest).astype(np.int8), scales, axis)


def shrink_to_pair_sums(
    quantized: NDArray[np.int8], reduced_axis: int, limit: SumLimit = UINT8_LIMIT
) -> NDArray[np.int8]:
    """Return quantized values that keep to the limit.

    Those of a sum that does not are shrunk together.

    >>> shrink_to_pair_sums(np.int8([[63, 63, 0, 0, 63, -1]]), 1).tolist()
    [[42, 42, 0, 0, 42, 0]]
    """
    last = np.moveaxis(quantized, reduced_axis, -1)
    sums = limit.sums(last, -1)
    share = limit.by_value(np.minimum(1, limit.largest / np.maximum(sums, 1)), last.shape[-1])
    return np.moveaxis(np.trunc(last * share).astype(np.int8), -1, reduced_axis)


def _along(values: NDArray[Any], axis: int, rank: int) -> NDArray[Any]:
    return values.reshape([-1 if i == axis else 1 for i in range(rank)])


@dataclass(frozen=True)
class GroupWeight:
    """A group weight describes rows of 4-bit values, two to a byte.

    With a scale for each group of a row.

    Attributes:
        packed: uint8 [rows, padded columns / 2]; the low nibble is the even column.
        scales: float32 [rows, groups].
        zero_points: uint8 [rows, groups], quantized values; None where each quantized value has a
            value of its own.
        columns: the columns of the rows, without padding.
        group: columns that share a scale.
    """

    packed: NDArray[np.uint8]
    scales: Floats
    zero_points: NDArray[np.uint8] | None
    columns: int
    group: int

    @property
    def values(self) -> Floats:
        """Return what the quantized values stand for, float32 [rows, columns]."""
        quantized = unpack_nibbles(self.packed)[:, : self.columns]
        scales = np.repeat(self.scales, self.group, axis=1)[:, : self.columns]
        if self.zero_points is None:
            return (log2_values(quantized) * scales).astype(np.float32)
        zeros = np.repeat(self.zero_points, self.group, axis=1)[:, : self.columns]
        return ((quantized.astype(np.int32) - zeros) * scales).astype(np.float32)


def pack_nibbles(quantized: NDArray[Any]) -> NDArray[np.uint8]:
    """Return quantized values below 16, [rows, even number], two to a byte.

    >>> pack_nibbles(np.array([[1, 2]])).tolist()
    [[33]]
    """
    return (quantized[:, 0::2] | quantized[:, 1::2] << 4).astype(np.uint8)


def unpack_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the inverse of `pack_nibbles`."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)


def _groups(rows: Floats, group: int) -> Floats:
    """Return [rows, groups, group], the last group of a row padded with zeros."""
    padding = -rows.shape[1] % group
    return np.pad(rows, ((0, 0), (0, padding))).reshape(len(rows), -1, group)


def quantize_groups(rows: Floats, group: int, *, symmetric: bool) -> GroupWeight:
    """Return 4-bit values: symmetric in 1..15 about 8, else 0..15 over each group's range.

    The symmetric scale is the one of least squared error among clipped ranges.

    Args:
        rows: float32 [rows, columns].
        group: an even number of columns.
        symmetric: whether every zero point is 8.
    """
    blocks = _groups(rows, group)
    if symmetric:
        peak = np.abs(blocks).max(axis=2)
        scales = _best_scale(blocks, peak / 7, lambda b, s: np.clip(np.rint(b / s), -7, 7) * s)
        zeros = np.full(scales.shape, 8, np.uint8)
    else:
        low, high = np.minimum(blocks.min(axis=2), 0), np.maximum(blocks.max(axis=2), 0)
        scales = _positive((high - low) / 15)
        zeros = np.clip(np.rint(-low / scales), 0, 15).astype(np.uint8)
    quantized = np.clip(np.rint(blocks / scales[..., None]) + zeros[..., None], 0, 15)
    if symmetric:
        quantized = np.maximum(quantized, 1)
    packed = pack_nibbles(quantized.astype(np.uint8).reshape(len(rows), -1))
    return GroupWeight(packed, scales, zeros, rows.shape[1], group)


# Code 0 is zero; bit 3 is the sign; 1..7 are 2**0 down to 2**-6.
_LOG2_VALUES: Floats = np.array(
    [0.0, *(2.0**-k for k in range(7)), 0.0, *(-(2.0**-k) for k in range(7))], np.float32
)


def quantize_log2(rows: Floats, group: int) -> GroupWeight:
    """Quantize to sign and exponent: each weight is 0 or a power of two times its group's scale.

    The scale is the one of least squared error, the nearest value is taken: between 2**-k and
    2**-(k+1) the threshold is their mean.
    """
    blocks = _groups(rows, group)
    peak = np.abs(blocks).max(axis=2)
    scales = _best_scale(blocks, peak, lambda b, s: log2_values(quantize_to_log2(b / s)) * s)
    quantized = quantize_to_log2(blocks / scales[..., None])
    packed = pack_nibbles(quantized.reshape(len(rows), -1))
    return GroupWeight(packed, scales, None, rows.shape[1], group)


def log2_values(quantized: NDArray[Any]) -> Floats:
    """Return what 4-bit values of powers of two stand for, before the scale.

    >>> log2_values(np.array([0, 1, 2, 9])).tolist()
    [0.0, 1.0, 0.5, -1.0]
    """
    return _LOG2_VALUES[quantized]


def quantize_to_log2(ratio: Floats) -> NDArray[np.uint8]:
    """Return the 4-bit values of the nearest of `log2_values`."""
    magnitude = np.abs(ratio)
    thresholds = np.array([2.0**-7, *(0.75 * 2.0**-k for k in range(5, -1, -1))])
    above = np.searchsorted(thresholds, magnitude, side="right")
    quantized = np.where(above == 0, 0, 8 - above)
    return (quantized + 8 * ((ratio < 0) & (quantized > 0))).astype(np.uint8)


def _positive(scales: NDArray[Any]) -> Floats:
    return np.where(scales > 0, np.maximum(scales, SMALLEST_SCALE), 1.0).astype(np.float32)


def _best_scale(blocks: Floats, full: Floats, rounded: Any) -> Floats:
    """Return the share of each group's full scale that rounds with the least squared error."""
    best = _positive(full)
    least = np.full(full.shape, np.inf)
    for share in _SHARES:
        scales = _positive(full * share)
        error = np.square(rounded(blocks, scales[..., None]) - blocks).sum(axis=2)
        better = error < least
        best, least = np.where(better, scales, best), np.where(better, error, least)
    return best


def sqnr_db(signal: NDArray[Any], result: NDArray[Any]) -> float:
    """Return 10 log10(sum signal^2 / sum (result - signal)^2) [dB]; infinite if equal."""
    wide = signal.astype(np.float64)
    noise = float(np.square(result.astype(np.float64) - wide).sum())
    power = float(np.square(wide).sum())
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(power / noise)) if power > 0 else float("-inf")
