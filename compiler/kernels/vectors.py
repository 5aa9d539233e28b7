"""Provide vectors in TIR, and the operations on them that LLVM has for every target."""

from collections.abc import Sequence
from typing import Any

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
