"""Provide recurrent operators over their (static) sequence length.

Short sequences are unrolled: quantization and training see products and functions. Long ones are
a loop (`recurrent_loops.py`), if the layer is one of those that PyTorch and Keras export; others
are unrolled up to a bound.

D is the number of directions, T the sequence length, N the batch, I the inputs, H hidden_size
and G the number of gates. With layout 1 the batch comes first: X [N, T, I], states [N, D, H],
Y [N, T, D, H].
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from tvm import relax

from edgec.compiler.frontend.converters.recurrent_activations import (
    Activation,
    find_activations,
)
from edgec.compiler.frontend.converters.recurrent_loops import Kind, Recurrence, emit_loop
from edgec.compiler.frontend.node import (
    Node,
    Refusal,
    constant_value,
    dtype_of,
    scalar,
    static_shape,
)
from edgec.compiler.frontend.te_operators import constant_tensor

# Sequences of more steps are a loop.
LOOP_STEPS = 16

# Each unrolled step is a dozen operators: of a thousand, a compile takes minutes.
MAX_STEPS = 4096

States = list[relax.Expr]


def convert_lstm(node: Node) -> list[relax.Expr]:
    """Convert LSTM: X [T, N, I], W [D, 4H, I], R [D, 4H, H], B [D, 8H], sequence_lens [N].

    initial_h and initial_c are [D, N, H], peepholes P [D, 3H].

    Returns:
        Y [T, D, N, H], Y_h [D, N, H], Y_c [D, N, H].
    """
    return convert_cells(node, Lstm)


def convert_gru(node: Node) -> list[relax.Expr]:
    """Convert GRU: X [T, N, I], W [D, 3H, I], R [D, 3H, H], B [D, 6H], sequence_lens [N].

    initial_h is [D, N, H].

    Returns:
        Y [T, D, N, H], Y_h [D, N, H].
    """
    return convert_cells(node, _Gru)


def convert_rnn(node: Node) -> list[relax.Expr]:
    """Convert RNN: X [T, N, I], W [D, H, I], R [D, H, H], B [D, 2H], sequence_lens [N].

    initial_h is [D, N, H].

    Returns:
        Y [T, D, N, H], Y_h [D, N, H].
    """
    return convert_cells(node, _Rnn)


def convert_cells(node: Node, kind: "type[_Cell]") -> list[relax.Expr]:
    """Return the cells of all directions, run over the sequence."""
    emit, op = node.emit, relax.op
    batch_first = bool(node.attributes.get("layout", 0))
    data = node.input(0)
    if batch_first:
        data = emit(op.permute_dims(data, [1, 0, 2]))
    steps, batch, _ = static_shape(data)
    why_no_loop = _why_no_loop(node, kind, dtype_of(data), steps)
    if steps > MAX_STEPS and why_no_loop:
        raise Refusal(
            f"it runs {steps} steps; at most {MAX_STEPS} are unrolled, and {why_no_loop} is in no "
            "loop"
        )
    if not steps:
        raise Refusal("sequences of length 0 are not supported")
    directions, _, hidden = static_shape(node.input(2))
    _check_shapes(node, kind, batch, batch_first)
    activations = find_activations(node, kind.default_activations, directions)
    masks = _masks(node, steps, batch)
    zeros = constant_tensor(np.zeros((batch, hidden), dtype_of(data)))

    sequences, last = [], []
    for d in range(directions):
        cell = kind(node, d, hidden, dtype_of(data), activations[d])
        states = [_initial(node, index, d, zeros, batch_first) for index in kind.initial_states]
        reverse = node.attributes.get("direction", "forward") == "reverse" or d == 1
        # All inputs' share of all gates in one matrix product: [T, N, GH].
        projected = cell.project(data)
        if steps > LOOP_STEPS and not why_no_loop:
            sequence, states = emit_loop(node, cell.recurrence_of(reverse), projected, states)
            sequences.append(node.call(op.expand_dims, sequence, 1))
            last.append(states)
            continue
        outputs = [zeros] * steps
        for step in reversed(range(steps)) if reverse else range(steps):
            new = cell.step(_take(node, projected, step), states)
            mask = masks[step]
            if mask is None:
                outputs[step] = new[0]
            else:
                # Behind the end of its sequence a state stays, and the output is zero.
                outputs[step] = emit(op.where(mask, new[0], zeros))
                new = [emit(op.where(mask, *pair)) for pair in zip(new, states, strict=True)]
            states = new
        if steps and masks[0] is not None:
            # ONNX leaves open how a sequence of no steps ends; in ONNX Runtime with zeros.
            states = [emit(op.where(masks[0], state, zeros)) for state in states]
        sequences.append(emit(op.expand_dims(emit(op.stack(outputs, axis=0)), 1)))
        last.append(states)
    results = [emit(op.concat(sequences, axis=1)) if directions > 1 else sequences[0]]
    results += [emit(op.stack(list(states), axis=0)) for states in zip(*last, strict=True)]
    if batch_first:
        orders = ([2, 0, 1, 3], *[[1, 0, 2]] * (len(results) - 1))
        return [op.permute_dims(r, order) for r, order in zip(results, orders, strict=True)]
    return results


def _why_no_loop(node: Node, kind: "type[_Cell]", dtype: str, steps: int) -> str:
    """Return what about a layer no loop has; empty if there is nothing."""
    attributes = node.attributes
    names = [name.lower() for name in attributes.get("activations") or ()]
    default = [name.lower() for name in kind.default_activations]
    if not kind.loop:
        return f"an operator {node.op_type}"
    if dtype != "float32":
        return dtype
    if names and names != default * (len(names) // len(default)):
        return "an activation that is not the default"
    for name in ("clip", "input_forget"):
        if attributes.get(name):
            return name
    lengths = node.optional(4)
    known = constant_value(lengths)
    if lengths is not None and (known is None or known.min() < steps):
        return "sequence_lens"
    return "a peephole" if node.optional(7) is not None else ""


def _check_shapes(node: Node, kind: "type[_Cell]", batch: int, batch_first: bool) -> None:
    """Refuse weights and states that do not belong together, which ONNX's checker lets pass.

    PyTorch's exporters lose the projection of an LSTM with `proj_size`: what is left are such
    shapes, from which nobody can restore it.
    """
    directions, _, hidden = static_shape(node.input(2))
    states = (batch, directions, hidden) if batch_first else (directions, batch, hidden)
    wanted: dict[int, tuple[str, tuple[int, ...]]] = {
        1: ("W", (directions, kind.gates * hidden, static_shape(node.input(0))[2])),
        2: ("R", (directions, kind.gates * hidden, hidden)),
        3: ("B", (directions, 2 * kind.gates * hidden)),
        5: ("initial_h", states),
        6: ("initial_c", states),
        7: ("P", (directions, 3 * hidden)),
    }
    wrong = [
        f"{name} {list(static_shape(node.input(index)))} instead of {list(shape)}"
        for index, (name, shape) in wanted.items()
        if node.optional(index) is not None and static_shape(node.input(index)) != shape
    ]
    if not wrong:
        return
    advice = ""
    if node.op_type == "LSTM":
        advice = (
            "; PyTorch's exporter loses the projection of nn.LSTM(proj_size=…), which ONNX cannot "
            "express: write the layer out as matrix products step by step, and export again"
        )
    raise Refusal(f"weights and states do not fit together: {', '.join(wrong)}{advice}")


def _masks(node: Node, steps: int, batch: int) -> list[relax.Expr | None]:
    """Return for each step which sequences still run, [N, 1]; None where all do."""
    lengths = node.optional(4)
    if lengths is None:
        return [None] * steps
    known = constant_value(lengths)
    if known is not None:
        running = np.arange(steps)[:, None] < known.reshape(1, batch)
        return [None if row.all() else constant_tensor(row[:, None]) for row in running]
    column = node.emit(relax.op.reshape(lengths, (batch, 1)))
    dtype = dtype_of(lengths)
    return [node.emit(relax.op.greater(column, scalar(t, dtype))) for t in range(steps)]


def _initial(
    node: Node, index: int, direction: int, zeros: relax.Expr, batch_first: bool
) -> relax.Expr:
    """Return initial state [N, H] of one direction."""
    states = node.optional(index)
    return zeros if states is None else _take(node, states, direction, 1 if batch_first else 0)


def _take(node: Node, tensor: relax.Expr, index: int, axis: int = 0) -> relax.Expr:
    """Return tensor[index] along a dimension."""
    part = relax.op.strided_slice(tensor, axes=[axis], begin=[index], end=[index + 1])
    return node.emit(relax.op.squeeze(node.emit(part), axis=[axis]))


class _Cell(ABC):
    """A cell is one direction: its weights in the shapes that matrix products want, and its step.

    Attributes:
        gates: how many; weights have a block of rows for each.
        default_activations: where the node names none.
        initial_states: inputs of the node that hold them.
        loop: what `recurrent_loops.py` calls it; None if it is not there.
    """

    gates: ClassVar[int]
    loop: ClassVar[Kind | None] = None
    default_activations: ClassVar[Sequence[str]]
    initial_states: ClassVar[Sequence[int]] = (5,)

    def __init__(
        self,
        node: Node,
        direction: int,
        hidden: int,
        dtype: str,
        activations: Sequence[Activation],
    ) -> None:
        self.node = node
        self.direction = direction
        self.hidden = hidden
        self.dtype = dtype
        self.activations = activations
        self.clip = node.attributes.get("clip")
        self.weight = self._transposed(1)
        self.recurrence = self._transposed(2)
        self.input_bias, self.recurrent_bias = self._biases()

    @abstractmethod
    def step(self, projected: relax.Expr, states: States) -> States:
        """Return new states [N, H] from old ones and the input's share of the gates, [N, GH]."""

    def recurrence_of(self, reverse: bool) -> Recurrence:
        """Return what a loop over the steps needs."""
        assert self.loop is not None
        return Recurrence(self.loop, (self.recurrence,), None, reverse)

    def project(self, data: relax.Expr) -> relax.Expr:
        """Return X Wᵀ and the biases, [T, N, GH]."""
        product = self.weigh(data)
        bias = self.input_bias
        if bias is None:
            return product
        return self.node.emit(relax.op.add(product, bias))

    def weigh(self, data: relax.Expr) -> relax.Expr:
        """Return X Wᵀ, [T, N, GH]."""
        return self.node.emit(relax.op.matmul(data, self.weight))

    def recur(self, hidden: relax.Expr) -> relax.Expr:
        """Return h Rᵀ, [N, GH]."""
        return self.node.emit(relax.op.matmul(hidden, self.recurrence))

    def _transposed(self, index: int) -> relax.Expr:
        """Return W or R of this direction, [I or H, GH]."""
        known = constant_value(self.node.input(index))
        if known is not None:
            return constant_tensor(known[self.direction].T)
        matrix = _take(self.node, self.node.input(index), self.direction)
        return self.node.emit(relax.op.permute_dims(matrix, [1, 0]))

    def _biases(self) -> tuple[relax.Expr | None, relax.Expr | None]:
        """Return what is added to the projected inputs, and what to the recurrent product."""
        given = self.node.optional(3)
        if given is None:
            return None, None
        return self._joined_biases(*_parts(self.node, given, self.direction, 2))

    def _joined_biases(
        self, of_input: relax.Expr, recurrent: relax.Expr
    ) -> tuple[relax.Expr | None, relax.Expr | None]:
        known = constant_value(of_input), constant_value(recurrent)
        if known[0] is not None and known[1] is not None:
            return constant_tensor(known[0] + known[1]), None
        return self.node.emit(relax.op.add(of_input, recurrent)), None

    def _activated(self, which: int, value: relax.Expr) -> relax.Expr:
        """Return the activation of one gate, after the clip."""
        if self.clip is not None:
            lower, upper = scalar(-self.clip, self.dtype), scalar(self.clip, self.dtype)
            value = self.node.emit(relax.op.maximum(value, lower))
            value = self.node.emit(relax.op.minimum(value, upper))
        return self.node.emit(self.activations[which](value))

    def _split(self, gates: relax.Expr, count: int) -> Iterator[relax.Expr]:
        parts = self.node.emit(relax.op.split(gates, count, axis=1))
        for index in range(count):
            yield self.node.emit(relax.TupleGetItem(parts, index))


