"""Provide the activations of recurrent operators, by the names that their nodes give."""

from collections.abc import Callable, Sequence
from functools import partial

from tvm import relax

from edgec.compiler.frontend.node import Node, Refusal, dtype_of, scalar

Activation = Callable[[relax.Expr], relax.Expr]
_Emit = Callable[[relax.Expr], relax.Expr]
_Formula = Callable[[_Emit, relax.Expr, relax.Expr, relax.Expr], relax.Expr]


def find_activations(node: Node, default: Sequence[str], directions: int) -> list[list[Activation]]:
    """Return activations of each direction.

    Their parameters stand in two lists, of which each activation takes as many as it has.
    """
    names = list(node.attributes.get("activations") or list(default) * directions)
    if len(names) != len(default) * directions:
        raise Refusal(f"{len(names)} activations, {len(default)} for each direction are expected")
    alphas = iter(node.attributes.get("activation_alpha", ()))
    betas = iter(node.attributes.get("activation_beta", ()))
    built: list[Activation] = []
    for name in names:
        if name.lower() not in _ACTIVATIONS:
            raise Refusal(f"activation {name} is not supported")
        function, alpha, beta = _ACTIVATIONS[name.lower()]
        alpha = 0.0 if alpha is None else next(alphas, alpha)
        beta = 0.0 if beta is None else next(betas, beta)
        built.append(partial(_activated, node, function, alpha, beta))
    size = len(default)
    return [built[size * d : size * (d + 1)] for d in range(directions)]


def _activated(
    node: Node, function: _Formula, alpha: float, beta: float, value: relax.Expr
) -> relax.Expr:
    dtype = dtype_of(value)
    return function(node.emit, value, scalar(alpha, dtype), scalar(beta, dtype))


def _affine(emit: _Emit, x: relax.Expr, alpha: relax.Expr, beta: relax.Expr) -> relax.Expr:
    return relax.op.add(emit(relax.op.multiply(x, alpha)), beta)


def _leaky_relu(emit: _Emit, x: relax.Expr, alpha: relax.Expr, _: relax.Expr) -> relax.Expr:
    negative = relax.op.less(x, scalar(0, dtype_of(x)))
    return relax.op.where(emit(negative), emit(relax.op.multiply(x, alpha)), x)


def _thresholded_relu(emit: _Emit, x: relax.Expr, alpha: relax.Expr, _: relax.Expr) -> relax.Expr:
    return relax.op.where(emit(relax.op.greater(x, alpha)), x, scalar(0, dtype_of(x)))


def _scaled_tanh(emit: _Emit, x: relax.Expr, alpha: relax.Expr, beta: relax.Expr) -> relax.Expr:
    return relax.op.multiply(alpha, emit(relax.op.tanh(emit(relax.op.multiply(beta, x)))))


def _hard_sigmoid(emit: _Emit, x: relax.Expr, alpha: relax.Expr, beta: relax.Expr) -> relax.Expr:
    dtype = dtype_of(x)
    floored = emit(relax.op.maximum(emit(_affine(emit, x, alpha, beta)), scalar(0, dtype)))
    return relax.op.minimum(floored, scalar(1, dtype))


def _elu(emit: _Emit, x: relax.Expr, alpha: relax.Expr, _: relax.Expr) -> relax.Expr:
    dtype = dtype_of(x)
    power = emit(relax.op.exp(emit(relax.op.minimum(x, scalar(0, dtype)))))
    below = emit(relax.op.multiply(alpha, emit(relax.op.subtract(power, scalar(1, dtype)))))
    return relax.op.add(emit(relax.op.maximum(x, scalar(0, dtype))), below)


def _softsign(emit: _Emit, x: relax.Expr, *_: relax.Expr) -> relax.Expr:
    return relax.op.divide(x, emit(relax.op.add(scalar(1, dtype_of(x)), emit(relax.op.abs(x)))))


def _softplus(emit: _Emit, x: relax.Expr, *_: relax.Expr) -> relax.Expr:
    """Return log(1 + exp(x)) as max(x, 0) + log(1 + exp(-|x|)), which does not overflow."""
    dtype = dtype_of(x)
    small = emit(relax.op.exp(emit(relax.op.negative(emit(relax.op.abs(x))))))
    tail = emit(relax.op.log(emit(relax.op.add(scalar(1, dtype), small))))
    return relax.op.add(emit(relax.op.maximum(x, scalar(0, dtype))), tail)


_ACTIVATIONS: dict[str, tuple[_Formula, float | None, float | None]] = {
    "affine": (_affine, 1.0, 0.0),
    "elu": (_elu, 1.0, None),
    "hardsigmoid": (_hard_sigmoid, 0.2, 0.5),
    "leakyrelu": (_leaky_relu, 0.01, None),
    "relu": (lambda emit, x, *_: relax.op.nn.relu(x), None, None),
    "scaledtanh": (_scaled_tanh, 1.0, 1.0),
    "sigmoid": (lambda emit, x, *_: relax.op.sigmoid(x), None, None),
    "softplus": (_softplus, None, None),
    "softsign": (_softsign, None, None),
    "tanh": (lambda emit, x, *_: relax.op.tanh(x), None, None),
    "thresholdedrelu": (_thresholded_relu, 1.0, None),
}
"""Each with the defaults of its alpha and beta, None where it has none."""
