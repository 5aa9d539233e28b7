"""Provide cross-layer equalization (Nagel et al. 2019, arXiv:1906.04721, section 4.1).

A convolution and the next one, with nothing between them but a bias and a ReLU or leaky ReLU, give
the same for any positive scale s of each channel in between:

    W1[c] / s[c],  b1[c] / s[c],  W2[:, c] * s[c]

With r1[c] and r2[c] the largest magnitudes of W1[c] and W2[:, c], s = sqrt(r1 / r2) makes both
ranges of a channel sqrt(r1 r2) (their eq. 11). The values between the two then share one scale
better, and so do the weights that read them. Chains are swept until nothing moves.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import IRModule

from edgec.compiler.ir.anchors import Operator, find_operators
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import op_name
from edgec.compiler.ir.rewrite import with_weights

SWEEPS = 20
CONVERGED = 1e-3

# f(s x) = s f(x) for s > 0.
_HOMOGENEOUS = ("relax.nn.leakyrelu", "relax.nn.relu")
_KINDS = ("conv", "depthwise_conv")


def equalize(graph: Graph) -> IRModule:
    """Return the module with other weights and biases that compute the same.

    Itself without pairs.
    """
    found = find_operators(graph)
    by_input = {o.inputs[0]: o for o in found if o.kind in _KINDS and o.weight is not None}
    pairs = [
        (first, by_input[first.result])
        for first in found
        if first.kind in _KINDS and first.weight is not None and _is_pair(graph, first, by_input)
    ]
    if not pairs:
        return graph.module
    weights = {o.anchor: o.weight.array.copy() for p in pairs for o in p if o.weight is not None}
    biases = {o.bias[0]: o.bias[1].copy() for p in pairs for o in p if o.bias is not None}
    for _ in range(SWEEPS):
        moved = max(_sweep(*pair, weights, biases) for pair in pairs)
        if moved < CONVERGED:
            break
    shaped = {v: array.reshape(_constant_shape(graph, v)) for v, array in biases.items()}
    return with_weights(graph, weights, shaped)


def _is_pair(graph: Graph, first: Operator, by_input: dict[Any, Operator]) -> bool:
    second, reader = by_input.get(first.result), graph.sole_reader(first.result)
    if second is None or reader is None or reader.result is not second.anchor:
        return False
    assert first.weight is not None
    assert second.weight is not None
    # One input channel for each output channel: no groups but those of one channel.
    channels, inputs = first.weight.array.shape[0], second.weight.array.shape[1]
    if second.kind == "conv" and inputs != channels:
        return False
    allowed = {graph.names[first.anchor]} | (
        {graph.names[first.bias[0]]} if first.bias is not None else set()
    )
    between = {graph.names[v]: op_name(value) for v, value in graph.bindings}
    return all(name in allowed or between[name] in _HOMOGENEOUS for name in first.names)


def _sweep(
    first: Operator,
    second: Operator,
    weights: dict[Any, NDArray[np.float32]],
    biases: dict[Any, NDArray[np.float32]],
) -> float:
    """Equalize one pair in place; the largest change of a scale."""
    before, after = weights[first.anchor], weights[second.anchor]
    depthwise = second.kind == "depthwise_conv"
    own = np.abs(before).reshape(len(before), -1).max(axis=1)
    read = np.abs(after if depthwise else after.swapaxes(0, 1)).reshape(len(before), -1).max(axis=1)
    some = (own > 0) & (read > 0)
    scales = np.sqrt(np.where(some, own, 1) / np.where(some, read, 1)).astype(np.float32)
    before /= scales.reshape(-1, *[1] * (before.ndim - 1))
    along = (-1, 1) if depthwise else (1, -1)
    after *= scales.reshape(*along, *[1] * (after.ndim - 2))
    if first.bias is not None:
        biases[first.bias[0]] /= scales
    return float(np.abs(np.log(scales)).max(initial=0.0))


def _constant_shape(graph: Graph, addition: Any) -> tuple[int, ...]:
    arrays = (graph.constant(argument) for argument in graph.definitions[addition].args)
    (array,) = (array for array in arrays if array is not None)
    channels = max(array.shape, default=1)
    return tuple(channels if extent != 1 else 1 for extent in array.shape)