class _Rnn(_Cell):
    """An RNN computes h' = f(x Wᵀ + b_W + h Rᵀ + b_R)."""

    gates = 1
    default_activations = ("Tanh",)
    loop = "RNN"

    def step(self, projected: relax.Expr, states: States) -> States:
        emit = self.node.emit
        recurrent = self.recur(states[0])
        return [self._activated(0, emit(relax.op.add(projected, recurrent)))]


class _Gru(_Cell):
    """A GRU stacks the gates update z, reset r and hidden n in this order.

    z and r are f(x Wᵀ + b_W + h Rᵀ + b_R), and h' = (1 - z) n + z h. The hidden gate is
    n = g(x Wᵀ + b_W + (r h) Rᵀ + b_R), or with linear_before_reset
    n = g(x Wᵀ + b_W + r (h Rᵀ + b_R)).
    """

    gates = 3
    default_activations = ("Sigmoid", "Tanh")
    loop = "GRU"

    def __init__(self, node: Node, *args: Any) -> None:
        self.linear_before_reset = bool(node.attributes.get("linear_before_reset", 0))
        super().__init__(node, *args)
        # Columns of z and r, and of n.
        self.of_gates = self._columns(0, 2)
        self.of_hidden = self._columns(2, 3)

    def recurrence_of(self, reverse: bool) -> Recurrence:
        """Return what a loop over the steps needs."""
        if not self.linear_before_reset:
            return Recurrence("GRU", (self.of_gates, self.of_hidden), None, reverse)
        bias = self.recurrent_bias
        if bias is None:
            bias = constant_tensor(np.zeros(3 * self.hidden, self.dtype))
        return Recurrence("GRU", (self.recurrence,), bias, reverse)

    def _columns(self, begin: int, end: int) -> relax.Expr:
        known = constant_value(self.recurrence)
        begin, end = begin * self.hidden, end * self.hidden
        if known is not None:
            return constant_tensor(known[:, begin:end])
        part = relax.op.strided_slice(self.recurrence, axes=[1], begin=[begin], end=[end])
        return self.node.emit(part)

    def _joined_biases(
        self, of_input: relax.Expr, recurrent: relax.Expr
    ) -> tuple[relax.Expr | None, relax.Expr | None]:
        if self.linear_before_reset:
            return of_input, recurrent
        return super()._joined_biases(of_input, recurrent)

    def step(self, projected: relax.Expr, states: States) -> States:
        emit, op = self.node.emit, relax.op
        (hidden,) = states
        x_z, x_r, x_n = self._split(projected, 3)
        h_n: relax.Expr | None = None
        if self.linear_before_reset:
            recurrent = emit(op.matmul(hidden, self.recurrence))
            if self.recurrent_bias is not None:
                recurrent = emit(op.add(recurrent, self.recurrent_bias))
            h_z, h_r, h_n = self._split(recurrent, 3)
        else:
            h_z, h_r = self._split(emit(op.matmul(hidden, self.of_gates)), 2)
        z = self._activated(0, emit(op.add(x_z, h_z)))
        r = self._activated(0, emit(op.add(x_r, h_r)))
        if h_n is None:
            reset = emit(op.matmul(emit(op.multiply(r, hidden)), self.of_hidden))
        else:
            reset = emit(op.multiply(r, h_n))
        n = self._activated(1, emit(op.add(x_n, reset)))
        fresh = emit(op.multiply(emit(op.subtract(scalar(1, self.dtype), z)), n))
        return [emit(op.add(fresh, emit(op.multiply(z, hidden))))]


