"""Provide the values of a model that is to be cut: what depends on its inputs, and on what alone.

What depends on constants alone, counters (states whose next value follows from scalars alone, as
the length of a cache) and the floats that quantized values stand for belong to no stage: whoever
reads them computes them.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tvm import IRModule, relax

from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.ir.graph import Graph, operands
from edgec.compiler.ir.relax_helpers import dtype_of, is_static, op_name, shape_of
from edgec.compiler.ir.signature import Signature, State
from edgec.compiler.passes.fuse_rms_norm import FuseRmsNorm

# An input of so many bytes is sent to every stage that counts with it.
_SCALAR_BYTES = 8


class ModelValues:
    """Model values are what the operators of a model compute.

    Args:
        module: canonical, compressed and quantized.
        value_names: ONNX names by the names of variables.
        signature: inputs and outputs, states among them.
        states: what a session keeps.

    Attributes:
        graph: the graph that is cut.
        place: where each variable stands in the graph.
        parameters: the inputs of the model.
        same: one object for each variable, by any that is equal.
        inputs: the same by name.
        result_of: the outputs by name.
        counters: states that every stage that reads them counts on its own.
        dependent: what belongs to one stage, and the inputs.

    Raises:
        UnsupportedModelError: shapes depend on data.
    """

    def __init__(
        self,
        module: IRModule,
        value_names: Mapping[str, str],
        signature: Signature,
        states: Sequence[State],
    ) -> None:
        if not is_static(module):
            raise UnsupportedModelError(
                "shapes in this model depend on data: it cannot be cut into stages"
            )
        # Kernels normalize whole rows: their steps stay together.
        self.graph = graph = Graph(FuseRmsNorm()(module), value_names)
        self.signature, self.states = signature, tuple(states)
        self.place = {variable: n for n, (variable, _) in enumerate(graph.bindings)}
        self.parameters = set(graph.parameters)
        self.same = {v: v for v in (*graph.parameters, *self.place)}
        self.result_of = dict(zip((s.name for s in signature.outputs), graph.results, strict=True))
        self.inputs = dict(zip((s.name for s in signature.inputs), graph.parameters, strict=True))
        self.dependent = self._find_dependent(self.parameters)
        self.counters = self._find_counters()
        self.dependent -= self._find_counting()
        self.dependent -= self._find_dequantized()

    def _find_dependent(self, sources: Collection[Any]) -> set[Any]:
        """Return what depends on any of some inputs, and these."""
        found = set(sources)
        for variable, value in self.graph.bindings:
            if any(operand in found for operand in operands(value)):
                found.add(variable)
        return found

    def _find_counters(self) -> tuple[State, ...]:
        """Return the states whose next values follow from themselves and from scalars."""
        scalars = {
            self.inputs[spec.name]
            for spec in self.signature.inputs
            if bytes_of(self.inputs[spec.name]) <= _SCALAR_BYTES
        }
        others = self._find_dependent([p for p in self.parameters if p not in scalars])
        return tuple(
            state
            for state in self.states
            if self.inputs[state.input] in scalars
            and isinstance(self.result_of[state.output], relax.Var)
            and self.result_of[state.output] not in others
        )

    def _find_counting(self) -> set[Any]:
        """Return what only counters and what counts them compute."""
        if not self.counters:
            return set()
        ancestors: set[Any] = set()
        waiting = [self.result_of[state.output] for state in self.counters]
        while waiting:
            variable = waiting.pop()
            if variable in ancestors or variable not in self.place:
                continue
            ancestors.add(variable)
            waiting += operands(self.graph.bindings[self.place[variable]][1])
        read = {self.inputs[state.input] for state in self.counters}
        scalars = read | {v for a in ancestors for v in self._reads(a) if v in self.parameters}
        others = self._find_dependent([p for p in self.parameters if p not in scalars])
        return (self._find_dependent(scalars) - others - self.parameters) | ancestors

    def _find_dequantized(self) -> set[Any]:
        """Return the floats that quantized values stand for, but for results of the model."""
        return {
            variable
            for variable, value in self.graph.bindings
            if op_name(value) == "relax.dequantize"
            and variable in self.dependent
            and not self.graph.is_result(variable)
        }

    def is_floats_of_data(self, expression: Any) -> bool:
        """Tell whether an expression is the floats of quantized values that depend on an input."""
        value = self.graph.definitions.get(expression)
        if expression in self.dependent or op_name(value) != "relax.dequantize":
            return False
        assert value is not None
        source = value.args[0]
        return source in self.dependent or self.is_floats_of_data(source)

    def _reads(self, variable: Any) -> list[Any]:
        return operands(self.graph.bindings[self.place[variable]][1])

    def operators(self) -> list[int]:
        """Return the places of what the results need and that depends on an input."""
        live = set(self.graph.results)
        found = []
        for place, (variable, value) in reversed(list(enumerate(self.graph.bindings))):
            if variable in live:
                live.update(operands(value))
                if variable in self.dependent:
                    found.append(place)
        return found[::-1]

    def sources(self, value: Any) -> Iterator[Any]:
        """Yield what an operator reads, of dequantized floats the quantized values."""
        for operand in operands(value):
            own = self.graph.definitions.get(operand)
            if operand not in self.dependent and op_name(own) == "relax.dequantize":
                yield from self.sources(own)
            else:
                yield operand

    def size_of(self, name: str) -> int:
        """Return the bytes of an input or output of the model."""
        if name in self.inputs:
            return bytes_of(self.inputs[name])
        return bytes_of(self.result_of[name])

    def returned_parameter(self, variable: Any) -> Any:
        """Return the input that an output is, None if it is computed."""
        source = self.graph.operand(variable)
        return source if source in self.parameters else None


def bytes_of(variable: Any) -> int:
    """Return the bytes of a tensor."""
    shape = shape_of(variable)
    assert shape is not None
    return math.prod(shape) * np.dtype(dtype_of(variable)).itemsize
