"""Provide operators that compute each value from those in the same place.

With their derivatives.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from edgec.compiler.compress.autodiff.rule import Array, Backward, Maker, Rule, reduced_to
from edgec.compiler.ir.relax_helpers import shape_of
from edgec.compiler.numerics.activations import ACTIVATIONS

# Functions of one value, as x -> (y, () -> dy/dx).
_Function = Callable[[Array], tuple[Array, Callable[[], Array]]]


def unary(function: _Function) -> Maker:
    """Make an operator of one value from its function: x -> (y, () -> dy/dx)."""

    def make(_call: Any, _needed: tuple[bool, ...]) -> Rule:
        def rule(x: Array) -> tuple[Array, Backward]:
            y, slope = function(x)
            return y, lambda g: (g * slope(),)

        return rule

    return make


def activation(name: str) -> Maker:
    """Make an activation, see `numerics.activations`."""

    def make(call: Any, _needed: tuple[bool, ...]) -> Rule:
        parameters = ACTIVATIONS[name].parameters(call)

        def rule(x: Array) -> tuple[Array, Backward]:
            y, slope = ACTIVATIONS[name].function(x, *parameters)
            return y, lambda g: (g * slope(),)

        return rule

    return make


def prelu(call: Any, _needed: tuple[bool, ...]) -> Rule:
    """Make a ReLU with a slope for each channel, which gets no gradient."""
    rank, axis = len(shape_of(call) or ()), int(call.attrs.axis)
    along = tuple(-1 if i == axis % rank else 1 for i in range(rank))

    def rule(x: Array, slopes: Array) -> tuple[Array, Backward]:
        shaped = slopes.reshape(along)
        return np.where(x > 0, x, x * shaped), lambda g: (np.where(x > 0, g, g * shaped), None)

    return rule


# Functions of two values: the result, and the gradients of both.
_Pair = Callable[[Array, Array], Array]
_PairGradient = Callable[[Array, Array, Array], Array]


def binary(function: _Pair, left: _PairGradient, right: _PairGradient) -> Maker:
    """Make an operator of two values, which may broadcast, from its function and gradients."""

    def make(_call: Any, needed: tuple[bool, ...]) -> Rule:
        def rule(x: Array, y: Array) -> tuple[Array, Backward]:
            def backward(g: Array) -> tuple[Array | None, Array | None]:
                return (
                    reduced_to(left(g, x, y), x) if needed[0] else None,
                    reduced_to(right(g, x, y), y) if needed[1] else None,
                )

            return function(x, y), backward

        return rule

    return make


def where(_call: Any, needed: tuple[bool, ...]) -> Rule:
    """Make a choice between two operands; the condition has no gradient."""

    def rule(condition: Array, x: Array, y: Array) -> tuple[Array, Backward]:
        def backward(g: Array) -> tuple[Array | None, ...]:
            return (
                None,
                reduced_to(np.where(condition, g, 0), x) if needed[1] else None,
                reduced_to(np.where(condition, 0, g), y) if needed[2] else None,
            )

        return np.where(condition, x, y), backward

    return rule


def constant_result(compute: Callable[..., Array]) -> Maker:
    """Return an operator whose operands have no gradient."""

    def make(_call: Any, needed: tuple[bool, ...]) -> Rule | None:
        if any(needed):
            return None

        def rule(*operands: Array) -> tuple[Array, Backward]:
            return compute(*operands), lambda _: [None] * len(operands)

        return rule

    return make


def astype(call: Any, needed: tuple[bool, ...]) -> Rule | None:
    """Make a cast; its operand has no gradient."""
    dtype = str(call.ty.dtype.dtype)
    return constant_result(lambda x: x.astype(dtype))(call, needed)
