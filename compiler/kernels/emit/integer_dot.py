"""8-bit codes in kernels: reading them as floats, writing them, multiplying them.

A code stands for `(code - zero_point) * scale`. Products are summed four at a time in int32
lanes: 32 bits of the data (four input channels) are broadcast and multiplied with a vector that
holds four weights in each lane. Every sum is exact:

    vpdpbusd          uint8 * int8, sums in int32
    vpmaddubsw        uint8 * int8, adds pairs in int16: `fits` says whether weights allow it,
                      and whether two such sums can be added before they are widened
    vpmaddwd          int16 * int16, sums in int32: for all other weights
    sdot              int8 * int8, sums in int32
    smull, smlal      int8 * int8, two products in int16: 2 * 128 * 127 = 32,512

What follows the sums is float32 arithmetic whose order and rounding are fixed here, or arithmetic
in 16 bits, see `fixed_point`, so that every target gives the same codes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.emit.emitter import Emitter, Index, broadcast, shuffle, vector_dtype
from edgec.compiler.numerics.pair_sums import GROUP, pair_sums
from edgec.targets.target import Target


def read_codes(e: Emitter, buffer: Any, at: Index, lanes: int, zero_point: int = 0) -> Any:
    """Values of a buffer as float32, codes without their scale; exact."""
    value = e.load(buffer, at, lanes)
    if str(buffer.ty.dtype.dtype) == "float32":
        return value
    floats = tirx.Cast(vector_dtype("float32", lanes), value)
    if zero_point == 0:
        return floats
    return floats - broadcast(tirx.const(float(zero_point), "float32"), lanes)


# Weights of one value to a code: dtype in which a kernel reads them.
STORED = {"int8": "int8", "float16": "uint16", "bfloat16": "uint16", "float32": "float32"}


def has_halves(target: Target) -> bool:
    """Whether an instruction converts float16: F16C comes with AVX2, and Armv8 has it."""
    return target.float_lanes >= 8 or target.architecture == "aarch64"


def stored_floats(codes: Any, kind: str, halves: bool) -> Any:
    """Stored weights as float32, without their scale; exact.

    Args:
        codes: vector or scalar, of the dtype of `STORED`; halves of floats are finite.
        kind: key of `STORED`.
        halves: whether float16 can be converted as such. Else: the exponent of a float16 lies
            13 bits lower and its bias is 112 less.
    """
    lanes = int(codes.ty.dtype.lanes)
    floats, words = vector_dtype("float32", lanes), vector_dtype("int32", lanes)

    def number(value: int) -> Any:
        return broadcast(tirx.const(value, "int32"), lanes)

    if kind == "float32":
        return codes
    if kind == "int8":
        return tirx.Cast(floats, codes)
    if kind == "bfloat16":
        return tirx.reinterpret(floats, tirx.Cast(words, codes) << number(16))
    if halves:
        return tirx.Cast(floats, tirx.reinterpret(vector_dtype("float16", lanes), codes))
    bits = tirx.Cast(words, codes)
    size = tirx.reinterpret(floats, (bits & number(0x7FFF)) << number(13))
    scaled = size * broadcast(tirx.const(2.0**112, "float32"), lanes)
    sign = (bits & number(0x8000)) << number(16)
    return tirx.reinterpret(floats, tirx.reinterpret(words, scaled) | sign)


def codes_of(value: Any, quantizer: Sequence[Any], dtype: str, *open_ends: float) -> Any:
    """The codes of floats as int32, ties to even; `store_values` narrows them.

    Args:
        value: vector or scalar.
        quantizer: reciprocal of the scale, zero point (a whole float32), smallest and largest
            code less the zero point.
        dtype: of the codes.
        open_ends: whether the low end is the smallest code of all, and whether the high end is
            the largest and no product reaches 2**31; then narrowing may do what clipping does.
    """
    inverse, zero_point, low, high = quantizer
    lanes = int(value.ty.dtype.lanes)
    below, above = open_ends if open_ends and _packs(dtype, lanes) else (0, 0)
    wide = vector_dtype("int32", lanes)
    inside = value * inverse
    # What is far below becomes the smallest int32.
    inside = inside if below else tirx.max(inside, low)
    inside = inside if above else tirx.min(inside, high)
    return tirx.call_llvm_pure_intrin(wide, "llvm.lrint", inside) + tirx.Cast(wide, zero_point)


def store_values(e: Emitter, buffer: Any, at: Index, values: Sequence[Any]) -> None:
    """Store consecutive vectors (or one scalar) of floats, or of codes that are int32 yet."""
    dtype, lanes = str(buffer.ty.dtype.dtype), int(values[0].ty.dtype.lanes)
    if dtype == "float32" or lanes == 1:
        for number, value in enumerate(values):
            narrow = value if dtype == "float32" else tirx.Cast(dtype, value)
            e.store(buffer, at + number * lanes, narrow)
        return
    codes = [e.let("code", value) for value in values]
    done = 0
    while done < len(codes):
        # Four, two or one at once.
        count = min(GROUP, 1 << (len(codes) - done).bit_length() - 1)
        narrow = _narrowed(codes[done : done + count], dtype, lanes)
        e.store(buffer, at + done * lanes, narrow)
        done += count


def _packs(dtype: str, lanes: int) -> bool:
    """Whether vectors of int32 are narrowed by instructions that saturate."""
    return dtype == "uint8" and lanes in _PACKS


def _narrowed(values: Sequence[Any], dtype: str, lanes: int) -> Any:
    """Vectors of codes, up to four, as one."""
    count = len(values)
    if not _packs(dtype, lanes):
        together = shuffle(values, range(count * lanes)) if count > 1 else values[0]
        return tirx.Cast(vector_dtype(dtype, count * lanes), together)
    to_words, to_bytes = _PACKS[lanes]
    four = [values[number % count] for number in range(GROUP)]
    low = _intrinsic(to_words, f"int16x{2 * lanes}", *four[:2])
    high = low if count < GROUP else _intrinsic(to_words, f"int16x{2 * lanes}", *four[2:])
    mixed = _intrinsic(to_bytes, f"uint8x{4 * lanes}", low, high)
    # Each 128 bits hold four codes of every vector.
    ordered = [GROUP * part + vector for vector in range(count) for part in range(lanes // GROUP)]
    return _bytes(shuffle([_bytes(mixed, "int32", lanes)], ordered), "uint8", count * lanes)


_PACKS = {
    8: ("llvm.x86.avx2.packssdw", "llvm.x86.avx2.packuswb"),
    16: ("llvm.x86.avx512.packssdw.512", "llvm.x86.avx512.packuswb.512"),
}


def fused_multiply_add(x: Any, y: Any, z: Any) -> Any:
    """X * y + z rounded once, also where the code generator would be free not to."""
    return tirx.call_llvm_pure_intrin(z.ty, "llvm.fma", x, y, z)


@dataclass(frozen=True)
class Dot:
    """How a target multiplies codes.

    Attributes:
        data: dtype of the data's codes.
        unit: dtype in which the data are read: a group of codes, or a part of one.
        instructions: for a group of codes and one vector of weights.
        temporaries: registers beside accumulators, weights and one value.
        add: accumulator plus products, of the accumulator, groups of data, and as many of weights.
        wide: how weights are multiplied that do not fit; None: all fit.
    """

    data: str
    unit: str
    instructions: int
    temporaries: int
    add: Callable[[Any, Sequence[tuple[Any, ...]], Sequence[Any]], Any]
    wide: "Dot | None" = None

    @property
    def parts(self) -> int:
        """Units in a group of codes."""
        return GROUP * 8 // int(self.unit.removeprefix("int"))

    def read(self, e: Emitter, buffer: Any, at: Any, lanes: int) -> tuple[Any, ...]:
        """A group of codes in every lane."""
        return tuple(
            e.let("x", broadcast(e.load(buffer, at * self.parts + part), lanes))
            for part in range(self.parts)
        )

    def repeated(self, code: int, lanes: int) -> tuple[Any, ...]:
        """One code in place of all data."""
        byte = np.array([code]).astype(self.data).astype(np.uint8)
        unit = np.dtype(self.unit)
        value = int(np.repeat(byte, unit.itemsize).view(unit)[0])
        return (broadcast(tirx.const(value, self.unit), lanes),) * self.parts

    def fits(self, weight: NDArray[Any], axis: int, together: int = 1, largest: int = 255) -> bool:
        """Whether no sum of products saturates.

        Args:
            weight: int8.
            axis: of what is summed, in groups of codes.
            together: neighbouring groups whose products are added before they are widened.
            largest: code of the data.
        """
        if self.wide is None:
            return True
        sums = pair_sums(weight, axis, together).max(initial=0)
        return bool(largest * sums <= np.iinfo(np.int16).max)

    def arrange(self, weight: NDArray[Any], lanes: int) -> NDArray[Any]:
        """Groups of weights, one to a lane, as `add` wants them; int32."""
        if self.parts == 1:
            return weight
        halves = weight.view(np.int16).reshape(-1, lanes, self.parts)
        ordered = np.ascontiguousarray(halves.transpose(0, 2, 1))
        return ordered.view(np.int32).reshape(weight.shape)


def _bytes(value: Any, dtype: str, count: int) -> Any:
    return tirx.reinterpret(f"{dtype}x{count}", value)


def _intrinsic(name: str, dtype: str, *arguments: Any) -> Any:
    return tirx.call_llvm_pure_intrin(dtype, name, *arguments)


_Add = Callable[[Any, Sequence[tuple[Any, ...]], Sequence[Any]], Any]


def _one_by_one(add: Callable[[Any, tuple[Any, ...], Any], Any]) -> _Add:
    def add_all(acc: Any, xs: Sequence[tuple[Any, ...]], ws: Sequence[Any]) -> Any:
        for x, w in zip(xs, ws, strict=True):
            acc = add(acc, x, w)
        return acc

    return add_all


def _vnni(lanes: int) -> _Add:
    name = f"llvm.x86.avx512.vpdpbusd.{lanes * 32}"

    def add(acc: Any, x: tuple[Any, ...], w: Any) -> Any:
        data, weight = _bytes(x[0], "uint8", 4 * lanes), _bytes(w, "int8", 4 * lanes)
        return _intrinsic(name, f"int32x{lanes}", acc, data, weight)

    return _one_by_one(add)


def _pairs(lanes: int) -> _Add:
    wide = lanes == 16
    products = "llvm.x86.avx512.pmaddubs.w.512" if wide else "llvm.x86.avx2.pmadd.ub.sw"
    sums = "llvm.x86.avx512.pmaddw.d.512" if wide else "llvm.x86.avx2.pmadd.wd"

    def add(acc: Any, xs: Sequence[tuple[Any, ...]], ws: Sequence[Any]) -> Any:
        pairs: Any = None
        for x, w in zip(xs, ws, strict=True):
            data, weight = _bytes(x[0], "uint8", 4 * lanes), _bytes(w, "int8", 4 * lanes)
            more = _intrinsic(products, f"int16x{2 * lanes}", data, weight)
            pairs = more if pairs is None else pairs + more
        ones = broadcast(tirx.const(1, "int16"), 2 * lanes)
        return acc + _intrinsic(sums, f"int32x{lanes}", pairs, ones)

    return add


def _words(lanes: int) -> _Add:
    """Codes 0 and 2 of each group as int16, then 1 and 3."""
    products = "llvm.x86.avx512.pmaddw.d.512" if lanes == 16 else "llvm.x86.avx2.pmadd.wd"

    def add(acc: Any, x: tuple[Any, ...], w: Any) -> Any:
        data, weight = _bytes(x[0], "uint16", 2 * lanes), _bytes(w, "int16", 2 * lanes)
        byte, signed = (broadcast(tirx.const(8, kind), 2 * lanes) for kind in ("uint16", "int16"))
        total: Any = None
        for codes, weights in (
            (tirx.shift_right(tirx.shift_left(data, byte), byte), tirx.shift_left(weight, signed)),
            (tirx.shift_right(data, byte), weight),
        ):
            words = _bytes(codes, "int16", 2 * lanes), tirx.shift_right(weights, signed)
            product = _intrinsic(products, f"int32x{lanes}", *words)
            total = product if total is None else total + product
        return acc + total

    return _one_by_one(add)


def _sdot(acc: Any, x: tuple[Any, ...], w: Any) -> Any:
    data, weight = _bytes(x[0], "int8", 16), _bytes(w, "int8", 16)
    # One group in every lane of the last operand can be a lane of a vector.
    return _intrinsic("llvm.aarch64.neon.sdot", "int32x4", acc, weight, data)


def _smlal(acc: Any, x: tuple[Any, ...], w: Any) -> Any:
    """Codes 0 and 1 of each lane are in the first half of the weights, 2 and 3 in the second."""
    weight = _bytes(w, "int8", 16)
    total: Any = None
    for number, part in enumerate(x):
        half = shuffle([weight], range(8 * number, 8 * number + 8))
        data = tirx.Cast("int16x8", _bytes(part, "int8", 8))
        product = data * tirx.Cast("int16x8", half)
        total = product if total is None else total + product
    return acc + _intrinsic("llvm.aarch64.neon.saddlp", "int32x4", total)


def dot_of(target: Target) -> Dot | None:
    """How a target multiplies codes; None if it has no instructions for it."""
    lanes = target.float_lanes
    if target.architecture == "x86_64" and lanes in (8, 16):
        if target.integer_dot == "vnni":
            return Dot("uint8", "int32", 1, 2, _vnni(lanes))
        if target.integer_dot in ("vpmaddwd", "avx512bw"):
            wide = Dot("uint8", "int32", 4, 5, _words(lanes))
            return Dot("uint8", "int32", 3, 3, _pairs(lanes), wide)
    if target.architecture == "aarch64" and lanes == 4:
        if target.integer_dot in ("sdot", "i8mm"):
            return Dot("int8", "int32", 1, 0, _one_by_one(_sdot))
        if target.integer_dot == "smlal":
            return Dot("int8", "int16", 3, 3, _one_by_one(_smlal))
    return None
