"""Provide functions of one value: what they compute and their slopes, in NumPy.

One row for each function. `kernels/emit/epilogue.py` has the same functions as code for a target;
a new one is a row here and a row there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

Function = Callable[..., tuple[Array, Callable[[], Array]]]
"""(x, *parameters) -> (y, () -> dy/dx)."""


def _no_parameters(_call: Any) -> tuple[float, ...]:
    return ()


@dataclass(frozen=True)
class Activation:
    """An activation describes a function of one value.

    Attributes:
        operator: the Relax operator.
        function: what it computes, and its slope.
        parameters: numbers of a call of the operator, after x.
        joins: whether the quantizer lets it join the operator whose result it reads.
    """

    operator: str
    function: Function
    parameters: Callable[[Any], tuple[float, ...]] = _no_parameters
    joins: bool = True


_exact_erf = np.vectorize(math.erf, otypes=[np.float64])


def erf(x: Array) -> Array:
    """Return the error function: exact for float64, else within the 1.5e-7 that float32 shows.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
    """
    if x.dtype == np.float64:
        exact: Array = _exact_erf(x)
        return exact
    t = 1 / (1 + 0.3275911 * np.abs(x))
    poly = t * (
        0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    )
    result: Array = np.sign(x) * (1 - poly * np.exp(-x * x))
    return result


def _erf(x: Array) -> tuple[Array, Callable[[], Array]]:
    return erf(x), lambda: 2 / math.sqrt(math.pi) * np.exp(-x * x)


def _logistic(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)) without overflow."""
    result: Array = 0.5 * np.tanh(0.5 * x) + 0.5
    return result


def _sigmoid(x: Array) -> tuple[Array, Callable[[], Array]]:
    y = _logistic(x)
    return y, lambda: y * (1 - y)


def _silu(x: Array) -> tuple[Array, Callable[[], Array]]:
    s = _logistic(x)
    return x * s, lambda: s * (1 + x * (1 - s))


def _tanh(x: Array) -> tuple[Array, Callable[[], Array]]:
    y = np.tanh(x)
    return y, lambda: 1 - y * y


def _gelu(x: Array) -> tuple[Array, Callable[[], Array]]:
    below = 0.5 * (1 + erf(x * math.sqrt(0.5)))
    return x * below, lambda: below + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _gelu_tanh(x: Array) -> tuple[Array, Callable[[], Array]]:
    factor = math.sqrt(2 / math.pi)
    t = np.tanh(factor * (x + 0.044715 * x**3))

    def slope() -> Array:
        inner = factor * (1 + 3 * 0.044715 * x * x)
        return np.asarray(0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner)

    return 0.5 * x * (1 + t), slope


def _hard_swish(x: Array) -> tuple[Array, Callable[[], Array]]:
    gate = np.clip(x + 3, 0, 6) / 6
    inside = (x > -3) & (x < 3)
    return x * gate, lambda: gate + x * inside / 6


def _hard_sigmoid(x: Array, alpha: float, beta: float) -> tuple[Array, Callable[[], Array]]:
    line = alpha * x + beta
    inside = (line > 0) & (line < 1)
    return np.clip(line, 0, 1), lambda: alpha * inside.astype(x.dtype)


def _abs(x: Array) -> tuple[Array, Callable[[], Array]]:
    return np.abs(x), lambda: np.sign(x)


def _exp(x: Array) -> tuple[Array, Callable[[], Array]]:
    y = np.exp(x)
    return y, lambda: y


def _sqrt(x: Array) -> tuple[Array, Callable[[], Array]]:
    y = np.sqrt(x)
    return y, lambda: 0.5 / y


def _relu(x: Array) -> tuple[Array, Callable[[], Array]]:
    return np.maximum(x, 0), lambda: x > 0


def _leaky_relu(x: Array, alpha: float) -> tuple[Array, Callable[[], Array]]:
    slopes = np.where(x > 0, np.ones_like(x), np.full_like(x, alpha))
    return np.where(x > 0, x, x * alpha), lambda: slopes


def _clip(x: Array, low: float, high: float) -> tuple[Array, Callable[[], Array]]:
    return np.clip(x, low, high), lambda: (x > low) & (x < high)


ACTIVATIONS: dict[str, Activation] = {
    "abs": Activation("relax.abs", _abs, joins=False),
    "clip": Activation(
        "relax.clip", _clip, lambda call: tuple(float(bound.value) for bound in call.args[1:])
    ),
    "erf": Activation("relax.erf", _erf, joins=False),
    "exp": Activation("relax.exp", _exp, joins=False),
    "gelu": Activation("relax.nn.gelu", _gelu),
    "gelu_tanh": Activation("relax.nn.gelu_tanh", _gelu_tanh),
    "hard_sigmoid": Activation(
        "edgec.hard_sigmoid",
        _hard_sigmoid,
        lambda call: (float(call.attrs["alpha"]), float(call.attrs["beta"])),
    ),
    "hard_swish": Activation("edgec.hard_swish", _hard_swish),
    "leaky_relu": Activation(
        "relax.nn.leakyrelu", _leaky_relu, lambda call: (float(call.attrs.alpha),)
    ),
    "relu": Activation("relax.nn.relu", _relu),
    "sigmoid": Activation("relax.sigmoid", _sigmoid),
    "silu": Activation("relax.nn.silu", _silu),
    "sqrt": Activation("relax.sqrt", _sqrt, joins=False),
    "tanh": Activation("relax.tanh", _tanh),
}

BY_OPERATOR: dict[str, str] = {a.operator: name for name, a in ACTIVATIONS.items()}
"""Name of an activation by its Relax operator."""
