"""Recurrent operators, unrolled over their (static) sequence length."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from edgec.compiler.importer.node import Node, Refusal, dtype_of, scalar, static_shape

Activation = Callable[[relax.Expr], relax.Expr]

_ACTIVATIONS: dict[str, Activation] = {
    "relu": relax.op.nn.relu,
    "sigmoid": relax.op.sigmoid,
    "tanh": relax.op.tanh,
}


def convert_lstm(node: Node) -> list[relax.Expr]:
    """LSTM of ONNX, layout 0, with peepholes and an optional clip.

    Gates are stacked in the order input, output, forget, cell; H is hidden_size, D the number
    of directions, T the sequence length, N the batch. X [T, N, I], W [D, 4H, I],
    R [D, 4H, H], B [D, 8H], initial_h and initial_c [D, N, H], P [D, 3H].

    Returns:
        Y [T, D, N, H], Y_h [D, N, H], Y_c [D, N, H].
    """
    attributes = node.attributes
    _refuse_unsupported(node, attributes)
    data = node.input(0)
    dtype = dtype_of(data)
    steps, batch, _ = static_shape(data)
    directions, _, hidden = static_shape(node.input(2))
    names = [name.lower() for name in attributes.get("activations", ("Sigmoid", "Tanh", "Tanh"))]
    names = names if len(names) == 3 * directions else names * directions
    zeros = relax.const(np.zeros((batch, hidden), dtype))

    sequences, last_hidden, last_cell = [], [], []
    for d in range(directions):
        weights = _Direction(node, d, hidden, dtype)
        state = _initial(node, 5, d, zeros), _initial(node, 6, d, zeros)
        reverse = attributes.get("direction", "forward") == "reverse" or d == 1
        order = reversed(range(steps)) if reverse else range(steps)
        # All inputs' share of all gates in one matrix product: [T, N, 4H].
        projected = weights.project(data)
        outputs: dict[int, relax.Expr] = {}
        activations = [_activation(name) for name in names[3 * d : 3 * d + 3]]
        for step in order:
            state = weights.step(projected, step, state, activations)
            outputs[step] = state[0]
        stacked = node.emit(relax.op.stack([outputs[step] for step in range(steps)], axis=0))
        sequences.append(stacked)
        last_hidden.append(state[0])
        last_cell.append(state[1])
    return [
        relax.op.stack(sequences, axis=1),
        relax.op.stack(last_hidden, axis=0),
        relax.op.stack(last_cell, axis=0),
    ]


def _refuse_unsupported(node: Node, attributes: Any) -> None:
    if attributes.get("layout", 0):
        raise Refusal("batch-first layout is not supported")
    if attributes.get("input_forget", 0):
        raise Refusal("coupled input and forget gates are not supported")
    if node.optional(4) is not None:
        steps, batch, _ = static_shape(node.input(0))
        lengths = node.constant(4, "sequence_lens")
        if lengths.shape != (batch,) or np.any(lengths != steps):
            raise Refusal("sequences of different lengths are not supported")
    for name in ("activation_alpha", "activation_beta"):
        if name in attributes:
            raise Refusal(f"attribute {name} is not supported")


def _activation(name: str) -> Activation:
    if name not in _ACTIVATIONS:
        raise Refusal(f"activation {name} is not supported")
    return _ACTIVATIONS[name]


def _initial(node: Node, index: int, direction: int, zeros: relax.Expr) -> relax.Expr:
    """Initial state [N, H] of one direction."""
    states = node.optional(index)
    return zeros if states is None else _take(node, states, direction)


def _take(node: Node, tensor: relax.Expr, index: int) -> relax.Expr:
    """tensor[index] along the first dimension."""
    part = relax.op.strided_slice(tensor, axes=[0], begin=[index], end=[index + 1])
    return node.emit(relax.op.squeeze(node.emit(part), axis=[0]))


class _Direction:
    """Weights of one direction, in the shapes that matrix products want."""

    def __init__(self, node: Node, direction: int, hidden: int, dtype: str) -> None:
        self.node = node
        self.hidden = hidden
        self.dtype = dtype
        self.clip = node.attributes.get("clip")
        weight: NDArray[Any] = node.constant(1, "W")[direction]
        recurrence: NDArray[Any] = node.constant(2, "R")[direction]
        self.weight = relax.const(np.ascontiguousarray(weight.T))
        self.recurrence = relax.const(np.ascontiguousarray(recurrence.T))
        bias = np.zeros(4 * hidden, dtype)
        if node.optional(3) is not None:
            both = node.constant(3, "B")[direction]
            bias = both[: 4 * hidden] + both[4 * hidden :]
        self.bias = relax.const(bias)
        self.peepholes: list[relax.Expr] | None = None
        if node.optional(7) is not None:
            parts = np.split(node.constant(7, "P")[direction], 3)
            self.peepholes = [relax.const(np.ascontiguousarray(part)) for part in parts]

    def project(self, data: relax.Expr) -> relax.Expr:
        product = self.node.emit(relax.op.matmul(data, self.weight))
        return self.node.emit(relax.op.add(product, self.bias))

    def step(
        self,
        projected: relax.Expr,
        step: int,
        state: tuple[relax.Expr, relax.Expr],
        activations: list[Activation],
    ) -> tuple[relax.Expr, relax.Expr]:
        """One step: new hidden state and cell [N, H]."""
        emit, op = self.node.emit, relax.op
        hidden, cell = state
        f, g, h = activations
        recurrent = emit(op.matmul(hidden, self.recurrence))
        gates = emit(op.add(_take(self.node, projected, step), recurrent))
        parts = emit(op.split(gates, 4, axis=1))
        i, o, forget, c = (emit(relax.TupleGetItem(parts, index)) for index in range(4))
        i = self._gate(i, 0, cell, f)
        forget = self._gate(forget, 2, cell, f)
        kept = emit(op.multiply(forget, cell))
        added = emit(op.multiply(i, emit(g(self._clipped(c)))))
        new_cell = emit(op.add(kept, added))
        o = self._gate(o, 1, new_cell, f)
        return emit(op.multiply(o, emit(h(new_cell)))), new_cell

    def _gate(
        self, value: relax.Expr, peephole: int, cell: relax.Expr, activation: Activation
    ) -> relax.Expr:
        emit = self.node.emit
        if self.peepholes is not None:
            seen = emit(relax.op.multiply(self.peepholes[peephole], cell))
            value = emit(relax.op.add(value, seen))
        return emit(activation(self._clipped(value)))

    def _clipped(self, value: relax.Expr) -> relax.Expr:
        if self.clip is None:
            return value
        lower, upper = scalar(-self.clip, self.dtype), scalar(self.clip, self.dtype)
        floored = self.node.emit(relax.op.maximum(value, lower))
        return self.node.emit(relax.op.minimum(floored, upper))
