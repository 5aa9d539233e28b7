"""Provide any instruction set: the whole protocol in arithmetic that LLVM has for every target.

All results are exact, the same as those of the instructions that other files use in its place; so
a new instruction set works at once, and is then made fast one operation at a time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import tirx

from edgec.compiler.kernels.isa.dot import (
    BytePairs,
    ByteTable,
    Dot,
    LoadTogether,
    PairDot,
    one_by_one,
)
from edgec.compiler.kernels.isa.grouped_dot import GroupedDot, never
from edgec.compiler.kernels.vectors import (
    add_saturating,
    constant,
    intrinsic,
    lanes_of,
    reinterpret,
    shuffle,
    vector_dtype,
)
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.targets.target import Target


class Generic:
    """Writes operations on vectors without instructions of any processor; see `Isa`."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.lanes = target.float_lanes

    @property
    def converts_float16(self) -> bool:
        """No: its bits are rearranged."""
        return False

    def dot(self) -> Dot | None:
        """Compute it in int32."""
        if self.target.why_in_floats:
            return None
        data = self.target.instruction_set.activation_dtype
        # Four bytes of each operand are cut out, widened, multiplied and added.
        return Dot(data, 6 * DOT_WIDTH, 4, one_by_one(_adder(data)))

    @property
    def multiplies_int16_faster(self) -> bool:
        """No: there is no such instruction."""
        return False

    def multiply_by_lane(self, words: Any, half: int, others: Any, lane: int) -> Any:
        """Compute it in int32."""
        picks = range(4 * half, 4 * half + 4)
        four = tirx.Cast("int32x4", shuffle([words], picks))
        return four * tirx.Cast("int32x4", shuffle([others], [lane] * 4))

    def multiply_halves(self, words: Any, others: Any, half: int) -> Any:
        """Compute it in int32."""
        left, right = (
            tirx.Cast("int32x4", shuffle([each], range(4 * half, 4 * half + 4)))
            for each in (words, others)
        )
        return left * right

    def matrix_dot(self) -> Callable[[Any, Any, Any], Any] | None:
        """Return None: there is none."""
        return None

    def byte_pairs(self) -> BytePairs | None:
        """Return None: there is no such instruction."""
        return None

    def pair_dot(self) -> PairDot | None:
        """Return None: there is none."""
        return None

    def grouped_dot(self, bits: int) -> GroupedDot | None:
        """Compute it in int32."""
        if self.target.why_in_floats:
            return None
        lanes, add = self.lanes, _adder("int8")

        def multiply(sums: Any, data: Any, weights: Any) -> Any:
            return add(sums, *(reinterpret(each, "int32", lanes) for each in (data, weights)))

        return GroupedDot(True, 0, multiply, never, instructions=6 * DOT_WIDTH)

    def saturates(self, dtype: str, lanes: int) -> bool:
        """Return False: it never does."""
        return False

    def narrow(self, values: Sequence[Any], dtype: str) -> Any:
        """Keep the lowest bits."""
        count = len(values) * lanes_of(values[0])
        together = shuffle(values, range(count)) if len(values) > 1 else values[0]
        return tirx.Cast(vector_dtype(dtype, count), together)

    def narrow_pair(self, pair: Sequence[Any]) -> Any:
        """Compute it in int32."""
        lanes = lanes_of(pair[0])
        picks = [
            vector * lanes + part + lane
            for part in range(0, lanes, DOT_WIDTH)
            for vector in range(2)
            for lane in range(DOT_WIDTH)
        ]
        return _narrowed(shuffle(pair, picks), "int32", "int16")

    def shift_and_narrow_pair(self, pair: Sequence[Any], by: int) -> Any:
        """Do one after the other."""
        bits = constant(by, "int32", lanes_of(pair[0]))
        shifted = [tirx.shift_right(each, bits) if by else each for each in pair]
        return self.narrow_pair(shifted)

    def multiply_high_rounded(self, left: Any, right: Any) -> Any:
        """Compute it in int32."""
        lanes = lanes_of(left)
        words = vector_dtype("int32", lanes)
        product = tirx.Cast(words, left) * tirx.Cast(words, right)
        rounded = product + constant(1 << 14, "int32", lanes)
        high = tirx.shift_right(rounded, constant(15, "int32", lanes))
        return tirx.Cast(vector_dtype("int16", lanes), high)

    def add_product(self, total: Any, left: Any, right: Any) -> Any:
        """Do one after the other."""
        return add_saturating(total, self.multiply_high_rounded(left, right))

    def positive_shifted(self, value: Any, by: int) -> Any:
        """Do one after the other."""
        lanes = lanes_of(value)
        positive = tirx.max(value, constant(0, "int16", lanes))
        return tirx.shift_left(positive, constant(by, "int16", lanes)) if by else positive

    def at_least(self, value: Any, bound: Any) -> Any:
        """Compare them."""
        return tirx.max(value, bound)

    def at_most(self, value: Any, bound: Any) -> Any:
        """Compare them."""
        return tirx.min(value, bound)

    def round_to_int32(self, value: Any) -> Any:
        """Leave it to LLVM."""
        return intrinsic("lrint", vector_dtype("int32", lanes_of(value)), value)

    def shift_each_and_narrow_pair(
        self, pair: Sequence[Any], by: Sequence[Any], some_left: bool
    ) -> Any:
        """Do one after the other."""
        shifted = [_shifted(each, b, some_left) for each, b in zip(pair, by, strict=True)]
        return self.narrow_pair(shifted)

    def rounding_offset(self, number: Any, fraction: int, dtype: str) -> Any:
        """Return a half more."""
        return number + tirx.const(1 << (fraction - 1), "int16")

    def narrow_rounded(
        self, halves: Sequence[Any], fraction: int, dtype: str, groups: Sequence[int]
    ) -> Any:
        """Compute it in int16."""
        lanes = lanes_of(halves[0])
        by = constant(fraction, "int16", lanes)
        shifted = [tirx.shift_right(half, by) if fraction else half for half in halves]
        both = [shifted[0], shifted[-1]]
        picks = [
            group % 4 // 2 * lanes + group // 4 * 8 + group % 2 * DOT_WIDTH + lane
            for group in groups
            for lane in range(DOT_WIDTH)
        ]
        return _narrowed(shuffle(both, picks), "int16", dtype)

    def narrow_from_least(
        self, _halves: Sequence[Any], _fraction: int, _dtype: str, _groups: Sequence[int]
    ) -> Any | None:
        """Return None: the zero point is added with what rounds."""
        return None

    def byte_table(self) -> ByteTable | None:
        """Return None: there is none."""
        return None

    def load_together(self, _count: int) -> LoadTogether | None:
        """Return None: there is none."""
        return None

    def permute_16(self) -> Callable[[Any, Any], Any] | None:
        """Return None: there is none."""
        return None

    def fixed_to_float(self) -> Callable[[Any, int], Any] | None:
        """Return None: there is none."""
        return None


