"""Provide operators that sum along axes, with their derivatives: reductions and matrix products."""

import math
from typing import Any

import numpy as np

from edgec.compiler.compress.autodiff.rule import (
    Array,
    Backward,
    Maker,
    Rule,
    numbers,
    reduced_to,
)
from edgec.compiler.ir.relax_helpers import shape_of


def _axes(call: Any) -> tuple[int, ...]:
    rank = len(shape_of(call.args[0]) or ())
    axis = call.attrs.axis
    return tuple(range(rank)) if axis is None else tuple(n % rank for n in numbers(axis))


def reduction(mean: bool) -> Maker:
    """Make a sum, or a mean, over the axes that the call states."""

    def make(call: Any, _needed: tuple[bool, ...]) -> Rule:
        axes, keep = _axes(call), bool(call.attrs.keepdims)

        def rule(x: Array) -> tuple[Array, Backward]:
            count = math.prod(x.shape[i] for i in axes) if mean else 1

            def backward(g: Array) -> tuple[Array]:
                shaped = g if keep else np.expand_dims(g, axes)
                return (np.broadcast_to(shaped / count, x.shape),)

            return x.sum(axis=axes, keepdims=keep) / count, backward

        return rule

    return make


def softmax(call: Any, _needed: tuple[bool, ...]) -> Rule:
    """Make a softmax along the axis that the call states."""
    axis = int(call.attrs.axis)

    def rule(x: Array) -> tuple[Array, Backward]:
        powers = np.exp(x - x.max(axis=axis, keepdims=True))
        y = powers / powers.sum(axis=axis, keepdims=True)
        return y, lambda g: (y * (g - (g * y).sum(axis=axis, keepdims=True)),)

    return rule


def layer_norm(call: Any, _needed: tuple[bool, ...]) -> Rule:
    """Make a layer normalization; gamma and beta get no gradient."""
    rank = len(shape_of(call) or ())
    axes = tuple(n % rank for n in numbers(call.attrs.axes))
    epsilon = float(call.attrs.epsilon)

    def rule(x: Array, gamma: Array, beta: Array) -> tuple[Array, Backward]:
        centred = x - x.mean(axis=axes, keepdims=True)
        scale = 1 / np.sqrt(np.square(centred).mean(axis=axes, keepdims=True) + epsilon)
        unit = centred * scale

        def backward(g: Array) -> tuple[Array | None, ...]:
            g = g * gamma
            along = (g * unit).mean(axis=axes, keepdims=True)
            return scale * (g - g.mean(axis=axes, keepdims=True) - unit * along), None, None

        return unit * gamma + beta, backward

    return rule


def matmul(call: Any, needed: tuple[bool, ...]) -> Rule | None:
    """Make a product of matrices, or of batches of them; None for vectors."""
    if any(len(shape_of(argument) or ()) < 2 for argument in call.args):
        return None

    def rule(x: Array, y: Array) -> tuple[Array, Backward]:
        if y.ndim == 2:
            rows = x.reshape(-1, x.shape[-1])

            def flat(g: Array) -> tuple[Array | None, Array | None]:
                flat_g = g.reshape(-1, g.shape[-1])
                return (
                    (flat_g @ y.T).reshape(x.shape) if needed[0] else None,
                    rows.T @ flat_g if needed[1] else None,
                )

            return (rows @ y).reshape(*x.shape[:-1], y.shape[-1]), flat

        def backward(g: Array) -> tuple[Array | None, Array | None]:
            return (
                reduced_to(g @ y.swapaxes(-1, -2), x) if needed[0] else None,
                reduced_to(x.swapaxes(-1, -2) @ g, y) if needed[1] else None,
            )

        return x @ y, backward

    return rule
