"""Provide vectors in TIR, and the operations on them that LLVM has for every target."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from tvm import tirx


def lanes_of(value: Any) -> int:
    """Return vector lanes of an expression, 1 for a scalar."""
    return int(value.ty.dtype.lanes)


def broadcast(value: Any, lanes: int) -> Any:
    """Return a scalar in every lane."""
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def constant(value: float, dtype: str, lanes: int = 1) -> Any:
    """Return a constant in every lane."""
    return broadcast(tirx.const(value, dtype), lanes)


def shuffle(vectors: Sequence[Any], picks: Sequence[int]) -> Any:
    """Return a vector of the picked lanes, counted through all given vectors."""
    return tirx.Shuffle(list(vectors), [tirx.IntImm("int32", pick) for pick in picks])


def select(condition: Any, when_true: Any, when_false: Any) -> Any:
    """Return lanewise choice; both sides are computed."""
    return tirx.Select(condition, when_true, when_false)


Let = Callable[[str, Any], Any]
"""Binds a value to a name: `Emitter.let`."""

# Lanes that instructions pick from at once.
_BLOCK = 4


def fold_lanes(let: Let, value: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Return all lanes of a vector combined into one value, halves with halves."""
    lanes = lanes_of(value)
    while lanes > 1:
        lanes //= 2
        low, high = (shuffle([value], range(half, half + lanes)) for half in (0, lanes))
        value = let("folded", combine(low, high))
    return value


def sums_of_lanes(let: Let, vectors: Sequence[Any]) -> Any:
    """Return in lane i the sum over the lanes of vector i, of as many vectors as each has lanes.

    Neighbouring lanes are added in rounds, first within four of them, so that each pick is one
    instruction: two vectors become one that has half of its places from either.
    """
    lanes, made = lanes_of(vectors[0]), list(vectors)
    block = min(_BLOCK, lanes)
    for unit, chunk in ((1, block), (block, lanes)):
        for _ in range((chunk // unit).bit_length() - 1):
            made = [
                let("sums", _even(pair, unit, chunk, 0) + _even(pair, unit, chunk, 1))
                for pair in zip(made[::2], made[1::2], strict=True)
            ]
    return made[0]


def _even(pair: Sequence[Any], unit: int, chunk: int, odd: int) -> Any:
    """Return the even or odd units of lanes, in each chunk those of the first vector in front."""
    lanes = lanes_of(pair[0])
    picks = [
        vector * lanes + begin + place + lane
        for begin in range(0, lanes, chunk)
        for vector in range(2)
        for place in range(odd * unit, chunk, 2 * unit)
        for lane in range(unit)
    ]
    return shuffle(pair, picks)


def vector_dtype(dtype: str, lanes: int) -> str:
    """Return name of a vector type.

    >>> vector_dtype("float32", 8), vector_dtype("int32", 1)
    ('float32x8', 'int32')
    """
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def reinterpret(value: Any, dtype: str, lanes: int) -> Any:
    """Return the bits of a vector as another type."""
    return tirx.reinterpret(vector_dtype(dtype, lanes), value)


def intrinsic(name: str, dtype: Any, *arguments: Any) -> Any:
    """Return a call of an LLVM intrinsic without side effects.

    Args:
        name: without the leading `llvm.`.
        dtype: the dtype of the result.
        arguments: as LLVM takes them.
    """
    return tirx.call_llvm_pure_intrin(dtype, f"llvm.{name}", *arguments)


def fused_multiply_add(x: Any, y: Any, z: Any) -> Any:
    """Return x * y + z rounded once, also where the code generator would be free not to."""
    return intrinsic("fma", z.ty, x, y, z)


def add_saturating(left: Any, right: Any) -> Any:
    """Return the sum of signed integers, which stays in their type."""
    return intrinsic("sadd.sat", left.ty, left, right)


def subtract_saturating(left: Any, right: Any) -> Any:
    """Return the difference of signed integers, which stays in their type."""
    return intrinsic("ssub.sat", left.ty, left, right)


def wrapping(operation: Literal["add", "sub", "mul"], left: Any, right: Any) -> Any:
    """Return the sum, difference or product of vectors of whole numbers, modulo 2 to their bits.

    TVM promises LLVM that its own operators never leave their type; these make no promise.
    """
    lanes = lanes_of(left)
    every, count = constant(1, "bool", lanes), tirx.const(lanes, "int32")
    return intrinsic(f"vp.{operation}", left.ty, left, right, every, count)


def subtract_unsigned(left: Any, right: Any) -> Any:
    """Return the difference of int16 that are not negative, 0 where it would be."""
    lanes = lanes_of(left)
    both = [reinterpret(each, "uint16", lanes) for each in (left, right)]
    return reinterpret(intrinsic("usub.sat", both[0].ty, *both), "int16", lanes)