def _adder(data: str) -> Callable[[Any, Any, Any], Any]:
    """Return what adds the four products of each lane to int32."""

    def add(acc: Any, x: Any, w: Any) -> Any:
        lanes = lanes_of(acc)

        def byte(word: Any, number: int, dtype: str) -> Any:
            up, down = 8 * (DOT_WIDTH - 1 - number), 8 * (DOT_WIDTH - 1)
            if dtype == "uint8":
                shifted = tirx.shift_right(word, constant(8 * number, "int32", lanes))
                return shifted & constant(0xFF, "int32", lanes)
            raised = tirx.shift_left(word, constant(up, "int32", lanes))
            return tirx.shift_right(raised, constant(down, "int32", lanes))

        for number in range(DOT_WIDTH):
            acc = acc + byte(x, number, data) * byte(w, number, "int8")
        return acc

    return add


def _narrowed(values: Any, wide: str, dtype: str) -> Any:
    """Return whole numbers in a smaller type, those beyond it as its ends."""
    lanes, limits = lanes_of(values), np.iinfo(dtype)
    low, high = (constant(int(end), wide, lanes) for end in (limits.min, limits.max))
    return tirx.Cast(vector_dtype(dtype, lanes), tirx.min(tirx.max(values, low), high))


def _shifted(value: Any, by: Any, some_left: bool) -> Any:
    """Return int32 shifted by numbers of each lane, first to the left; one of both by 0."""
    if not some_left:
        return tirx.shift_right(value, by)
    none = constant(0, "int32", lanes_of(value))
    up, down = tirx.max(none - by, none), tirx.max(by, none)
    return tirx.shift_right(tirx.shift_left(value, up), down)
