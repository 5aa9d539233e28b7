"""Describe what a model costs: multiplications and weights, by operator."""

import math
from dataclasses import dataclass

import numpy as np

from edgec.compiler.ir.anchors import Operator, find_operators
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import shape_of


@dataclass(frozen=True)
class OperatorCost:
    """An operator cost describes one convolution or matrix product.

    Attributes:
        name: the name of the value that it gives.
        kind: its type.
        shape: the shape of its weights; empty for the product of two activations.
        macs: multiplications, zero weights included.
        weights: number of them.
        zeros: those of them that are exactly zero.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    macs: int
    weights: int
    zeros: int


@dataclass(frozen=True)
class Costs:
    """Costs describe a whole model."""

    operators: tuple[OperatorCost, ...]

    @property
    def macs(self) -> int:
        """Return multiplications of one inference."""
        return sum(operator.macs for operator in self.operators)

    @property
    def weights(self) -> int:
        """Return weights of convolutions and matrix products."""
        return sum(operator.weights for operator in self.operators)

    @property
    def nonzeros(self) -> int:
        """Return those that are not zero."""
        return self.weights - sum(operator.zeros for operator in self.operators)


def costs_of(graph: Graph) -> Costs:
    """Count a canonical module."""
    anchors = ("conv", "conv_transpose", "depthwise_conv", "matmul")
    found = [operator for operator in find_operators(graph) if operator.kind in anchors]
    return Costs(tuple(_cost(operator) for operator in found))


def _cost(operator: Operator) -> OperatorCost:
    output = shape_of(operator.anchor) or ()
    if operator.weight is None:
        inner = (shape_of(operator.inputs[0]) or (1,))[-1]
        return OperatorCost(operator.name, operator.kind, (), math.prod(output) * inner, 0, 0)
    array = operator.weight.array
    if operator.kind == "matmul":
        each = array.shape[-2]
    elif operator.kind == "conv_transpose":
        # Each input element meets the weights of its channel.
        data = shape_of(operator.inputs[0]) or ()
        macs = math.prod(data) * math.prod(array.shape[1:])
        return _with_weights(operator, macs)
    else:
        each = math.prod(array.shape[1:])
    return _with_weights(operator, math.prod(output) * each)


def _with_weights(operator: Operator, macs: int) -> OperatorCost:
    assert operator.weight is not None
    array = operator.weight.array
    zeros = int(array.size - np.count_nonzero(array))
    return OperatorCost(operator.name, operator.kind, array.shape, macs, array.size, zeros)
