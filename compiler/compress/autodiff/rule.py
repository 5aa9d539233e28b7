"""Describe what a rule of the gradient engine is, and what rules share.

A *maker* reads the attributes of a call once and gives a rule. A rule takes the arrays of the
call's operands and gives the result and a function that carries a gradient of the result back to
the operands. The batch may be a multiple of the one that the module was made for: it is the first
axis, and results that state their shape grow along it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray
from tvm import relax

Array = NDArray[Any]
Backward = Callable[[Array], Sequence[Array | None]]
Rule = Callable[..., tuple[Array, Backward]]
Maker = Callable[[Any, tuple[bool, ...]], Rule | None]
Shape = tuple[int, ...]


def numbers(values: Any) -> Shape:
    """Return integers that an attribute or a Relax tuple holds."""
    fields = values.fields if isinstance(values, relax.Tuple) else values
    return tuple(int(getattr(number, "value", number)) for number in fields)


def reduced_to(g: Array, like: Array) -> Array:
    """Return a gradient summed over the axes along which an operand was repeated."""
    if g.shape == like.shape:
        return g
    g = g.sum(axis=tuple(range(g.ndim - like.ndim)))
    axes = tuple(i for i, n in enumerate(like.shape) if n == 1 and g.shape[i] != 1)
    return g.sum(axis=axes, keepdims=True) if axes else g
