"""Describe weights of a few bits with numbers for each group, as operators and kernels have them.

A value of row n in group g of its columns is one of

    scale[n, g] * (code - 2 ** (bits - 1))      in the middle
    scale[n, g] * (code - zero[n, g])           with whole zero points
    scale[n, g] * code + minimum[n, g]          with minima

Codes are kept in planes (`PLANES`): those of 6 bits in 4 bits of each and, behind all of a row's,
in 2 bits of each. Scales and minima are float16 or float32, or, as in the K types of llama.cpp,
int8 times a float16 that `UNIT_VALUES` columns share.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# Bits of the planes that hold codes of so many bits, the lowest first.
PLANES: dict[int, tuple[int, ...]] = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}
# Columns that share the unit of their scales.
UNIT_VALUES = 256
# A float that was computed from others of float16 is this close to it.
ROUNDED = 2.0**-20
# Rows looked at together, in values.
VALUES_AT_ONCE = 1 << 22
# Multiples of a unit that the largest number of its groups tends to be; all others follow.
_PEAKS = (63, -128, 15, -32)

Numbers = Literal["float16", "float32", "int8"]
"""How scales or minima are kept; int8 is in units."""


@dataclass(frozen=True)
class GroupForm:
    """A group form says how weights of a few bits are kept.

    Attributes:
        bits: of a code, a key of `PLANES`.
        group: consecutive values of a row that share a scale, a multiple of 16.
        scales: what scales are kept as.
        zeros: whether groups have zero points, uint8.
        minima: what minima are kept as; empty: there are none.
    """

    bits: int
    group: int
    scales: Numbers = "float32"
    zeros: bool = False
    minima: Numbers | Literal[""] = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the arrays, codes first, in the order of operands."""
        names = ["codes", "scales"]
        if self.scales == "int8":
            names.append("scale_units")
        if self.zeros:
            names.append("zeros")
        if self.minima:
            names.append("minima")
        if self.minima == "int8":
            names.append("minimum_units")
        return tuple(names)

    @property
    def values_together(self) -> int:
        """Return consecutive values of a row whose codes share bytes in some plane.

        >>> [GroupForm(bits, 32).values_together for bits in PLANES]
        [4, 8, 2, 8, 4, 1]
        """
        return 8 // min(PLANES[self.bits])


@dataclass(frozen=True)
class GroupedCodes:
    """Grouped codes are the arrays of a weight [rows, columns].

    Attributes:
        form: how they are kept.
        arrays: by the names of the form: codes uint8 [rows, bytes]; scales, zero points and minima
            [rows, groups]; units float16 [rows, groups * group / UNIT_VALUES].
    """

    form: GroupForm
    arrays: dict[str, NDArray[Any]]


