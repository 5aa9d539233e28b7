"""Provide AArch64 with NEON, and its extensions for dot products and matrix products.

    sdot              int8 * int8, four products, accumulated in int32
    smull, smlal      int8 * int8, two products in int16: 2 * 128 * 127 = 32,512; four where the
                      magnitudes of their weights sum up to 255 at most
    sadalp            neighbours of int16 added to int32
    smmla             int8 * int8, eight products of two rows by two columns, accumulated in int32
    sqxtn             to half the bits, saturated; sqshrn shifts before that, sqrshrn also rounds
    fcvtns            float32 to int32, ties to even
    sqrdmulh          (a * b + 2**14) >> 15
    sqrdmlah          that added, with Armv8.1; sqrdmlsh would round halves the other way
    sqrshrun          to half the bits, unsigned, shifted and rounded before
    sqshlu            shifts to the left, 0 where the number is below
    sqshl             shifts to the left by numbers of each lane, saturated
    tbl, tbx          picks from 64 bytes; beyond, tbl gives 0 and tbx leaves what it is given
    ucvtf, scvtf      whole numbers to float32, with digits after the point

Source: Arm Architecture Reference Manual, A64 SIMD and floating-point instructions.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from edgec.compiler.kernels.isa.dot import ByteTable, Dot, LoadTogether, one_by_one
from edgec.compiler.kernels.isa.generic import Generic
from edgec.compiler.kernels.isa.grouped_dot import GroupedDot, exact_units, never
from edgec.compiler.kernels.vectors import constant, intrinsic, lanes_of, reinterpret, shuffle

_LANES = 4
# Products that smull and smlal add in int16, by groups of four that are multiplied at once.
_SUMS = {1: 2, 2: 4}
# Bytes of a table that one register holds, and that one instruction picks from.
_PART, _PICKED = 16, 64


class AArch64(Generic):
    """Writes operations of NEON."""

    @property
    def converts_float16(self) -> bool:
        """Armv8 has fcvtl."""
        return True

    def dot(self) -> Dot | None:
        """Return products of int8."""
        if self.target.why_in_floats or self.target.integer_dot == "generic":
            return super().dot()
        if self.target.integer_dot == "smlal":
            wide = Dot("int8", 4, 7, one_by_one(_sadalp), in_halves=True)
            return Dot("int8", 3, 7, _smlal, wide, in_halves=True, sums=_SUMS, widening=1)
        return Dot("int8", 1, 0, one_by_one(_sdot), by_lane=True)

    @property
    def multiplies_int16_faster(self) -> bool:
        """Without sdot, an instruction with int8 does less than two and a half of int16 do."""
        return self.target.integer_dot == "smlal"

    def multiply_by_lane(self, words: Any, half: int, others: Any, lane: int) -> Any:
        """Use one instruction, which takes a sum as well."""
        picks = range(4 * half, 4 * half + 4)
        four = words if lanes_of(words) == 4 else shuffle([words], picks)
        value = shuffle([others], [lane] * 4)
        return intrinsic("aarch64.neon.smull", "int32x4", four, value)

    def multiply_halves(self, words: Any, others: Any, half: int) -> Any:
        """Use one instruction, which takes a sum as well."""
        picks = range(4 * half, 4 * half + 4)
        left, right = (shuffle([each], picks) for each in (words, others))
        return intrinsic("aarch64.neon.smull", "int32x4", left, right)

    def matrix_dot(self) -> Callable[[Any, Any, Any], Any] | None:
        """Return it with Armv8.6."""
        return _smmla if self.target.integer_dot == "i8mm" and self.dot() else None

    def grouped_dot(self, bits: int) -> GroupedDot | None:
        """Return products of int8, of which those in int16 are added while they fit."""
        if self.target.why_in_floats or self.target.integer_dot == "generic":
            return super().grouped_dot(bits)
        if self.target.integer_dot == "smlal":
            # 2 * 128 * 127 = 32,512
            most = exact_units(bits) if bits < 8 else 1
            return GroupedDot(True, most, _halves, _widen_halves, True, True, 2, 1)
        return GroupedDot(True, 0, _sdot, never, by_lane=True, high=_high if bits == 4 else None)

    def saturates(self, dtype: str, lanes: int) -> bool:
        """Return to int8."""
        return dtype == "int8" and lanes == _LANES

    def narrow(self, values: Sequence[Any], dtype: str) -> Any:
        """Return to int8 by way of int16."""
        if not self.saturates(dtype, lanes_of(values[0])):
            return super().narrow(values, dtype)
        count = len(values)
        pairs = [
            self.narrow_pair([values[i], values[min(i + 1, count - 1)]]) for i in range(0, count, 2)
        ]
        parts = [intrinsic("aarch64.neon.sqxtn", "int8x8", pair) for pair in pairs]
        if count == 1:
            # Four bytes of eight LLVM would move twice.
            word = shuffle([reinterpret(parts[0], "int32", 2)], [0])
            return reinterpret(word, "int8", 4)
        return shuffle(parts, range(_LANES * count)) if count != 2 else parts[0]

    def narrow_pair(self, pair: Sequence[Any]) -> Any:
        """Return each vector by one instruction."""
        if lanes_of(pair[0]) != _LANES:
            return super().narrow_pair(pair)
        halves = [intrinsic("aarch64.neon.sqxtn", "int16x4", each) for each in pair]
        return shuffle(halves, range(2 * _LANES))

    def shift_and_narrow_pair(self, pair: Sequence[Any], by: int) -> Any:
        """Return each vector by one instruction."""
        if by == 0 or lanes_of(pair[0]) != _LANES:
            return super().shift_and_narrow_pair(pair, by)
        bits = tirx.IntImm("int32", by)
        halves = [intrinsic("aarch64.neon.sqshrn", "int16x4", each, bits) for each in pair]
        return shuffle(halves, range(2 * _LANES))

    def multiply_high_rounded(self, left: Any, right: Any) -> Any:
        """Use one instruction."""
        if lanes_of(left) != 2 * _LANES:
            return super().multiply_high_rounded(left, right)
        return intrinsic("aarch64.neon.sqrdmulh", left.ty, left, right)

    def add_product(self, total: Any, left: Any, right: Any) -> Any:
        """Use one instruction, with Armv8.1."""
        # Processors with dot products are of Armv8.2.
        with_dots = self.target.integer_dot in ("sdot", "i8mm")
        if not with_dots or lanes_of(left) != 2 * _LANES:
            return super().add_product(total, left, right)
        return intrinsic("aarch64.neon.sqrdmlah.v8i16", left.ty, total, left, right)

    def positive_shifted(self, value: Any, by: int) -> Any:
        """Use one instruction, which needs no vector of zeros."""
        if lanes_of(value) != 2 * _LANES:
            return super().positive_shifted(value, by)
        bits = constant(by, "int16", 2 * _LANES)
        return intrinsic("aarch64.neon.sqshlu.v8i16", value.ty, value, bits)

    def at_least(self, value: Any, bound: Any) -> Any:
        """Use one instruction, where LLVM keeps to one of the zeros by two."""
        return intrinsic("maxnum", value.ty, value, bound)

    def at_most(self, value: Any, bound: Any) -> Any:
        """Use one instruction, where LLVM keeps to one of the zeros by two."""
        return intrinsic("minnum", value.ty, value, bound)

    def round_to_int32(self, value: Any) -> Any:
        """Use one instruction, where LLVM rounds to a float and then converts it."""
        if lanes_of(value) != _LANES:
            return super().round_to_int32(value)
        return intrinsic("aarch64.neon.fcvtns.v4i32.v4f32", "int32x4", value)

    def shift_each_and_narrow_pair(
        self, pair: Sequence[Any], by: Sequence[Any], some_left: bool
    ) -> Any:
        """Return the high halves of what is shifted to the left, which saturates as they do."""
        if lanes_of(pair[0]) != _LANES:
            return super().shift_each_and_narrow_pair(pair, by, some_left)
        half = constant(16, "int32", _LANES)
        words = [
            reinterpret(intrinsic("aarch64.neon.sqshl", "int32x4", each, half - b), "int16", 8)
            for each, b in zip(pair, by, strict=True)
        ]
        return shuffle(words, range(1, 4 * _LANES, 2))

    def rounding_offset(self, number: Any, fraction: int, dtype: str) -> Any:
        """Return to int8 the instruction itself rounds."""
        return number if dtype == "int8" else super().rounding_offset(number, fraction, dtype)

    def narrow_rounded(
        self, halves: Sequence[Any], fraction: int, dtype: str, groups: Sequence[int]
    ) -> Any:
        """Return to int8; vectors of eight are in the order of the result."""
        if dtype != "int8":
            return super().narrow_rounded(halves, fraction, dtype, groups)
        shift = [tirx.IntImm("int32", fraction)] * (fraction > 0)
        name = "aarch64.neon.sqrshrn" if fraction else "aarch64.neon.sqxtn"
        parts = [intrinsic(name, "int8x8", half, *shift) for half in halves]
        return parts[0] if len(groups) == 2 else shuffle(parts, range(4 * len(groups)))

    def narrow_from_least(
        self, halves: Sequence[Any], fraction: int, dtype: str, groups: Sequence[int]
    ) -> Any | None:
        """Return to int8 by way of uint8: what is below the zero point becomes 0."""
        if dtype != "int8":
            return None
        shift = [tirx.IntImm("int32", fraction)] * (fraction > 0)
        name = "aarch64.neon.sqrshrun" if fraction else "aarch64.neon.sqxtun"
        parts = [intrinsic(f"{name}.v8i8", "int8x8", half, *shift) for half in halves]
        count = 4 * len(groups)
        narrowed = parts[0] if count == 8 else shuffle(parts, range(count))
        return narrowed ^ constant(-128, "int8", count)

    def byte_table(self) -> ByteTable | None:
        """Return 64 bytes at a time, in registers."""
        if self.lanes != _LANES:
            return None
        return ByteTable(_PART, _PART, lambda table: table, in_registers=True, look=_look)

    def load_together(self, count: int) -> LoadTogether | None:
        """Return three or four; ldp loads two, and its address can have an offset."""
        if self.lanes != _LANES or count not in (3, 4):
            return None
        name, kind = f"edgec_load_{count}", ", ".join(["<4 x i32>"] * count)
        load = f"@llvm.aarch64.neon.ld1x{count}.v4i32.p0"
        moves = [
            line
            for n in range(count)
            for line in (
                f"%v{n} = extractvalue {{ {kind} }} %all, {n}",
                f"%to{n} = getelementptr i8, ptr %to, i64 {16 * n}",
                f"store <4 x i32> %v{n}, ptr %to{n}, align 16",
            )
        ]
        body = [f"%all = call {{ {kind} }} {load}(ptr %from)", *moves, "ret i32 0"]
        lines = [
            f"declare {{ {kind} }} {load}(ptr)",
            f"define i32 @{name}(ptr %from, ptr %to) {{",
            *body,
            "}",
        ]
        return LoadTogether(name, "\n".join(lines))

    def fixed_to_float(self) -> Callable[[Any, int], Any] | None:
        """Use one instruction."""
        return _fixed_to_float


def _sdot(acc: Any, x: Any, w: Any) -> Any:
    data, weight = reinterpret(x, "int8", 16), reinterpret(w, "int8", 16)
    # One group in every lane of the last operand can be a lane of a vector.
    return intrinsic("aarch64.neon.sdot", "int32x4", acc, weight, data)


def _smlal(acc: Any, xs: Sequence[Any], ws: Sequence[Any]) -> Any:
    """Values 0 and 1 of each lane are in the first half of the vectors, 2 and 3 in the second."""
    sums: Any = None
    for x, w in zip(xs, ws, strict=True):
        sums = _halves(sums, x, w)
    return _widen_halves(acc, sums)


def _sadalp(acc: Any, x: Any, w: Any) -> Any:
    """Any values, in the order of `_smlal`."""
    data, weight = reinterpret(x, "int8", 16), reinterpret(w, "int8", 16)
    for number in range(2):
        half = range(8 * number, 8 * number + 8)
        values, weights = (tirx.Cast("int16x8", shuffle([each], half)) for each in (data, weight))
        acc += intrinsic("aarch64.neon.saddlp", "int32x4", values * weights)
    return acc


def _halves(sums: Any, data: Any, weights: Any) -> Any:
    """Return products of values 0 and 1 of each column, and those of 2 and 3 added to them."""
    units, codes = reinterpret(data, "int8", 16), reinterpret(weights, "int8", 16)
    for number in range(2):
        half = range(8 * number, 8 * number + 8)
        left, right = (tirx.Cast("int16x8", shuffle([each], half)) for each in (units, codes))
        sums = left * right if sums is None else sums + left * right
    return sums


def _widen_halves(sums: Any, partial: Any) -> Any:
    return sums + intrinsic("aarch64.neon.saddlp", "int32x4", partial)


def _high(both: Any, low: Any) -> Any:
    bits = tirx.const(4, "int32")
    return intrinsic("aarch64.neon.vcvtfxs2fp.v4f32.v4i32", "float32x4", both - low, bits)


def _smmla(acc: Any, rows: Any, columns: Any) -> Any:
    return intrinsic("aarch64.neon.smmla", "int32x4", acc, rows, columns)


def _look(_let: Callable[[str, Any], Any], values: Any, parts: Sequence[Any]) -> Any:
    kind = "uint8x16"
    found = intrinsic("aarch64.neon.tbl4", kind, *parts[:4], values)
    for number in range(1, 4):
        place = values - constant(number * _PICKED, "uint8", 16)
        four = parts[4 * number : 4 * number + 4]
        found = intrinsic("aarch64.neon.tbx4", kind, found, *four, place)
    return found


def _fixed_to_float(value: Any, bits: int) -> Any:
    lanes = lanes_of(value)
    name = f"aarch64.neon.vcvtfxu2fp.v{lanes}f32.v{lanes}i32"
    return intrinsic(name, f"float32x{lanes}", value, tirx.const(bits, "int32"))
