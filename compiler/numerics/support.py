"""Describe what a kernel, or the matcher of a kernel, answers about an operator."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from edgec.compiler.numerics.pair_sums import DOT_WIDTH


@dataclass(frozen=True)
class Declined:
    """The kernel cannot compute the operator.

    Attributes:
        reason: for people, in one clause.
    """

    reason: str


@dataclass(frozen=True)
class Supported:
    """The kernel computes the operator.

    Attributes:
        operator: name of the kernel's template.
        workload: the workload of the template.
        operands: constants after the first operand.
    """

    operator: str
    workload: Any
    operands: tuple[NDArray[Any], ...]


def integer_matmul_support(shape: Sequence[int]) -> Declined | None:
    """Return why the kernel cannot multiply by constant weights of a shape; None if it can.

    >>> integer_matmul_support((6, 10))
    Declined(reason='its depth 6 is not a multiple of 4')
    """
    if len(shape) != 2:
        return Declined("the kernel of integers multiplies by one matrix, not by one of a batch")
    if shape[0] % DOT_WIDTH:
        return Declined(f"its depth {shape[0]} is not a multiple of {DOT_WIDTH}")
    return None