def pack_codes(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return codes [rows, values], a multiple of 8 in a row, in planes: [rows, bytes].

    >>> pack_codes(np.array([[1, 2, 3, 4, 5, 6, 7, 0]], np.uint8), 3).tolist()
    [[57, 57, 120]]
    """
    planes, shift = [], 0
    for width in PLANES[bits]:
        if width == 8:
            return codes
        part = (codes >> np.uint8(shift)) & np.uint8((1 << width) - 1)
        each = 8 // width
        packed = part[:, 0::each].copy()
        for place in range(1, each):
            packed |= part[:, place::each] << np.uint8(place * width)
        planes.append(packed)
        shift += width
    return np.concatenate(planes, axis=1)


def unpack_codes(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return the inverse of `pack_codes`."""
    if bits == 8:
        return packed
    values = packed.shape[1] * 8 // bits
    codes = np.zeros((len(packed), values), np.uint8)
    start = shift = 0
    for width in PLANES[bits]:
        plane = packed[:, start : start + values * width // 8]
        each, mask = 8 // width, np.uint8((1 << width) - 1)
        for place in range(each):
            codes[:, place::each] |= (plane >> np.uint8(place * width) & mask) << np.uint8(shift)
        start, shift = start + values * width // 8, shift + width
    return codes


def grouped_codes(
    packed: NDArray[np.uint8],
    scales: NDArray[Any],
    zeros: NDArray[Any] | None,
    bits: int,
    group: int,
) -> GroupedCodes:
    """Return weights in the smallest form that holds the same values.

    Float zero points become minima; where these are float16 but for rounding, they are taken
    for it.

    Args:
        packed: codes of 4 or 8 bits, low bits first, uint8 [rows, bytes] of whole groups.
        scales: floats [rows, groups].
        zeros: of any dtype [rows, groups]; None stands for the middle.
        bits: of a code.
        group: values that share a scale.
    """
    scales, minima = scales.astype(np.float32), None
    if zeros is not None and zeros.dtype != np.uint8:
        scales, minima = _with_minima(packed, scales, zeros.astype(np.float32), bits)
        zeros = None
    packed, bits = _fewer_bits(packed, bits, group, zeros is None and minima is None)
    kind, numbers = _numbers(scales, UNIT_VALUES // group, 0)
    arrays: dict[str, NDArray[Any]] = {"codes": packed, "scales": numbers[0]}
    if kind == "int8":
        arrays["scale_units"] = numbers[1]
    if zeros is not None:
        arrays["zeros"] = np.ascontiguousarray(zeros)
    form = GroupForm(bits, group, kind, zeros is not None)
    if minima is None:
        return GroupedCodes(form, arrays)
    kind, numbers = _numbers(minima, UNIT_VALUES // group, ROUNDED)
    arrays["minima"] = numbers[0]
    if kind == "int8":
        arrays["minimum_units"] = numbers[1]
    return GroupedCodes(GroupForm(bits, group, form.scales, False, kind), arrays)


def _with_minima(
    packed: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zeros: NDArray[np.float32],
    bits: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return scales and minima; a group whose codes are all 0 is a minimum alone."""
    minima = (-zeros * scales).astype(np.float32)
    groups = packed.reshape(*scales.shape, -1)
    constant = ~groups.any(axis=2)
    return np.where(constant, np.float32(0), scales), minima


def _parts(count: int, width: int) -> Iterator[slice]:
    step = max(1, VALUES_AT_ONCE // max(1, width))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _fewer_bits(
    packed: NDArray[np.uint8], bits: int, group: int, middle: bool
) -> tuple[NDArray[np.uint8], int]:
    """Return the codes in as few bits as hold them; `middle`: they lie around theirs."""
    lowest, highest = 255, 0
    parts = list(_parts(len(packed), packed.shape[1]))
    for part in parts:
        pieces = [packed[part]] if bits == 8 else [packed[part] & 15, packed[part] >> 4]
        lowest = min(lowest, *(int(piece.min()) for piece in pieces))
        highest = max(highest, *(int(piece.max()) for piece in pieces))
    for fewer in PLANES:
        # Where codes would not share bytes in whole vectors, they keep theirs.
        if fewer >= bits or group % (4 * GroupForm(fewer, group).values_together):
            continue
        less = (1 << bits - 1) - (1 << fewer - 1) if middle else 0
        if less <= lowest and highest - less < 1 << fewer:
            made = [
                pack_codes(unpack_codes(packed[p], bits) - np.uint8(less), fewer) for p in parts
            ]
            return np.concatenate(made), fewer
    return np.ascontiguousarray(packed), bits


def _numbers(
    values: NDArray[np.float32], each: int, tolerance: float
) -> tuple[Numbers, tuple[NDArray[Any], ...]]:
    """Return how numbers [rows, groups] are kept, and their arrays.

    Args:
        values: the numbers.
        each: groups that may share a unit.
        tolerance: what what is kept may differ, relative to the number.
    """
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
        allowed = np.abs(values) * np.float32(tolerance)
        near = np.abs(halves.astype(np.float32) - values) <= allowed
    if near.all() and np.isfinite(halves).all():
        return "float16", (halves,)
    units = _in_units(values, each, tolerance)
    return ("float32", (values,)) if units is None else ("int8", units)


def _in_units(
    values: NDArray[np.float32], each: int, tolerance: float
) -> tuple[NDArray[np.int8], NDArray[np.float16]] | None:
    """Return numbers [rows, groups] as int8 times units float16 [rows, groups / each], if so."""
    rows, groups = values.shape
    if each < 2 or groups % each or not np.isfinite(values).all():
        return None
    blocks = values.reshape(-1, each)
    codes = np.zeros(blocks.shape, np.int8)
    units = np.zeros(len(blocks), np.float16)
    peaks = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, np.newaxis], axis=1)
    left = np.flatnonzero(peaks[:, 0])
    # A few say whether it is worth looking at all.
    for looked in (left[:: max(1, len(left) // 64)], left):
        rest = looked
        for multiple in dict.fromkeys([*_PEAKS, *range(127, 0, -1), *range(-1, -128, -1)]):
            if not len(rest):
                break
            unit = (peaks[rest, 0] / np.float32(multiple)).astype(np.float16)
            wide = unit.astype(np.float32)[:, np.newaxis]
            with np.errstate(all="ignore"):
                found = np.rint(blocks[rest] / wide)
                off = np.abs(found * wide - blocks[rest]) > tolerance * np.abs(blocks[rest])
                good = ~(off | (found < -128) | (found > 127) | ~np.isfinite(found)).any(axis=1)
            codes[rest[good]], units[rest[good]] = found[good].astype(np.int8), unit[good]
            rest = rest[~good]
        if len(rest):
            return None
    return codes.reshape(rows, groups), units.reshape(rows, groups // each)
