"""Provide recurrent layers as one loop over their sequence, for sequences of many steps.

Written out step by step, a layer of a thousand steps is ten thousand operators. Here it is one
function of three loops: over the steps, over a few samples of the batch at a time, and over panels
of columns of the recurrent matrix, whose sums stay in registers. What the inputs add to the gates
is one matrix product for all steps, before it.

The loop computes in float32 what `recurrent.py` writes out; T is the sequence length, N the batch,
H the hidden values and G the number of gates.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tvm import relax, tirx
from tvm.script.ir_builder import tirx as script

from edgec.compiler.frontend.node import Node, constant_value, static_shape
from edgec.compiler.frontend.te_operators import constant_tensor, emit_procedure, flat
from edgec.compiler.ir.signature import TensorSpec
from edgec.compiler.kernels.emit.vector_math import sigmoid, tanh
from edgec.compiler.kernels.vectors import broadcast, constant

# Sums that are in registers together, samples that share a line of weights, and columns of one
# vector: LLVM splits it into those of the target.
SUMS, SAMPLES, LANES = 64, 4, 16

Kind = Literal["LSTM", "GRU", "RNN"]


@dataclass(frozen=True)
class Recurrence:
    """A recurrence describes one direction of a layer with the default activations.

    Attributes:
        kind: the operator.
        matrices: what the hidden values are multiplied by, [H, columns] each: one for all gates,
            or two for a GRU that resets before its product, the second of the hidden gate.
        bias: what is added to the product, [GH]; only of a GRU that resets behind it.
        reverse: whether the last step comes first.
    """

    kind: Kind
    matrices: tuple[relax.Expr, ...]
    bias: relax.Expr | None
    reverse: bool


def emit_loop(
    node: Node, recurrence: Recurrence, projected: relax.Expr, states: Sequence[relax.Expr]
) -> tuple[relax.Expr, list[relax.Expr]]:
    """Emit the loop of one direction.

    Args:
        node: whose builder emits it.
        recurrence: the weights, and what to do with them.
        projected: what the inputs add to the gates, float32 [T, N, GH].
        states: the first hidden values [N, H], and of an LSTM the first cells.

    Returns:
        The hidden values of all steps [T, N, H], and the last states.
    """
    steps, batch, columns = static_shape(projected)
    hidden = static_shape(states[0])[1]
    samples = math.gcd(batch, SAMPLES)
    panels = [_panels(node, matrix, SUMS // samples) for matrix in recurrence.matrices]
    bias = [] if recurrence.bias is None else [recurrence.bias]
    inputs = [flat(node, x) for x in (projected, *states, *bias, *panels)]
    loop = _Loop(recurrence, steps, batch, samples, hidden, columns, len(states), len(bias))
    # The gates of one step, then what a GRU resets.
    sizes = [steps * batch * hidden, *[batch * hidden] * len(states)]
    sizes += [samples * columns, samples * hidden]
    outputs = [TensorSpec("", (size,), "float32") for size in sizes]
    flops = 2 * steps * batch * hidden * columns
    results = emit_procedure(node, inputs, outputs, loop.write, flops)
    sequence = node.call(relax.op.reshape, results[0], (steps, batch, hidden))
    last = [
        node.call(relax.op.reshape, result, (batch, hidden))
        for result in results[1 : 1 + len(states)]
    ]
    return sequence, last


def _panels(node: Node, matrix: relax.Expr, most: int) -> relax.Expr:
    """Return a matrix [rows, columns] as panels [columns / width, rows, width], one by one."""
    rows, columns = static_shape(matrix)
    width = math.gcd(columns, most)
    known = constant_value(matrix)
    if known is not None:
        cut = known.reshape(rows, columns // width, width).transpose(1, 0, 2)
        return constant_tensor(np.ascontiguousarray(cut))
    cut = node.call(relax.op.reshape, matrix, (rows, columns // width, width))
    return node.call(relax.op.permute_dims, cut, [1, 0, 2])


@dataclass(frozen=True)
class _Loop:
    """Writes the statements; all buffers are flat."""

    recurrence: Recurrence
    steps: int
    batch: int
    samples: int
    hidden: int
    columns: int
    states: int
    biases: int

    def write(self, *buffers: Any) -> None:
        projected, *rest = buffers
        given, rest = rest[: self.states], rest[self.states :]
        bias, rest = rest[: self.biases], rest[self.biases :]
        count = len(self.recurrence.matrices)
        panels, (sequence, *rest) = rest[:count], rest[count:]
        states, (gates, reset) = rest[: self.states], rest[self.states :]
        for source, state in zip(given, states, strict=True):
            self._each(self.batch * self.hidden, lambda at, x=source, y=state: _copy(y, at, x, at))
        groups = self.batch // self.samples
        with script.serial(0, self.steps) as turn, script.serial(0, groups) as group:
            step = self.steps - 1 - turn if self.recurrence.reverse else turn
            first = group * self.samples

            def sample(number: Any) -> _Sample:
                row = step * self.batch + first + number
                own = (first + number) * self.hidden
                return _Sample(
                    (projected, row * self.columns),
                    (gates, number * self.columns),
                    (reset, number * self.hidden),
                    [(state, own) for state in states],
                    (sequence, row * self.hidden),
                )

            self._step([sample(number) for number in range(self.samples)], sample, panels, bias)

    def _step(
        self,
        all_samples: Sequence["_Sample"],
        sample: Callable[[Any], "_Sample"],
        panels: Sequence[Any],
        bias: Sequence[Any],
    ) -> None:
        """Write one step of some samples: products for all of them, the rest one by one."""
        h, kind = self.hidden, self.recurrence.kind
        hidden = [one.states[0] for one in all_samples]
        inputs = [one.inputs for one in all_samples]
        gates = [one.gates for one in all_samples]
        if kind == "GRU" and not bias:
            self._product(hidden, panels[0], 2 * h, inputs, gates)
            with script.serial(0, self.samples) as number:
                self._reset(sample(number))
            behind = [_behind(one, 2 * h) for one in inputs]
            results = [_behind(one, 2 * h) for one in gates]
            self._product([one.reset for one in all_samples], panels[1], h, behind, results)
        else:
            starts = [(bias[0], 0)] * self.samples if bias else inputs
            self._product(hidden, panels[0], self.columns, starts, gates)
        with script.serial(0, self.samples) as number:
            one = sample(number)
            if kind == "LSTM":
                self._lstm(one)
            elif kind == "GRU":
                self._gru(one, resets_behind=bool(bias))
            else:
                self._each(h, lambda at: _store(one.states[0], at, tanh(_read(one.gates, at))))
            self._each(h, lambda at: _store(one.result, at, _read(one.states[0], at)))

    def _lstm(self, one: "_Sample") -> None:
        """Gates are input, output, forget and cell."""
        h, gates, (state, cell) = self.hidden, one.gates, one.states
        self._each(3 * h, lambda at: _store(gates, at, sigmoid(_read(gates, at))))
        self._each(h, lambda at: _store(gates, 3 * h + at, tanh(_read(gates, 3 * h + at))))

        def remember(at: Any) -> None:
            kept = _read(gates, 2 * h + at) * _read(cell, at)
            _store(cell, at, kept + _read(gates, at) * _read(gates, 3 * h + at))

        self._each(h, remember)
        self._each(h, lambda at: _store(state, at, _read(gates, h + at) * tanh(_read(cell, at))))

    def _reset(self, one: "_Sample") -> None:
        """Write the gates update and reset, and the hidden values that are left of the reset."""
        h, gates = self.hidden, one.gates
        self._each(2 * h, lambda at: _store(gates, at, sigmoid(_read(gates, at))))
        self._each(
            h, lambda at: _store(one.reset, at, _read(gates, h + at) * _read(one.states[0], at))
        )

    def _gru(self, one: "_Sample", resets_behind: bool) -> None:
        """Gates are update, reset and hidden.

        Of a GRU that resets behind its product they hold the product, without the inputs.
        """
        h, gates, inputs = self.hidden, one.gates, one.inputs

        def raised(at: Any) -> None:
            _store(gates, at, sigmoid(_read(gates, at) + _read(inputs, at)))

        def fresh(at: Any) -> None:
            value = _read(gates, 2 * h + at)
            if resets_behind:
                value = _read(inputs, 2 * h + at) + _read(gates, h + at) * value
            _store(gates, 2 * h + at, tanh(value))

        if resets_behind:
            self._each(2 * h, raised)
        self._each(h, fresh)
        self._mix(gates, one.states[0])

    def _mix(self, gates: Any, state: Any) -> None:
        """Write (1 - z) n + z h."""
        h = self.hidden

        def mix(at: Any) -> None:
            update = _read(gates, at)
            fresh = (_like(update, 1.0) - update) * _read(gates, 2 * h + at)
            _store(state, at, fresh + update * _read(state, at))

        self._each(h, mix)

    def _product(
        self,
        vectors: Sequence[Any],
        panels: Any,
        columns: int,
        starts: Sequence[Any],
        results: Sequence[Any],
    ) -> None:
        """Write start + vector * matrix of each sample, a panel of columns at a time."""
        width = math.gcd(columns, SUMS // self.samples)
        lanes = math.gcd(width, LANES)
        parts = range(0, width, lanes)
        sums = script.alloc_buffer((self.samples * width,), "float32", scope="local")
        with script.serial(0, columns // width) as panel:
            for number, start in enumerate(starts):
                for part in parts:
                    value = _read(start, _run(panel * width + part, lanes))
                    _store(sums, _run(number * width + part, lanes), value)
            with script.serial(0, self.hidden) as k:
                line = (panel * self.hidden + k) * width
                for part in parts:
                    weights = script.bind(_read(panels, _run(line + part, lanes)))
                    for number, vector in enumerate(vectors):
                        at = _run(number * width + part, lanes)
                        factor = broadcast(_read(vector, k), lanes)
                        _store(sums, at, _read(sums, at) + factor * weights)
            for number, result in enumerate(results):
                for part in parts:
                    value = _read(sums, _run(number * width + part, lanes))
                    _store(result, _run(panel * width + part, lanes), value)

    def _each(self, count: int, body: Any) -> None:
        """Write a loop over vectors of `count` values; none of them spans two gates."""
        lanes = math.gcd(math.gcd(count, self.hidden), LANES)
        with script.serial(0, count // lanes) as number:
            body(_run(number * lanes, lanes))


@dataclass(frozen=True)
class _Sample:
    """A sample of one step: parts of buffers, each with the place where it begins."""

    inputs: Any
    gates: Any
    reset: Any
    states: Sequence[Any]
    result: Any


def _behind(part: tuple[Any, Any], by: int) -> tuple[Any, Any]:
    """Return a part of the same buffer that begins later."""
    return part[0], part[1] + by


def _run(first: Any, lanes: int) -> Any:
    """Return consecutive places."""
    if isinstance(first, int):
        first = tirx.IntImm("int32", first)
    return first if lanes == 1 else tirx.Ramp(first, tirx.IntImm("int32", 1), lanes)


def _place(where: Any, at: Any) -> tuple[Any, Any]:
    """Return buffer and place of a buffer, or of a part of one that begins somewhere."""
    if not isinstance(where, tuple):
        return where, at
    buffer, first = where
    if isinstance(at, tirx.Ramp):
        return buffer, tirx.Ramp(first + at.base, at.stride, at.lanes)
    return buffer, first + at


def _read(where: Any, at: Any) -> Any:
    buffer, place = _place(where, at)
    return tirx.BufferLoad(buffer, [place])


def _store(where: Any, at: Any, value: Any) -> None:
    buffer, place = _place(where, at)
    script.buffer_store(buffer, value, [place])


def _copy(target: Any, to: Any, source: Any, at: Any) -> None:
    _store(target, to, _read(source, at))


def _like(value: Any, number: float) -> Any:
    return constant(number, "float32", int(value.ty.dtype.lanes))
