"""Describe how codes of group-wise weights are multiplied by int8 activations.

What an `Isa` gives kernels. A vector of weights holds a unit of `depth` consecutive values of
each of its columns, one column behind the other; the same unit of one row of activations is
broadcast to all of them. Codes of 4 bits are 0 to 15; two vectors of them share their bytes, the
first in the low halves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Vectors = Sequence[Any]
"""Sums of all columns of a vector of weights: one vector or, where sums are wider, several."""


@dataclass(frozen=True)
class GroupedDot:
    """A grouped dot describes how weights and activations of a group are multiplied and summed.

    Attributes:
        depth: values of a column in a unit.
        signed: whether codes of 8 bits are kept less 128.
        most: units whose products can be added before they are widened; 0: they are added in
            int32 at once.
        multiply: what becomes of partial sums (None: there are none yet), a broadcast unit of
            activations and a vector of weights, both int8 or uint8 of the vector's width.
        widen: adds partial sums to int32; unused where `most` is 0.
        by_lane: whether an instruction multiplies with one lane of a vector of activations.
        instructions: to multiply by one vector of weights.
        widen_instructions: of `widen`.
    """

    depth: int
    signed: bool
    most: int
    multiply: Callable[[Vectors | None, Any, Any], Vectors]
    widen: Callable[[Vectors, Vectors], Vectors]
    by_lane: bool = False
    instructions: float = 1
    widen_instructions: float = 0


def never(_sums: Vectors, _partial: Vectors) -> Vectors:
    """Stand for `widen` where products are summed in int32."""
    raise AssertionError("products are summed in int32 already")
