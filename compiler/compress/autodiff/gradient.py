"""Provide a canonical module as a function of its weights, with derivatives: reverse mode in NumPy.

TVM has a gradient pass (`relax.transform.Gradient`), but it knows neither clip nor the operators
of edgec, and compiles to convolutions without a schedule: a step of the digits classifier takes
some 400 ms with it for 32 images and 10 ms here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from edgec.compiler.compress.autodiff.derivatives import rule_of
from edgec.compiler.compress.autodiff.rule import Array, Backward, Rule
from edgec.compiler.compress.autodiff.shape import split_part
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import op_name, shape_of

Parameter = tuple[Any, int]
"""A constant operand that is trained: the variable of the call, and which operand."""


@dataclass(frozen=True)
class _Step:
    """A step describes one binding: where its operands come from.

    Attributes:
        variable: what it gives.
        rule: what it does.
        sources: the sources of each operand: a variable, a parameter, or an array.
    """

    variable: Any
    rule: Rule
    sources: tuple[Any, ...]


@dataclass(frozen=True)
class Tape:
    """A tape describes one evaluation.

    Attributes:
        values: by variable.
        backwards: with the step that each belongs to, in order.
    """

    values: dict[Any, Array]
    backwards: list[tuple[_Step, Backward]]


class Network:
    """A network is a module; `main` returns what `graph.results` say.

    Attributes:
        graph: the module.
        parameters: trained constants, in order.
    """

    def __init__(self, graph: Graph, parameters: Iterable[Parameter]) -> None:
        """Read the graph.

        Raises:
            UnsupportedModelError: names all operators that have no derivative here.
        """
        self.graph = graph
        self.parameters = tuple(parameters)
        self._trained = set(self.parameters)
        self._moving: set[Any] = set()
        self._alias: dict[Any, Any] = {}
        self._steps: list[_Step] = []
        self._constants: dict[Any, Array] = {}
        missing: set[str] = set()
        for variable, value in graph.bindings:
            self._read(variable, value, missing)
        if missing:
            raise UnsupportedModelError(
                f"distill: no derivative is known of {', '.join(sorted(missing))}; compress this "
                "model without distill"
            )

    def _read(self, variable: Any, value: Any, missing: set[str]) -> None:
        if isinstance(value, relax.Var):
            self._alias[variable] = self._source(value)
        elif isinstance(value, relax.TupleGetItem):
            split = self.graph.definitions.get(value.tuple_value)
            if split is None or op_name(split) != "relax.split":
                missing.add(op_name(split) or "a tuple")
                return
            data = self._source(split.args[0])
            if data in self._moving:
                self._moving.add(variable)
            self._steps.append(_Step(variable, split_part(split, int(value.index)), (data,)))
        elif isinstance(value, relax.Call):
            operands = _tensors(value)
            sources = tuple(
                (variable, place) if (variable, place) in self._trained else self._source(operand)
                for place, operand in enumerate(operands)
            )
            needed = tuple(self._needs(source) for source in sources)
            if any(needed):
                self._moving.add(variable)
            rule = rule_of(value, needed)
            if rule is None:
                missing.add(op_name(value) or str(value.op))
            elif op_name(value) != "relax.split":
                self._steps.append(_Step(variable, rule, sources))
        elif not isinstance(value, relax.Tuple):
            array = self.graph.constant(variable)
            assert array is not None
            self._constants[variable] = array

    def _source(self, operand: Any) -> Any:
        array = self.graph.constant(operand)
        return array if array is not None else self._alias.get(operand, operand)

    def _needs(self, source: Any) -> bool:
        if isinstance(source, tuple):
            return True
        return not isinstance(source, np.ndarray) and source in self._moving

    def of(self, variable: Any) -> Any:
        """Return the variable that a result or another alias stands for."""
        return self._alias.get(variable, variable)

    def run(self, inputs: Sequence[Array], parameters: Mapping[Parameter, Array]) -> Tape:
        """Return evaluate.

        Args:
            inputs: in the order of `main`, the batch a multiple of the module's.
            parameters: values of all trained constants.
        """
        values: dict[Any, Array] = dict(zip(self.graph.parameters, inputs, strict=True))
        backwards = []
        for step in self._steps:
            operands = []
            for source in step.sources:
                if isinstance(source, np.ndarray):
                    operands.append(source)
                elif isinstance(source, tuple):
                    operands.append(parameters[source])
                else:
                    operands.append(values[source])
            values[step.variable], backward = step.rule(*operands)
            if step.variable in self._moving:
                backwards.append((step, backward))
        return Tape(values, backwards)

    def gradients(self, tape: Tape, seeds: Mapping[Any, Array]) -> dict[Parameter, Array]:
        """Return the gradients of a sum over values.

        Args:
            tape: the tape of the evaluation; its values are dropped on the way.
            seeds: derivative by each value that the sum is made of.
        """
        gradients: dict[Any, Array] = dict(seeds)
        found: dict[Parameter, Array] = {}
        while tape.backwards:
            step, backward = tape.backwards.pop()
            gradient = gradients.pop(step.variable, None)
            if gradient is None:
                continue
            for source, part in zip(step.sources, backward(gradient), strict=True):
                if part is None or not self._needs(source):
                    continue
                total = found if isinstance(source, tuple) else gradients
                total[source] = total[source] + part if source in total else part
        return found

    def stackable(self, inputs: Sequence[Array], parameters: Mapping[Parameter, Array]) -> bool:
        """Return whether samples along the first axis of the inputs do not meet, found by trial."""
        batches = {shape[0] for p in self.graph.parameters if (shape := shape_of(p))}
        results = [self.of(r) for r in self.graph.results if isinstance(r, relax.Var)]
        if len(batches) != 1 or not all(shape_of(p) for p in self.graph.parameters):
            return False
        flipped = [array[..., ::-1].copy() for array in inputs]
        single = [self.run(each, parameters).values for each in (inputs, flipped)]
        try:
            pairs = [np.concatenate(pair) for pair in zip(inputs, flipped, strict=True)]
            both = self.run(pairs, parameters).values
        except (ValueError, IndexError):
            return False
        for result in results:
            expected = [values[result] for values in single]
            if not expected[0].ndim or len(both[result]) != 2 * len(expected[0]):
                return False
            if not np.allclose(both[result], np.concatenate(expected), rtol=1e-3, atol=1e-4):
                return False
        return True


def _tensors(call: Any) -> list[Any]:
    """Return operands that are tensors, those inside a tuple included."""
    operands: list[Any] = []
    for argument in call.args:
        if isinstance(argument, relax.Tuple):
            operands += [x for x in argument.fields if isinstance(x.ty, relax.TensorType)]
        elif isinstance(getattr(argument, "ty", None), relax.TensorType):
            operands.append(argument)
    return operands
