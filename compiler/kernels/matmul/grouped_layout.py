"""Lay out weights of a few bits with a scale for each group, for all kernels that read them.

A weight [N, K] is kept in panels of some columns (`panel_columns`), so that one row of activations
reads it as it lies in memory. A panel holds its groups one behind the other; a group, the planes of
their codes (`grouped_codes.PLANES`); a plane, unit by unit (`GroupedDot`), the values of all
columns, those of as many units as a byte has room for beside each other in its bits; or, where
whole bytes are multiplied (`GroupedDot.high`), those of two vectors of columns, the first in the
low halves, the second, less 8, in the high ones. Scales and what else groups have are beside it,
[panels, groups, columns]. The layout depends on the target alone.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.quantized_values import weight_to_float
from edgec.compiler.kernels.isa import GroupedDot, isa_of
from edgec.compiler.kernels.vectors import broadcast, constant, vector_dtype
from edgec.compiler.numerics.grouped_codes import PLANES, UNIT_VALUES, GroupForm, unpack_codes
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.targets.target import Target

# Vectors of a panel, at least this many columns: what one row is multiplied with at once.
_PANEL_COLUMNS, _PANEL_VECTORS = 16, {4: 8}
# Codes that are brought into order together.
PACKED_VALUES = 1 << 21
# What kernels read arrays as that they have in another dtype than the bundle.
_READ_AS = {"float16": "uint16"}


@dataclass(frozen=True)
class GroupNumbers:
    """Group numbers are what vectors of columns have in a group.

    Attributes:
        scale: float32.
        zero: the zero point, float32; None if there is none.
        minimum: float32; None if there is none.
    """

    scale: Any
    zero: Any
    minimum: Any


def panel_columns(target: Target) -> int:
    """Return columns of a panel."""
    lanes = target.float_lanes
    return max(_PANEL_COLUMNS, lanes * _PANEL_VECTORS.get(lanes, 1))


@dataclass(frozen=True)
class VectorPlace:
    """A vector place says where the codes of a vector of columns are.

    Attributes:
        start: the first byte of its first unit in a group.
        odd: 1 where they are in high halves, else 0; where two vectors share bytes.
    """

    start: Any
    odd: Any = 0


def dot_of_codes(bits: int, target: Target) -> GroupedDot:
    """Return how the target multiplies codes; it has a way."""
    dot = isa_of(target).grouped_dot(bits)
    assert dot is not None
    return dot


def place_in_unit(dot: GroupedDot, columns: int, column: Any, value: int) -> Any:
    """Return where one of the four values of a column is in a vector of `columns` of them."""
    if dot.in_halves:
        return value // 2 * (2 * columns) + column * 2 + value % 2
    return column * DOT_WIDTH + value


def less_middle(bits: int, target: Target) -> bool:
    """Return whether codes and zero points are kept less 128."""
    return bits == 8 and dot_of_codes(bits, target).signed


class WeightReader:
    """A weight reader declares the buffers of a weight, and writes the code that reads them.

    Args:
        e: what the kernel is written with.
        target: what it is written for.
        form: how the weight is kept.
        rows: columns of the product, rows of the weight.
        groups: of each of them.
    """

    def __init__(self, e: Emitter, target: Target, form: GroupForm, rows: int, groups: int) -> None:
        self.e, self.form, self.groups = e, form, groups
        self.signed = less_middle(form.bits, target)
        # How two vectors of columns that share bytes are multiplied; and units that share bytes.
        self.high = dot_of_codes(form.bits, target).high
        self.together = 1 if self.high else form.values_together
        # Columns of a panel; bytes of a unit of a vector of them, of all of them, and of a group.
        self.panel = panel_columns(target)
        self.vector, self.unit_bytes = DOT_WIDTH * target.float_lanes, DOT_WIDTH * self.panel
        self.step_bytes = form.group * self.panel * form.bits // 8
        panels = -(-rows // self.panel)
        self.unit_groups = max(1, UNIT_VALUES // form.group)
        self.buffers: dict[str, Any] = {}
        kinds = {"scales": form.scales, "minima": form.minima, "zeros": self._codes_dtype}
        for name in form.names:
            count = groups // self.unit_groups if name.endswith("units") else groups
            size = panels * (groups * self.step_bytes if name == "codes" else count * self.panel)
            kind = "uint8" if name == "codes" else kinds.get(name, "float16")
            self.buffers[name] = e.buffer(name, size, _READ_AS.get(kind, kind))

    @property
    def _codes_dtype(self) -> str:
        return "int8" if self.signed else "uint8"

    def numbers(self, panel: Any, group: Any, column: Any, lanes: int = 1) -> GroupNumbers:
        """Return what neighbouring columns of a panel have in a group."""
        form = self.form

        def at(count: int, number: Any) -> Any:
            return self.e.let("at", (panel * count + number) * self.panel + column)

        place = at(self.groups, group)
        units = None
        if "int8" in (form.scales, form.minima):
            unit = tirx.floordiv(group, self.unit_groups)
            units = at(self.groups // self.unit_groups, unit)

        def number(name: str, kind: str, of_units: str) -> Any:
            value = self._load(self.buffers[name], place, kind, lanes)
            if kind == "int8":
                value = value * self._load(self.buffers[of_units], units, "float16", lanes)
            return self.e.let("number", value)

        zero = minimum = None
        if form.zeros:
            stored = self.e.load(self.buffers["zeros"], place, lanes)
            zero = self.e.let("zero", tirx.Cast(vector_dtype("float32", lanes), stored))
        if form.minima:
            minimum = number("minima", form.minima, "minimum_units")
        return GroupNumbers(number("scales", form.scales, "scale_units"), zero, minimum)

    def _load(self, buffer: Any, at: Any, kind: str, lanes: int) -> Any:
        return weight_to_float(self.e.load(buffer, at, lanes), kind, self.e.isa.converts_float16)

    def place(self, panel: Any, part: Any, odd: Any) -> VectorPlace:
        """Return where the first group of vector `part` of a panel begins; `odd`: of its parity."""
        start = panel * (self.groups * self.step_bytes)
        if self.high is None:
            return VectorPlace(self.e.let("codes", start + part * self.vector))
        pair = part // 2 if isinstance(part, int) else tirx.floordiv(part, 2)
        return VectorPlace(self.e.let("codes", start + pair * self.vector), odd)

    def whole_bytes(self, places: list[VectorPlace], first: Any) -> list[list[Any]]:
        """Return a unit of vectors as `GroupedDot.high` takes them; they lie pair by pair."""
        e, found = self.e, []
        for place in places[::2]:
            at = place.start + first * (self.unit_bytes // 2)
            both = e.let("codes", e.load(self.buffers["codes"], at, self.vector))
            found += [e.let("code", _part(both, 0, 4, 0, self.vector)), both]
        return [found]

    def units(self, places: list[VectorPlace], first: Any) -> list[list[Any]]:
        """Return codes [unit][vector] of the units that share bytes.

        Args:
            places: where vectors of columns have their group.
            first: the first of the units.
        """
        e, bits, vector = self.e, self.form.bits, self.vector
        if self.high is not None:
            return [[self._half(place, first) for place in places]]
        together = self.together
        found: list[list[Any]] = [[None] * len(places) for _ in range(together)]
        for number, place_of in enumerate(places):
            start = place_of.start
            plane = shift = 0
            for width in PLANES[bits]:
                each = 8 // width
                for word in range(together // each):
                    words = first * (self.unit_bytes * width // 8) + word * self.unit_bytes
                    at = start + plane + words
                    codes = e.let("codes", e.load(self.buffers["codes"], at, vector))
                    for place in range(each):
                        unit = found[word * each + place]
                        part = _part(codes, place * width, width, shift, vector)
                        part = part if unit[number] is None else unit[number] | part
                        unit[number] = e.let("code", part)
                plane, shift = plane + self.step_bytes // bits * width, shift + width
        return found

    def _half(self, place: VectorPlace, unit: Any) -> Any:
        """Return a unit of a vector of columns that shares bytes with another."""
        e, vector = self.e, self.vector
        at = place.start + unit * (self.unit_bytes // 2)
        both = e.let("codes", e.load(self.buffers["codes"], at, vector))
        shift, less = (
            broadcast(tirx.Cast("uint8", place.odd * number), vector) for number in (4, 8)
        )
        moved = tirx.shift_right(both, shift) & constant(15, "uint8", vector)
        return e.let("code", moved ^ less)

    def code(self, place: VectorPlace, unit: int, where: Any) -> Any:
        """Return one code as int32.

        Args:
            place: where a vector of columns has the group.
            unit: which one of the group.
            where: the byte of the value in it.
        """
        e, bits, start = self.e, self.form.bits, place.start
        if self.high is not None:
            both = e.load(self.buffers["codes"], start + unit * (self.unit_bytes // 2) + where)
            odd = tirx.Cast("int32", place.odd)
            shifted = tirx.shift_right(tirx.Cast("int32", both), odd * 4)
            return (shifted & tirx.const(15, "int32")) ^ (odd * 8)
        code: Any = None
        plane = shift = 0
        for width in PLANES[bits]:
            each = 8 // width
            at = start + (plane + unit // each * self.unit_bytes) + where
            stored = e.load(self.buffers["codes"], at)
            if width == 8:
                kind = self._codes_dtype
                return tirx.Cast("int32", tirx.reinterpret(kind, stored))
            low, mask = tirx.const(unit % each * width, "int32"), (1 << width) - 1
            part = (tirx.Cast("int32", stored) >> low) & tirx.const(mask, "int32")
            part = part << tirx.const(shift, "int32")
            code = part if code is None else code | part
            plane, shift = plane + self.step_bytes // bits * width, shift + width
        return code


def _part(codes: Any, low: int, width: int, shift: int, vector: int) -> Any:
    """Return `width` bits from bit `low` on, at bit `shift`."""
    if width == 8:
        return codes
    moved = codes
    if low != shift:
        by = constant(abs(low - shift), "uint8", vector)
        moved = tirx.shift_right(codes, by) if low > shift else codes << by
    if low > shift and low + width == 8 and shift == 0:
        return moved
    return moved & constant((1 << width) - 1 << shift, "uint8", vector)


def pack_weights(form: GroupForm, target: Target, name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return an array of a weight as kernels read it.

    Args:
        form: how the weight is kept.
        target: whose kernels.
        name: of the array, of those of the form.
        array: codes uint8 [N, bytes], or numbers of groups or units [N, number].
    """
    if name == "codes":
        return _pack_codes(form, target, array)
    if name == "zeros" and less_middle(form.bits, target):
        array = (array ^ 128).view(np.int8)
    columns = panel_columns(target)
    padded = _whole_panels(array, columns)
    return np.ascontiguousarray(padded.reshape(-1, columns, padded.shape[1]).transpose(0, 2, 1))


