"""Describe how quantized values are multiplied, and how bytes are looked up.

What an `Isa` gives kernels.

Products are summed four at a time in int32 lanes: 32 bits of the data (four input channels) are
broadcast and multiplied with a vector that holds four weights in each lane. Every sum is exact.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.vectors import broadcast, lanes_of, reinterpret, shuffle
from edgec.compiler.numerics.pair_sums import DOT_WIDTH, SumLimit

Add = Callable[[Any, Sequence[Any], Sequence[Any]], Any]
"""Gives accumulator plus products, of the accumulator, groups of data, and as many of weights."""


@dataclass(frozen=True)
class Dot:
    """A dot describes how groups of four quantized values are multiplied and summed.

    Attributes:
        data: dtype of the quantized data.
        instructions: for a group of values and one vector of weights.
        temporaries: registers beside accumulators, weights and one value.
        add: adds products to an accumulator.
        exact_fallback: how weights that would saturate are multiplied; None: none do.
        in_halves: whether a vector holds values 0 and 1 of the groups of all lanes, then values
            2 and 3; else group by group.
        by_lane: whether an instruction multiplies with one lane of a vector of data.
        sums: products that are added in int16, by neighbouring groups that are multiplied at once;
            the more the better, where weights allow it. Empty: there are no sums in int16.
        widening: instructions for each such sum.
    """

    data: str
    instructions: int
    temporaries: int
    add: Add
    exact_fallback: "Dot | None" = None
    in_halves: bool = False
    by_lane: bool = False
    sums: Mapping[int, int] = field(default_factory=dict)
    widening: int = 0

    def instructions_for(self, groups: int) -> float:
        """Return instructions for a group of values, of so many that are multiplied at once."""
        products = self.sums.get(groups, 2)
        return self.instructions - self.widening * (1 - 2 / products)

    def read(self, e: Any, buffer: Any, at: Any, lanes: int) -> Any:
        """Return a group of values for every lane; `e` is the kernel's `Emitter`."""
        group = broadcast(e.load(buffer, at), lanes)
        return e.let("x", self.spread(group, 0, lanes) if self.in_halves else group)

    def spread(self, groups: Any, number: int, lanes: int) -> Any:
        """Return one of the groups of values that a vector of int32 holds, for every lane."""
        if not self.in_halves:
            return shuffle([groups], [number] * lanes)
        values = reinterpret(groups, self.data, DOT_WIDTH * lanes_of(groups))
        return reinterpret(shuffle([values], self.order([number] * lanes)), "int32", lanes)

    def order(self, groups: Sequence[int]) -> list[int]:
        """Return the places of the values of groups, one to a lane, as `add` wants them."""
        parts = [(0, 1), (2, 3)] if self.in_halves else [tuple(range(DOT_WIDTH))]
        return [DOT_WIDTH * group + place for part in parts for group in groups for place in part]

    def repeated(self, value: int, lanes: int) -> Any:
        """Return one value in place of all data."""
        byte = np.array([value]).astype(self.data).astype(np.uint8)
        number = int(np.repeat(byte, DOT_WIDTH).view(np.int32)[0])
        return broadcast(tirx.const(number, "int32"), lanes)

    def cannot_saturate(
        self, weight: NDArray[Any], axis: int, groups: int = 1, largest: int = 255
    ) -> bool:
        """Return whether no sum of products saturates.

        Args:
            weight: int8.
            axis: the axis of what is summed, in groups of values.
            groups: neighbouring groups that are multiplied at once.
            largest: value of the data.
        """
        if self.exact_fallback is None:
            return True
        least = int(np.iinfo(self.data).min)
        # -128 twice -128 twice is 32,768.
        most = np.iinfo(np.int16).max // max(1, largest, -least)
        limit = SumLimit(most, self.sums[groups], self.in_halves)
        return bool(limit.sums(weight, axis).max(initial=0) <= most)

    def arrange(self, weight: NDArray[Any], lanes: int) -> NDArray[Any]:
        """Return groups of weights, one to a lane, as `add` wants them; int32."""
        if not self.in_halves:
            return weight
        halves = weight.view(np.int16).reshape(-1, lanes, 2)
        ordered = np.ascontiguousarray(halves.transpose(0, 2, 1))
        return ordered.view(np.int32).reshape(weight.shape)


@dataclass(frozen=True)
class PairDot:
    """A pair dot describes how pairs of int16 values are multiplied and summed, modulo 2**32.

    Attributes:
        instructions: for a pair of values and one vector of weights.
        add: accumulator plus products, of the accumulator, a pair of values in every lane, and a
            vector of pairs of weights, all of them int32.
    """

    instructions: int
    add: Callable[[Any, Any, Any], Any]


@dataclass(frozen=True)
class BytePairs:
    """Byte pairs describe how pairs of uint8 are multiplied by int8 and summed in int16.

    Attributes:
        multiply: int16 sums of pairs of products, of vectors of data and weights.
        widen: the sum of two vectors of int16 as two of int32: in each 128 bits of the first are
            the first four of eight values, in those of the second the others.
    """

    multiply: Callable[[Any, Any], Any]
    widen: Callable[[Any, Any], tuple[Any, Any]]


def one_by_one(add: Callable[[Any, Any, Any], Any]) -> Add:
    """Return what adds the products of several groups, from what adds those of one."""

    def add_all(acc: Any, xs: Sequence[Any], ws: Sequence[Any]) -> Any:
        for x, w in zip(xs, ws, strict=True):
            acc = add(acc, x, w)
        return acc

    return add_all


@dataclass(frozen=True)
class ByteTable:
    """A byte table describes how instructions look up a vector of bytes in a table of 256.

    Attributes:
        width: bytes at once.
        spread: bytes that hold each 16 of the table, as `pack` gives it.
        pack: the table uint8 [256] as `look` reads it.
        in_registers: whether parts of the table are loaded once, before all lookups.
        look: bytes found, of a function that binds a value to a name, the bytes to look up,
            and the parts of the packed table, vectors of `spread` bytes.
    """

    width: int
    spread: int
    pack: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
    in_registers: bool
    look: Callable[[Callable[[str, Any], Any], Any, Sequence[Any]], Any]


@dataclass(frozen=True)
class LoadTogether:
    """A load of several vectors is a function that is put in its place.

    Attributes:
        name: of the function, of two addresses: where vectors are, and where they are written,
            which become registers.
        code: the function in LLVM's language: TVM has no intrinsics of several results.
    """

    name: str
    code: str
