"""Describe how kernels use the instructions of a target.

Every intrinsic of a processor, nowhere else.

`Generic` writes the whole protocol without any; an instruction set overrides what it has an
instruction for, and is entered in `ISAS`. What needs no code is in `edgec.targets.isa`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from edgec.compiler.kernels.isa.aarch64 import AArch64
from edgec.compiler.kernels.isa.dot import BytePairs, ByteTable, Dot, LoadTogether, PairDot
from edgec.compiler.kernels.isa.generic import Generic
from edgec.compiler.kernels.isa.grouped_dot import GroupedDot
from edgec.compiler.kernels.isa.x86 import X86
from edgec.targets.target import Target


class Isa(Protocol):
    """An instruction set writes the operations on vectors that kernels of integers need.

    Attributes:
        lanes: of vectors of 32 bits.
    """

    lanes: int

    @property
    def converts_float16(self) -> bool:
        """Return whether an instruction makes float32 of float16."""

    def dot(self) -> Dot | None:
        """Return how quantized values are multiplied; None if kernels compute in floats."""

    @property
    def multiplies_int16_faster(self) -> bool:
        """Return whether four products of int16 are worth a group of products of int8."""

    def multiply_by_lane(self, words: Any, half: int, others: Any, lane: int) -> Any:
        """Return four of a vector of int16, times one lane of another, int32.

        Args:
            words: four or eight.
            half: which four.
            others: eight.
            lane: which of them.
        """

    def multiply_halves(self, words: Any, others: Any, half: int) -> Any:
        """Return the first or last four of eight int16, times those of others, int32."""

    def matrix_dot(self) -> Callable[[Any, Any, Any], Any] | None:
        """Return what multiplies two rows by two columns of eight int8 at once, if anything.

        It takes the four sums, int32, of the first row, then of the second, and both operands.
        """

    def byte_pairs(self) -> BytePairs | None:
        """Return how sums of two products stay in int16; None if four in int32 are better."""

    def pair_dot(self) -> PairDot | None:
        """Return how pairs of int16 are multiplied; None if that gains nothing."""

    def grouped_dot(self, bits: int) -> GroupedDot | None:
        """Return how weights of 4 or 8 bits are multiplied by int8; None if `dot` is None."""

    def saturates(self, dtype: str, lanes: int) -> bool:
        """Return whether `narrow` does what clipping vectors of so many int32 would do."""

    def narrow(self, values: Sequence[Any], dtype: str) -> Any:
        """Return one, two or four vectors of int32 as one of int8 or uint8."""

    def narrow_pair(self, pair: Sequence[Any]) -> Any:
        """Return two vectors of int32 as one of int16 that saturates.

        Four values of the first come first, then four of the second, and so on.
        """

    def shift_and_narrow_pair(self, pair: Sequence[Any], by: int) -> Any:
        """Return two vectors of int32, shifted right by 0 to 16, as `narrow_pair` does."""

    def multiply_high_rounded(self, left: Any, right: Any) -> Any:
        """Return (left * right + 2**14) >> 15 of vectors of int16, not both -2**15."""

    def add_product(self, total: Any, left: Any, right: Any) -> Any:
        """Return int16 plus what `multiply_high_rounded` gives, which stays in the type."""

    def positive_shifted(self, value: Any, by: int) -> Any:
        """Return int16, 0 where it is below, shifted to the left; the type holds it."""

    def at_least(self, value: Any, bound: Any) -> Any:
        """Return the larger of floats, the bound in place of NaN; either zero of two."""

    def at_most(self, value: Any, bound: Any) -> Any:
        """Return the smaller of floats, the bound in place of NaN; either zero of two."""

    def round_to_int32(self, value: Any) -> Any:
        """Return floats as int32, ties to even; what is far beyond differs between processors."""

    def shift_each_and_narrow_pair(
        self, pair: Sequence[Any], by: Sequence[Any], some_left: bool
    ) -> Any:
        """Return two vectors of int32, shifted by numbers of each lane, as `narrow_pair` does.

        Args:
            pair: the vectors.
            by: a vector of int32 for each, -8 to 16 to the right; to the left below 0.
            some_left: whether any can be below 0.
        """

    def rounding_offset(self, number: Any, fraction: int, dtype: str) -> Any:
        """Return what to add before `narrow_rounded` in place of a number, so that it rounds.

        Args:
            number: int16, with `fraction` binary digits after the point.
            fraction: how many, at least 1.
            dtype: the dtype of the result of `narrow_rounded`.
        """

    def narrow_rounded(
        self, halves: Sequence[Any], fraction: int, dtype: str, groups: Sequence[int]
    ) -> Any:
        """Return one or two vectors of int16 as one of int8 or uint8 that saturates.

        Args:
            halves: with `fraction` binary digits after the point, `rounding_offset` added.
            fraction: how many.
            dtype: the dtype of the result.
            groups: those of the result, four values each, as they are numbered where 16 values
                hold eight of the first vector, then eight of the second.
        """

    def narrow_from_least(
        self, halves: Sequence[Any], fraction: int, dtype: str, groups: Sequence[int]
    ) -> Any | None:
        """Return what `narrow_rounded` does where the zero point is the least value of the type.

        It is not added before. None where that is no faster.
        """

    def byte_table(self) -> ByteTable | None:
        """Return how vectors of bytes are looked up; None: one byte at a time."""

    def load_together(self, count: int) -> LoadTogether | None:
        """Return what loads so many vectors of int32 at once; None: they come one by one."""

    def permute_16(self) -> Callable[[Any, Any], Any] | None:
        """Return what looks up a vector of 16 floats by the low four bits of int32, if anything."""

    def fixed_to_float(self) -> Callable[[Any, int], Any] | None:
        """Return what makes float32 of uint32 with so many binary digits after the point."""


ISAS: dict[str, Callable[[Target], Isa]] = {"x86_64": X86, "aarch64": AArch64}
"""By the architecture of a target; all others are generic."""


def isa_of(target: Target) -> Isa:
    """Return how the instructions of a target are written."""
    return ISAS.get(target.architecture, Generic)(target)


def dot_of(target: Target) -> Dot | None:
    """Return how a target multiplies quantized values; None if its kernels compute in floats."""
    return isa_of(target).dot()


__all__ = [
    "ISAS",
    "BytePairs",
    "ByteTable",
    "Dot",
    "Generic",
    "GroupedDot",
    "Isa",
    "LoadTogether",
    "PairDot",
    "dot_of",
    "isa_of",
]