def _whole_panels(array: NDArray[Any], columns: int) -> NDArray[Any]:
    """Return rows up to a whole panel; what is behind the last column is not stored."""
    return np.pad(array, ((0, -len(array) % columns), (0, 0)))


def _pack_codes(form: GroupForm, target: Target, packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    columns = panel_columns(target)
    panels, width = -(-len(packed) // columns), packed.shape[1]
    result = np.empty((panels, columns * width), np.uint8)
    # The codes of many rows, one to a byte, would take much memory.
    step = max(1, PACKED_VALUES // (columns * width))
    for first in range(0, panels, step):
        part = _whole_panels(packed[first * columns : (first + step) * columns], columns)
        result[first : first + step] = _pack_panels(form, target, part)
    return result


def _pack_panels(form: GroupForm, target: Target, packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    bits, group, lanes = form.bits, form.group, target.float_lanes
    vectors = panel_columns(target) // lanes
    codes = unpack_codes(packed, bits)
    if less_middle(bits, target):
        codes = codes ^ np.uint8(128)
    units = group // DOT_WIDTH
    # Panel, vector, column, group, unit, value.
    parts = codes.reshape(-1, vectors, lanes, codes.shape[1] // group, units, DOT_WIDTH)
    ordered = parts.transpose(0, 3, 4, 1, 2, 5)
    if dot_of_codes(bits, target).in_halves:
        ordered = ordered.reshape(*ordered.shape[:5], 2, 2).swapaxes(4, 5)
    if dot_of_codes(bits, target).high is not None:
        # Panel, group, unit, vector, byte of a unit of the vector.
        of_vectors = ordered.reshape(*ordered.shape[:4], DOT_WIDTH * lanes)
        low, high = of_vectors[:, :, :, ::2], of_vectors[:, :, :, 1::2]
        return (low | (high ^ np.uint8(8)) << np.uint8(4)).reshape(len(ordered), -1)
    # Panel, group, unit, byte of the units of all columns.
    ordered = ordered.reshape(*ordered.shape[:3], DOT_WIDTH * lanes * vectors)
    planes, shift = [], 0
    for width in PLANES[bits]:
        each = 8 // width
        plane = (ordered >> np.uint8(shift)) & np.uint8((1 << width) - 1)
        shares = plane.reshape(*plane.shape[:2], units // each, each, plane.shape[3])
        shifts = np.arange(each, dtype=np.uint8)[:, np.newaxis] * np.uint8(width)
        joined = np.bitwise_or.reduce(shares << shifts, axis=3)
        planes.append(joined.reshape(*joined.shape[:2], -1))
        shift += width
    return np.concatenate(planes, axis=2).reshape(len(ordered), -1)
