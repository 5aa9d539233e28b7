"""Provide regions of tensors: an interval of each axis, and how one is read for another."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import relax

# Begin and end along each axis.
Region = tuple[tuple[int, int], ...]
Extents = Sequence[int]


@dataclass(frozen=True)
class Reading:
    """A reading says how a region of an operator's result is computed.

    Attributes:
        region: what is computed; all that was asked for, or more.
        operands: what is read, and which region of it.
        build: makes the expression of the operands' regions.
    """

    region: Region
    operands: tuple[tuple[Any, Region], ...]
    build: Callable[[Sequence[Any]], Any]


def whole(shape: Extents) -> Region:
    """Return the region of a whole tensor."""
    return tuple((0, extent) for extent in shape)


def extents(region: Region) -> tuple[int, ...]:
    """Return the shape of a region."""
    return tuple(end - begin for begin, end in region)


def size_of(region: Region) -> int:
    """Return how many values a region has."""
    return math.prod(extents(region))


def union(a: Region, b: Region) -> Region:
    """Return the smallest region that has both.

    >>> union(((0, 2), (4, 8)), ((1, 3), (0, 4)))
    ((0, 3), (0, 8))
    """
    return tuple((min(p, r), max(q, s)) for (p, q), (r, s) in zip(a, b, strict=True))


def meet(a: Region, b: Region) -> Region | None:
    """Return what two regions share, None if that is nothing."""
    shared = tuple((max(p, r), min(q, s)) for (p, q), (r, s) in zip(a, b, strict=True))
    return shared if all(begin < end for begin, end in shared) else None


def with_axis(region: Region, axis: int, interval: tuple[int, int]) -> Region:
    """Return a region with another interval of one axis."""
    return (*region[:axis], interval, *region[axis + 1 :])


def cut_out(expression: Any, held: Region, region: Region) -> Any:
    """Return the expression of a region of what holds a larger one."""
    axes = [n for n, (a, b) in enumerate(zip(held, region, strict=True)) if a != b]
    if not axes:
        return expression
    begins = [region[n][0] - held[n][0] for n in axes]
    return relax.op.strided_slice(
        expression,
        axes,
        begins,
        [b + e for b, e in zip(begins, (extents(region)[n] for n in axes), strict=True)],
    )


def tensors(call: Any) -> list[Any]:
    """Return the operands of a call that are tensors, those of a tuple too."""
    found = []
    for argument in call.args:
        if isinstance(argument, relax.Tuple):
            found += [x for x in argument.fields if isinstance(x.ty, relax.TensorType)]
        elif isinstance(argument.ty, relax.TensorType):
            found.append(argument)
    return found


def with_tensors(call: Any, given: Sequence[Any]) -> Any:
    """Return a call with other tensors."""
    left = list(given)

    def replaced(argument: Any) -> Any:
        if isinstance(argument, relax.Tuple):
            return relax.Tuple([replaced(field) for field in argument.fields])
        return left.pop(0) if isinstance(argument.ty, relax.TensorType) else argument

    return relax.Call(call.op, [replaced(x) for x in call.args], call.attrs, call.ty_args)


def aligned(shape: Extents, region: Region) -> Region:
    """Return the region of an operand that is broadcast, of a region of the result."""
    behind = region[len(region) - len(shape) :]
    return tuple(
        (0, 1) if extent == 1 else interval for extent, interval in zip(shape, behind, strict=True)
    )


def ints(values: Any) -> list[int]:
    """Return numbers of TVM's as those of Python."""
    return [int(value) for value in values]