class Lstm(_Cell):
    """An LSTM stacks the gates input i, output o, forget f and cell c in this order.

    Its states are h and C.

    Each gate is f(x Wᵀ + h Rᵀ + b_W + b_R), the cell gate with g; with peepholes P ⊙ C is added,
    of the new C for the output gate. C' = f C + i c and h' = o h(C'). With input_forget, the
    forget gate is 1 - i.
    """

    gates = 4
    default_activations = ("Sigmoid", "Tanh", "Tanh")
    initial_states = (5, 6)
    loop: ClassVar[Kind | None] = "LSTM"

    def __init__(self, node: Node, *args: Any) -> None:
        super().__init__(node, *args)
        self.coupled = bool(node.attributes.get("input_forget", 0))
        self.peepholes: list[relax.Expr] | None = None
        given = node.optional(7)
        if given is not None:
            self.peepholes = _parts(node, given, self.direction, 3)

    def step(self, projected: relax.Expr, states: States) -> States:
        """Return the new h and C."""
        emit, op = self.node.emit, relax.op
        hidden, cell = states
        recurrent = self.recur(hidden)
        i, o, f, c = self._split(emit(op.add(projected, recurrent)), 4)
        i = self._activated(0, self._seen(i, 0, cell))
        if self.coupled:
            f = emit(op.subtract(scalar(1, self.dtype), i))
        else:
            f = self._activated(0, self._seen(f, 2, cell))
        kept = emit(op.multiply(f, cell))
        added = emit(op.multiply(i, self._activated(1, c)))
        new_cell = emit(op.add(kept, added))
        o = self._activated(0, self._seen(o, 1, new_cell))
        return [emit(op.multiply(o, emit(self.activations[2](new_cell)))), new_cell]

    def _seen(self, value: relax.Expr, peephole: int, cell: relax.Expr) -> relax.Expr:
        """Return a gate's sum with what it sees of the cell."""
        if self.peepholes is None:
            return value
        seen = self.node.emit(relax.op.multiply(self.peepholes[peephole], cell))
        return self.node.emit(relax.op.add(value, seen))


def _parts(node: Node, tensor: relax.Expr, direction: int, count: int) -> list[relax.Expr]:
    """Return a row of a matrix in equal parts, constant if the matrix is."""
    known = constant_value(tensor)
    if known is not None:
        return [constant_tensor(p) for p in np.split(known[direction], count)]
    parts = node.emit(relax.op.split(_take(node, tensor, direction), count, axis=0))
    return [node.emit(relax.TupleGetItem(parts, index)) for index in range(count)]
