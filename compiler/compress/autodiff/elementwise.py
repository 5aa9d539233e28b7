"""Operators that compute each value from those in the same place, with their derivatives."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edgec.compiler.compress.autodiff.rule import Array, Backward, Maker, Rule, reduced_to
from edgec.compiler.ir.relax_helpers import shape_of

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


def _logistic(x: Array) -> Array:
    result: Array = 0.5 * np.tanh(0.5 * x) + 0.5
    return result


def sigmoid(x: Array) -> tuple[Array, Callable[[], Array]]:
    """Return 1 / (1 + exp(-x)), and its slope."""
    y = _logistic(x)
    return y, lambda: y * (1 - y)


def silu(x: Array) -> tuple[Array, Callable[[], Array]]:
    """Return x * sigmoid(x), and its slope."""
    s = _logistic(x)
    return x * s, lambda: s * (1 + x * (1 - s))


def tanh(x: Array) -> tuple[Array, Callable[[], Array]]:
    """Return the tanh of x, and its slope."""
    y = np.tanh(x)
    return y, lambda: 1 - y * y


def _erf(x: Array) -> Array:
    """Abramowitz and Stegun 7.1.26, off by 1.5e-7 at most."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    poly = t * (
        0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    )
    result: Array = np.sign(x) * (1 - poly * np.exp(-x * x))
    return result


def gelu(x: Array) -> tuple[Array, Callable[[], Array]]:
    """Return x times the normal distribution up to x, and the slope."""
    below = 0.5 * (1 + _erf(x * math.sqrt(0.5)))
    return x * below, lambda: below + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def gelu_tanh(x: Array) -> tuple[Array, Callable[[], Array]]:
    """Return the approximation of GELU by tanh, and its slope."""
    factor = math.sqrt(2 / math.pi)
    t = np.tanh(factor * (x + 0.044715 * x**3))

    def slope() -> Array:
        inner = factor * (1 + 3 * 0.044715 * x * x)
        return np.asarray(0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner)

    return 0.5 * x * (1 + t), slope


def hard_swish(x: Array) -> tuple[Array, Callable[[], Array]]:
    """Return x * clip(x + 3, 0, 6) / 6, and its slope."""
    gate = np.clip(x + 3, 0, 6) / 6
    inside = (x > -3) & (x < 3)
    return x * gate, lambda: gate + x * inside / 6


def exp(x: Array) -> tuple[Array, Callable[[], Array]]:
    """Return the exponential of x, and its slope."""
    y = np.exp(x)
    return y, lambda: y


def sqrt(x: Array) -> tuple[Array, Callable[[], Array]]:
    """Return the square root of x, and its slope."""
    y = np.sqrt(x)
    return y, lambda: 0.5 / y


def leaky_relu(call: Any, _needed: tuple[bool, ...]) -> Rule:
    """Make a ReLU with a fixed slope below 0."""
    alpha = float(call.attrs.alpha)

    def rule(x: Array) -> tuple[Array, Backward]:
        return np.where(x > 0, x, x * alpha), lambda g: (np.where(x > 0, g, g * alpha),)

    return rule


def prelu(call: Any, _needed: tuple[bool, ...]) -> Rule:
    """Make a ReLU with a slope for each channel, which gets no gradient."""
    rank, axis = len(shape_of(call) or ()), int(call.attrs.axis)
    along = tuple(-1 if i == axis % rank else 1 for i in range(rank))

    def rule(x: Array, slopes: Array) -> tuple[Array, Backward]:
        shaped = slopes.reshape(along)
        return np.where(x > 0, x, x * shaped), lambda g: (np.where(x > 0, g, g * shaped), None)

    return rule


def clip(call: Any, _needed: tuple[bool, ...]) -> Rule:
    """Make a clip to two constants; at the bounds the gradient is 0."""
    low, high = (float(argument.value) for argument in call.args[1:])

    def rule(x: Array) -> tuple[Array, Backward]:
        return np.clip(x, low, high), lambda g: (g * ((x > low) & (x < high)),)

    return rule


def hard_sigmoid(call: Any, _needed: tuple[bool, ...]) -> Rule:
    """Make clip(alpha * x + beta, 0, 1)."""
    alpha, beta = float(call.attrs["alpha"]), float(call.attrs["beta"])

    def rule(x: Array) -> tuple[Array, Backward]:
        line = alpha * x + beta
        return np.clip(line, 0, 1), lambda g: (g * alpha * ((line > 0) & (line < 1)),)

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
    """An operator whose operands have no gradient."""

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
