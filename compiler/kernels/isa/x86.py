"""Provide x86-64 with AVX2 or AVX-512.

    vpdpbusd          uint8 * int8, accumulated in int32
    vpdpwssd          int16 * int16, pairs accumulated in int32
    vpmaddubsw        uint8 * int8, adds pairs in int16: `Dot.fits` says whether weights allow it,
                      and whether two such sums can be added before they are widened
    vpmaddwd          int16 * int16, sums in int32: for all other weights
    vpsignb           negates where another vector is below 0
    vpackssdw         two vectors of int32 to int16, in each 128 bits four of either
    vpackuswb         two vectors of int16 to uint8, in each 128 bits eight of either
    vpmulhrsw         (a * b + 2**14) >> 15
    vpshufb           picks by the low half of a byte and gives 0 where bit 7 is set
    vpermps           16 floats of a register by the low four bits of int32

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.isa.dot import Add, BytePairs, ByteTable, Dot, PairDot, one_by_one
from edgec.compiler.kernels.isa.generic import Generic
from edgec.compiler.kernels.isa.grouped_dot import GroupedDot, exact_units, never
from edgec.compiler.kernels.vectors import (
    broadcast,
    constant,
    intrinsic,
    lanes_of,
    reinterpret,
    select,
    shuffle,
    subtract_saturating,
    wrapping,
)
from edgec.compiler.numerics.pair_sums import DOT_WIDTH

# Bytes of a table that one instruction picks from.
_PART = 16

# By lanes of int32.
_PACK_WORDS = {8: "x86.avx2.packssdw", 16: "x86.avx512.packssdw.512"}
_PACK_BYTES = {8: "x86.avx2.packuswb", 16: "x86.avx512.packuswb.512"}
_MULTIPLY_HIGH = {8: "x86.avx2.pmul.hr.sw", 16: "x86.avx512.pmul.hr.sw.512"}
_PAIRS_OF_BYTES = {8: "x86.avx2.pmadd.ub.sw", 16: "x86.avx512.pmaddubs.w.512"}
_PAIRS_OF_WORDS = {8: "x86.avx2.pmadd.wd", 16: "x86.avx512.pmaddw.d.512"}
_SIGN = {8: "x86.avx2.psign.b"}
_PICK = {8: "x86.avx2.pshuf.b", 16: "x86.avx512.pshuf.b.512"}


class X86(Generic):
    """Writes operations of AVX2 and AVX-512; what vectors of 128 bits need is generic."""

    @property
    def converts_float16(self) -> bool:
        """F16C comes with AVX2."""
        return self.lanes >= 8

    def dot(self) -> Dot | None:
        """Return products of uint8 and int8."""
        if self.target.why_in_floats or self.target.integer_dot == "generic":
            return super().dot()
        if self.target.integer_dot == "vnni":
            return Dot("uint8", 1, 2, _vnni(self.lanes))
        wide = Dot("uint8", 4, 5, _words(self.lanes))
        return Dot("uint8", 3, 3, _pairs(self.lanes), wide, sums={1: 2, 2: 4}, widening=2)

    def byte_pairs(self) -> BytePairs | None:
        """Return vpmaddubsw where there is no vpdpbusd."""
        dot = self.dot()
        if dot is None or dot.exact_fallback is None or self.lanes not in _PAIRS_OF_BYTES:
            return None
        return BytePairs(_sums_of_bytes(self.lanes), _sums_of_words(self.lanes))

    def pair_dot(self) -> PairDot | None:
        """Return products of pairs of int16."""
        if self.dot() is None or self.lanes not in _PAIRS_OF_WORDS:
            return None
        if self.target.integer_dot == "vnni":
            return PairDot(1, _word_vnni(self.lanes))
        return PairDot(2, _pairs_of_words(self.lanes))

    def grouped_dot(self, bits: int) -> GroupedDot | None:
        """Return products of codes as uint8 and activations as int8."""
        if self.target.why_in_floats or self.target.integer_dot == "generic":
            return super().grouped_dot(bits)
        if self.target.integer_dot == "vnni":
            return GroupedDot(False, 0, _unsigned_vnni(self.lanes), never)
        widen = _widen_pairs(self.lanes)
        if bits < 8:
            most, multiply = exact_units(bits), _unsigned_pairs(self.lanes)
            return GroupedDot(False, most, multiply, widen, instructions=2, widen_instructions=2)
        # 2 * 128 * 127 = 32,512
        return GroupedDot(
            True, 1, _signed_pairs(self.lanes), widen, instructions=3, widen_instructions=2
        )

    def saturates(self, dtype: str, lanes: int) -> bool:
        """Return to uint8."""
        return dtype == "uint8" and lanes in _PACK_BYTES

    def narrow(self, values: Sequence[Any], dtype: str) -> Any:
        """Return to uint8 by way of int16."""
        lanes, count = lanes_of(values[0]), len(values)
        if not self.saturates(dtype, lanes):
            return super().narrow(values, dtype)
        four = [values[number % count] for number in range(DOT_WIDTH)]
        low = self.narrow_pair(four[:2])
        high = low if count < DOT_WIDTH else self.narrow_pair(four[2:])
        mixed = intrinsic(_PACK_BYTES[lanes], f"uint8x{4 * lanes}", low, high)
        # Each 128 bits hold four of every vector.
        ordered = [
            DOT_WIDTH * p + vector for vector in range(count) for p in range(lanes // DOT_WIDTH)
        ]
        groups = shuffle([reinterpret(mixed, "int32", lanes)], ordered)
        return reinterpret(groups, "uint8", count * lanes)

    def narrow_pair(self, pair: Sequence[Any]) -> Any:
        """Use one instruction."""
        lanes = lanes_of(pair[0])
        if lanes not in _PACK_WORDS:
            return super().narrow_pair(pair)
        return intrinsic(_PACK_WORDS[lanes], f"int16x{2 * lanes}", *pair)

    def multiply_high_rounded(self, left: Any, right: Any) -> Any:
        """Use one instruction."""
        name = _MULTIPLY_HIGH.get(lanes_of(left) // 2)
        if name is None:
            return super().multiply_high_rounded(left, right)
        return intrinsic(name, left.ty, left, right)

    def narrow_rounded(
        self, halves: Sequence[Any], fraction: int, dtype: str, groups: Sequence[int]
    ) -> Any:
        """Return to uint8."""
        lanes = lanes_of(halves[0])
        if not self.saturates(dtype, lanes // 2):
            return super().narrow_rounded(halves, fraction, dtype, groups)
        by = constant(fraction, "int16", lanes)
        shifted = [tirx.shift_right(half, by) if fraction else half for half in halves]
        mixed = intrinsic(_PACK_BYTES[lanes // 2], f"uint8x{2 * lanes}", shifted[0], shifted[-1])
        ordered = shuffle([reinterpret(mixed, "int32", lanes // 2)], groups)
        return reinterpret(ordered, "uint8", DOT_WIDTH * len(groups))

    def byte_table(self) -> ByteTable | None:
        """Return 16 parts of the table, each in all 128 bits of a vector.

        Part k holds the exclusive or of table parts k and k - 1; x - 16 k, saturated, is below 0
        for all k above the high half of x, and the exclusive or of all parts that are picked from
        is the entry. Once for bytes below 128, once for x - 128.
        """
        if self.lanes not in _PICK:
            return None
        width = 4 * self.lanes
        return ByteTable(width, width, self._spread_table, in_registers=False, look=self._look)

    def _spread_table(self, table: NDArray[np.uint8]) -> NDArray[np.uint8]:
        parts = table.reshape(2, -1, _PART).copy()
        parts[:, 1:] ^= table.reshape(2, -1, _PART)[:, :-1]
        return np.tile(parts.reshape(-1, _PART), 4 * self.lanes // _PART).reshape(-1)

    def _look(self, let: Callable[[str, Any], Any], values: Any, parts: Sequence[Any]) -> Any:
        width = lanes_of(values)
        signed, half = f"int8x{width}", len(parts) // 2
        step = constant(_PART, "int8", width)
        found: Any = None
        for first in (0, half):
            place = values if first == 0 else values ^ constant(128, "uint8", width)
            place = tirx.reinterpret(signed, place)
            for number in range(half):
                if number:
                    place = subtract_saturating(place, step)
                place = let("place", place)
                picked = intrinsic(_PICK[self.lanes], signed, parts[first + number], place)
                found = picked if found is None else found ^ picked
                found = let("found", found)
        return reinterpret(found, "uint8", width)

    def permute_16(self) -> Callable[[Any, Any], Any] | None:
        """Return it with AVX-512."""
        if self.lanes != 16:
            return None
        return lambda table, indices: intrinsic(
            "x86.avx512.permvar.sf.512", "float32x16", table, indices
        )


def _vnni(lanes: int) -> Add:
    name = f"x86.avx512.vpdpbusd.{lanes * 32}"

    def add(acc: Any, x: Any, w: Any) -> Any:
        data, weight = reinterpret(x, "uint8", 4 * lanes), reinterpret(w, "int8", 4 * lanes)
        return intrinsic(name, f"int32x{lanes}", acc, data, weight)

    return one_by_one(add)


def _pairs(lanes: int) -> Add:
    def add(acc: Any, xs: Sequence[Any], ws: Sequence[Any]) -> Any:
        pairs: Any = None
        for x, w in zip(xs, ws, strict=True):
            data, weight = reinterpret(x, "uint8", 4 * lanes), reinterpret(w, "int8", 4 * lanes)
            more = intrinsic(_PAIRS_OF_BYTES[lanes], f"int16x{2 * lanes}", data, weight)
            pairs = more if pairs is None else pairs + more
        ones = constant(1, "int16", 2 * lanes)
        return acc + intrinsic(_PAIRS_OF_WORDS[lanes], f"int32x{lanes}", pairs, ones)

    return add


def _sums_of_bytes(lanes: int) -> Callable[[Any, Any], Any]:
    name, kind = _PAIRS_OF_BYTES[lanes], f"int16x{2 * lanes}"
    return lambda data, weights: intrinsic(name, kind, data, weights)


def _sums_of_words(lanes: int) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Return values of two vectors side by side, added by vpmaddwd."""
    ones = constant(1, "int16", 2 * lanes)

    def widen(left: Any, right: Any) -> tuple[Any, Any]:
        low, high = (
            shuffle(
                [left, right],
                [
                    part + half + lane + side
                    for part in range(0, 2 * lanes, 8)
                    for lane in range(4)
                    for side in (0, 2 * lanes)
                ],
            )
            for half in (0, 4)
        )
        name, kind = _PAIRS_OF_WORDS[lanes], f"int32x{lanes}"
        return intrinsic(name, kind, low, ones), intrinsic(name, kind, high, ones)

    return widen


