"""Run a graph as a session runs its library: what is a state goes from one run to the next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.ir.signature import State, Tensors, TensorSpec

# Runs that show whether a state is kept: from zeros, from that, and from both.
STEPS = 3


@dataclass(frozen=True)
class Step:
    """A step is one run, with the states among its inputs and outputs.

    Attributes:
        inputs: by name.
        outputs: by name.
    """

    inputs: Tensors
    outputs: Tensors

    def called(self, states: Sequence[State]) -> "Step":
        """Return the step without states, as callers of a session see it."""
        kept, updated = {s.input for s in states}, {s.output for s in states}
        return Step(
            {name: array for name, array in self.inputs.items() if name not in kept},
            {name: array for name, array in self.outputs.items() if name not in updated},
        )


class Stream:
    """A stream keeps the states of a graph, which begin as zeros.

    Args:
        run: runs the graph once: outputs by name from inputs by name.
        states: inputs and outputs that are states.
        specs: the inputs of the graph.
        values: of states when it begins, by input; zeros where they are not named.
    """

    def __init__(
        self,
        run: Callable[[Tensors], Tensors],
        states: Sequence[State] = (),
        specs: Sequence[TensorSpec] = (),
        values: Tensors = MappingProxyType({}),
    ) -> None:
        self._run = run
        self._states = states
        kept = {state.input for state in states}
        self._values: dict[str, NDArray[Any]] = {
            spec.name: np.zeros([extent or 0 for extent in spec.shape], spec.dtype)
            for spec in specs
            if spec.name in kept
        }
        self._values.update(values)

    def full(self, inputs: Tensors) -> Tensors:
        """Return the inputs of the next run with the states among them."""
        return {**inputs, **self._values}

    def peek(self, inputs: Tensors) -> Tensors:
        """Return what the next run would give, and keep the state as it is."""
        return self._run(self.full(inputs))

    def keep(self, inputs: Tensors, outputs: Tensors) -> Step:
        """Take over the state of a run that `peek` tried."""
        step = Step(self.full(inputs), outputs)
        self._values = {s.input: np.asarray(outputs[s.output]) for s in self._states}
        return step

    def step(self, inputs: Tensors) -> Step:
        """Run once."""
        return self.keep(inputs, self.peek(inputs))
