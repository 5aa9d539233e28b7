"""Describe how codes of group-wise weights are multiplied by int8 activations.

What an `Isa` gives kernels. A vector of weights holds a unit of four consecutive values of each
of its columns, one column behind the other; the same unit of one row of activations is broadcast
to all of them. Codes of 4 bits are 0 to 15; two vectors of them share their bytes, the first in
the low halves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GroupedDot:
    """A grouped dot describes how weights and activations of a group are multiplied and summed.

    Attributes:
        signed: whether codes of 8 bits are kept less 128.
        most: units whose products can be added before they are widened; 0: they are added in
            int32 at once.
        multiply: what becomes of partial sums (None: there are none yet), a broadcast unit of
            activations and a vector of weights, both int8 or uint8 of the vector's width.
        widen: adds partial sums to int32; unused where `most` is 0.
        by_lane: whether an instruction multiplies with one lane of a vector of activations, or
            brings it into place.
        in_halves: whether vectors hold values 0 and 1 of the units of all columns, then values 2
            and 3; else unit by unit.
        instructions: to multiply by one vector of weights.
        widen_instructions: of `widen`.
        high: codes of 4 bits of two vectors of columns share bytes, and a whole byte is multiplied
            at once: it stands for 16 * (code - 8) of the second vector, and the code of the first.
            Returns the sums of the second, float32, of those of whole bytes, to which 128 times
            the sum of activations is added, and those of the first, both int32. None: two units of
            the same columns share bytes.
    """

    signed: bool
    most: int
    multiply: Callable[[Any, Any, Any], Any]
    widen: Callable[[Any, Any], Any]
    by_lane: bool = False
    in_halves: bool = False
    instructions: float = 1
    widen_instructions: float = 0
    high: Callable[[Any, Any], Any] | None = None


def never(_sums: Any, _partial: Any) -> Any:
    """Stand for `widen` where products are summed in int32."""
    raise AssertionError("products are summed in int32 already")


def exact_units(bits: int) -> int:
    """Return units, at most 8, whose products of codes in pairs add up in int16.

    A unit adds two products of a code and at most 127.

    >>> [exact_units(bits) for bits in (2, 3, 4, 5, 6)]
    [8, 8, 8, 4, 2]
    """
    fitting = 32767 // (2 * 127 * ((1 << bits) - 1))
    return 1 << min(8, fitting).bit_length() - 1