def _words(lanes: int) -> Add:
    """Return values 0 and 2 of each group as int16, then 1 and 3."""

    def add(acc: Any, x: Any, w: Any) -> Any:
        data, weight = reinterpret(x, "uint16", 2 * lanes), reinterpret(w, "int16", 2 * lanes)
        byte, signed = (broadcast(tirx.const(8, kind), 2 * lanes) for kind in ("uint16", "int16"))
        total: Any = None
        for values, weights in (
            (tirx.shift_right(tirx.shift_left(data, byte), byte), tirx.shift_left(weight, signed)),
            (tirx.shift_right(data, byte), weight),
        ):
            words = reinterpret(values, "int16", 2 * lanes), tirx.shift_right(weights, signed)
            product = intrinsic(_PAIRS_OF_WORDS[lanes], f"int32x{lanes}", *words)
            total = product if total is None else total + product
        return acc + total

    return one_by_one(add)


def _word_vnni(lanes: int) -> Callable[[Any, Any, Any], Any]:
    name = f"x86.avx512.vpdpwssd.{lanes * 32}"

    def add(acc: Any, x: Any, w: Any) -> Any:
        words = [reinterpret(value, "int16", 2 * lanes) for value in (x, w)]
        return intrinsic(name, f"int32x{lanes}", acc, *words)

    return add


def _pairs_of_words(lanes: int) -> Callable[[Any, Any, Any], Any]:
    def add(acc: Any, x: Any, w: Any) -> Any:
        words = [reinterpret(value, "int16", 2 * lanes) for value in (x, w)]
        product = intrinsic(_PAIRS_OF_WORDS[lanes], f"int32x{lanes}", *words)
        return wrapping("add", acc, product)

    return add


def _unsigned_vnni(lanes: int) -> Callable[[Any, Any, Any], Any]:
    name = f"x86.avx512.vpdpbusd.{lanes * 32}"

    def multiply(sums: Any, data: Any, weights: Any) -> Any:
        codes, units = (
            reinterpret(weights, "uint8", 4 * lanes),
            reinterpret(data, "int8", 4 * lanes),
        )
        return intrinsic(name, f"int32x{lanes}", sums, codes, units)

    return multiply


def _unsigned_pairs(lanes: int) -> Callable[[Any, Any, Any], Any]:
    def multiply(sums: Any, data: Any, weights: Any) -> Any:
        codes, units = (
            reinterpret(weights, "uint8", 4 * lanes),
            reinterpret(data, "int8", 4 * lanes),
        )
        pairs = intrinsic(_PAIRS_OF_BYTES[lanes], f"int16x{2 * lanes}", codes, units)
        return pairs if sums is None else sums + pairs

    return multiply


def _signed_pairs(lanes: int) -> Callable[[Any, Any, Any], Any]:
    """Return products of |weight| and the activation with the sign of the weight."""
    kind = f"int8x{4 * lanes}"

    def multiply(_sums: Any, data: Any, weights: Any) -> Any:
        codes, units = reinterpret(weights, "int8", 4 * lanes), reinterpret(data, "int8", 4 * lanes)
        none = constant(0, "int8", 4 * lanes)
        # -128 stays, which is 128 as uint8.
        size = reinterpret(tirx.max(codes, none - codes), "uint8", 4 * lanes)
        if lanes in _SIGN:
            signed = intrinsic(_SIGN[lanes], kind, units, codes)
        else:
            signed = select(codes < none, none - units, units)
        return intrinsic(_PAIRS_OF_BYTES[lanes], f"int16x{2 * lanes}", size, signed)

    return multiply


def _widen_pairs(lanes: int) -> Callable[[Any, Any], Any]:
    ones = constant(1, "int16", 2 * lanes)

    def widen(sums: Any, partial: Any) -> Any:
        return sums + intrinsic(_PAIRS_OF_WORDS[lanes], f"int32x{lanes}", partial, ones)

    return widen
