"""Provide a model's graph as a splitter sees it: what may be computed where, and what then travels.

A cut is a set of values; whoever computes before it hands them over. It is given here as the
operators before it, which all operators that they need belong to. A cut changes no bit:

1. Only values that kernels of every target hold in memory as they are may travel, so that no
   kernel is cut apart: what one fuses on any of the targets stays together.
2. Quantized values travel as such; whoever reads them dequantizes them.
3. A state is read and written on one side.
4. Operators on constants alone belong to every stage that reads them. So do those on counters:
   states whose next value follows from scalars alone, as the length of a cache. Each stage that
   reads a counter keeps one.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from tvm import IRModule, relax

from edgec.compiler.backend import held_values
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.ir.graph import Graph, operands, substituted
from edgec.compiler.ir.relax_helpers import dtype_of, is_static, op_name, shape_of, value_of
from edgec.compiler.ir.signature import Signature, State, TensorSpec
from edgec.compiler.lowering.pack.packer import BLOCKED_INPUTS
from edgec.compiler.passes.fuse_rms_norm import FuseRmsNorm
from edgec.targets import Target

# An input of so many bytes is sent to every stage that counts with it.
_SCALAR_BYTES = 8

# Operators before a cut, by their places in the graph.
Before = frozenset[int]


@dataclass(frozen=True)
class Stage:
    """A stage is a part of a graph, as a module of its own.

    Attributes:
        module: one function `main`.
        signature: its inputs and outputs: those of the model that it has, and what travels.
        states: those of the model that it keeps.
        names: names of values by those of variables.
    """

    module: IRModule
    signature: Signature
    states: tuple[State, ...]
    names: Mapping[str, str]


class CutGraph:
    """A cut graph says where a model can be cut, and makes its stages.

    Args:
        module: canonical, compressed and quantized.
        value_names: ONNX names by the names of variables.
        signature: inputs and outputs, states among them.
        states: what a session keeps.
        targets: whose kernels must not be cut apart.

    Attributes:
        graph: the graph that is cut.
        operators: the places of all operators that depend on an input, in order.

    Raises:
        UnsupportedModelError: shapes depend on data.
    """

    def __init__(
        self,
        module: IRModule,
        value_names: Mapping[str, str],
        signature: Signature,
        states: Sequence[State],
        targets: Collection[Target],
    ) -> None:
        if not is_static(module):
            raise UnsupportedModelError(
                "shapes in this model depend on data: it cannot be cut into stages"
            )
        # Kernels normalize whole rows: their steps stay together.
        self.graph = Graph(FuseRmsNorm()(module), value_names)
        self.signature, self.states = signature, tuple(states)
        graph = self.graph
        self._place = {variable: n for n, (variable, _) in enumerate(graph.bindings)}
        self._parameters = set(graph.parameters)
        self.result_of = dict(zip((s.name for s in signature.outputs), graph.results, strict=True))
        self.inputs = dict(zip((s.name for s in signature.inputs), graph.parameters, strict=True))
        self._dependent = self._find_dependent(self._parameters)
        self._counters = self._find_counters()
        self._dependent -= self._find_counting()
        # (2)
        self._dependent -= self._find_dequantized()
        self.operators = self._find_operators()
        self._held = [held_values(graph.module, target) for target in targets]

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
            if _bytes_of(self.inputs[spec.name]) <= _SCALAR_BYTES
        }
        others = self._find_dependent([p for p in self._parameters if p not in scalars])
        return tuple(
            state
            for state in self.states
            if self.inputs[state.input] in scalars
            and isinstance(self.result_of[state.output], relax.Var)
            and self.result_of[state.output] not in others
        )

    def _find_counting(self) -> set[Any]:
        """Return what only counters and what counts them compute."""
        if not self._counters:
            return set()
        ancestors: set[Any] = set()
        waiting = [self.result_of[state.output] for state in self._counters]
        while waiting:
            variable = waiting.pop()
            if variable in ancestors or variable not in self._place:
                continue
            ancestors.add(variable)
            waiting += operands(self.graph.bindings[self._place[variable]][1])
        read = {self.inputs[state.input] for state in self._counters}
        scalars = read | {v for a in ancestors for v in self._reads(a) if v in self._parameters}
        others = self._find_dependent([p for p in self._parameters if p not in scalars])
        return (self._find_dependent(scalars) - others - self._parameters) | ancestors

    def _find_dequantized(self) -> set[Any]:
        """Return the floats that quantized values stand for, but for results of the model."""
        return {
            variable
            for variable, value in self.graph.bindings
            if op_name(value) == "relax.dequantize"
            and variable in self._dependent
            and not self.graph.is_result(variable)
        }

    def _reads(self, variable: Any) -> list[Any]:
        return operands(self.graph.bindings[self._place[variable]][1])

    def _find_operators(self) -> list[int]:
        """Return the places of what the results need and that depends on an input."""
        live = set(self.graph.results)
        found = []
        for place, (variable, value) in reversed(list(enumerate(self.graph.bindings))):
            if variable in live:
                live.update(operands(value))
                if variable in self._dependent:
                    found.append(place)
        return found[::-1]

    @cached_property
    def needs(self) -> dict[int, tuple[int, ...]]:
        """Return the operators that each operator reads, the floats of one by itself."""
        return {
            place: tuple(
                dict.fromkeys(
                    self._place[v]
                    for v in self._sources(self.graph.bindings[place][1])
                    if v in self._dependent and v not in self._parameters
                )
            )
            for place in self.operators
        }

    def _sources(self, value: Any) -> Iterator[Any]:
        """Yield what an operator reads, of dequantized floats the quantized values."""
        for operand in operands(value):
            own = self.graph.definitions.get(operand)
            if operand not in self._dependent and op_name(own) == "relax.dequantize":
                yield from self._sources(own)
            else:
                yield operand

    @cached_property
    def readers(self) -> dict[int, list[int]]:
        """Return the operators that read each operator."""
        found: dict[int, list[int]] = {place: [] for place in self.operators}
        for place, needed in self.needs.items():
            for other in needed:
                found[other].append(place)
        return found

    @cached_property
    def given(self) -> dict[str, int]:
        """Return the operator behind each output of the model; inputs and constants have none."""
        return {
            name: self._place[variable]
            for name, variable in self.result_of.items()
            if isinstance(variable, relax.Var)
            and variable in self._dependent
            and variable not in self._parameters
            and self._place[variable] in self.needs
            and self._returned_parameter(variable) is None
        }

    def _returned_parameter(self, variable: Any) -> Any:
        """Return the input that an output is, None if it is computed."""
        source = self.graph.operand(variable)
        return source if source in self._parameters else None

    def name(self, place: int) -> str:
        """Return what people call the value of an operator, in every program of the model."""
        return self._names[place]

    @cached_property
    def _names(self) -> dict[int, str]:
        """Return ONNX names, and of values without one what they are of the first named before.

        `relu_3/quantize`, and `relu_3/quantize#2` where that is taken.
        """
        found: dict[int, str] = {}
        taken = {*self.inputs, *self.result_of}
        for place in self.operators:
            variable, value = self.graph.bindings[place]
            name = self.graph.value_names.get(variable.name)
            if name is None or name in taken:
                source = next((found[p] for p in self.needs[place]), "")
                kind = op_name(value).rpartition(".")[2] or "value"
                name = f"{source}/{kind}".removeprefix("/")
            base, number = name, 1
            while name in taken:
                number += 1
                name = f"{base}#{number}"
            taken.add(name)
            found[place] = name
        outputs = {place: name for name, place in reversed(self.given.items())}
        return found | outputs

    def size_bytes(self, place: int) -> int:
        """Return the bytes of an operator's value."""
        variable = self.graph.bindings[place][0]
        return 0 if shape_of(variable) is None else _bytes_of(variable)

    def may_travel(self, place: int) -> bool:
        """Tell whether the value of an operator may go from one stage to another."""
        variable, value = self.graph.bindings[place]
        if shape_of(variable) is None or isinstance(value, relax.Var):
            return False
        # (3)
        if place in self._written:
            return False
        # (1)
        return all(variable in held for held in self._held)

    @cached_property
    def _written(self) -> frozenset[int]:
        """Return who computes the next value of a state."""
        return frozenset().union(*(writing for _, writing in self._tied))

    @cached_property
    def _tied(self) -> list[tuple[frozenset[int], frozenset[int]]]:
        """Return for each state who reads it, and who computes its next value."""
        tied = []
        for state in self.states:
            if state in self._counters:
                continue
            parameter = self.inputs[state.input]
            reading = frozenset(
                place
                for place in self.operators
                if parameter in self._sources(self.graph.bindings[place][1])
            )
            writing = frozenset([self.given[state.output]] if state.output in self.given else [])
            tied.append((reading, writing))
        return tied

    def closed(self, places: Iterable[int]) -> Before:
        """Return the operators before a cut behind some operators.

        These, all that they need, the whole of each state that they touch, and the outputs that
        are then computed anyway.
        """
        found: set[int] = set()
        waiting = list(places)
        while waiting:
            place = waiting.pop()
            if place in found:
                continue
            found.add(place)
            waiting += self.needs[place]
            if not waiting:
                for group in self._tied:
                    members = group[0] | group[1]
                    # (3)
                    if members & found:
                        waiting += members - found
        return frozenset(found)

    def crossing(self, before: Before) -> tuple[int, ...]:
        """Return the operators before a cut whose values are read behind it."""
        return tuple(
            place
            for place in sorted(before)
            if any(reader not in before for reader in self.readers[place])
        )

    def is_cut(self, before: Before) -> bool:
        """Tell whether every value that crosses may travel, and no state is torn."""
        torn = any(
            0 < len((reading | writing) & before) < len(reading | writing)
            for reading, writing in self._tied
        )
        if torn or not before or len(before) == len(self.operators):
            return False
        crossing = self.crossing(before)
        return bool(crossing) and all(map(self.may_travel, crossing))

    def cut_bytes(self, before: Before) -> int:
        """Return the bytes of the values that cross."""
        return sum(map(self.size_bytes, self.crossing(before)))

    def cut_names(self, before: Before) -> tuple[str, ...]:
        """Return a cut by what crosses and what is an output before it, to find it again by."""
        outputs = [place for place in self.given.values() if place in before]
        return tuple(self.name(p) for p in dict.fromkeys((*self.crossing(before), *outputs)))

    def find_cut(self, names: Collection[str]) -> Before | None:
        """Return the cut behind values of these names; None if there is no value of a name."""
        by_name = {self.name(place): place for place in self.operators}
        if any(name not in by_name for name in names):
            return None
        return self.closed(by_name[name] for name in names)

    # Stages

    def stages(self, cuts: Sequence[Before]) -> list[Stage]:
        """Return the parts between cuts, each of which holds those before it."""
        bounds = [frozenset[int](), *cuts, frozenset(self.operators)]
        parts = [after - before for before, after in pairwise(bounds)]
        return [self._stage(part, bound) for part, bound in zip(parts, bounds[1:], strict=True)]

    def _stage(self, part: Before, bound: Before) -> Stage:
        graph = self.graph
        own = {graph.bindings[place][0] for place in part}
        outputs = self._given_by(part, last=len(bound) == len(self.operators))
        shared = self._shared(part, [variable for _, variable in outputs])
        kept = self._counters_of(part | shared)
        outputs += [(state.output, self.result_of[state.output]) for state in kept]
        shared |= self._shared(frozenset(), [variable for _, variable in outputs])
        read = [v for p in sorted(part | shared) for v in operands(graph.bindings[p][1])]
        read += [v for _, v in outputs if v in self._parameters]
        taken = list(dict.fromkeys(v for v in read if v in self._dependent and v not in own))
        inputs = [(self._input_name(v), v) for v in self._in_order(taken)]
        known = {variable for _, variable in outputs}
        outputs += [
            (self.name(p), graph.bindings[p][0])
            for p in sorted(part)
            if any(r not in part for r in self.readers[p]) and graph.bindings[p][0] not in known
        ]
        given = {name for name, _ in outputs}
        states = tuple(
            s for s in self.states if s.output in given and s.input in [name for name, _ in inputs]
        )
        module, names = self._module(part | shared, inputs, [v for _, v in outputs])
        signature = Signature(
            tuple(self._spec(name, v) for name, v in inputs),
            tuple(self._spec(name, v) for name, v in outputs),
        )
        return Stage(module, signature, states, names)

    def _given_by(self, part: Before, last: bool) -> list[tuple[str, Any]]:
        """Return the outputs of the model that a part gives: what it computes.

        Inputs and constants that are returned come from the stage of their state, or the last.
        """
        read = {v for p in part for v in operands(self.graph.bindings[p][1])}
        counted = {state.output for state in self._counters}
        kept_by = {state.output: self.inputs[state.input] for state in self.states}
        found = []
        for name, variable in self.result_of.items():
            if name in counted:
                continue
            if name in self.given:
                mine = self.given[name] in part
            elif name in kept_by and self.graph.readers.get(kept_by[name]):
                mine = kept_by[name] in read
            else:
                mine = last
            if mine:
                source = self._returned_parameter(variable)
                found.append((name, variable if source is None else source))
        return found

    def _counters_of(self, places: Before) -> list[State]:
        """Return the counters that operators read, and those that these count with."""
        kept: list[State] = []
        while True:
            outputs = [self.result_of[state.output] for state in kept]
            reached = places | self._shared(frozenset(), outputs)
            read = {v for p in reached for v in operands(self.graph.bindings[p][1])}
            now = [s for s in self._counters if self.inputs[s.input] in read]
            if len(now) == len(kept):
                return now
            kept = now

    def _in_order(self, variables: Collection[Any]) -> list[Any]:
        """Return inputs of the model first, in its order, then values in the graph's."""
        model = [v for v in self.graph.parameters if v in variables]
        return model + sorted((v for v in variables if v not in model), key=self._place.__getitem__)

    def _spec(self, name: str, variable: Any) -> TensorSpec:
        for spec in (*self.signature.inputs, *self.signature.outputs):
            if spec.name == name:
                return spec
        shape = shape_of(variable)
        assert shape is not None
        return TensorSpec(name, shape, dtype_of(variable))

    def _input_name(self, variable: Any) -> str:
        for name, parameter in self.inputs.items():
            if parameter.same_as(variable):
                return name
        return self.name(self._place[variable])

    def _module(
        self, part: Before, inputs: Sequence[tuple[str, Any]], outputs: Sequence[Any]
    ) -> tuple[IRModule, dict[str, str]]:
        graph = self.graph
        others = {
            v: f for v, f in graph.module.functions_items() if not isinstance(f, relax.Function)
        }
        builder = relax.BlockBuilder(IRModule(others))
        made: dict[Any, Any] = {}
        names: dict[str, str] = {}
        parameters = []
        for number, (_, variable) in enumerate(inputs):
            fresh = variable
            if variable not in self._parameters:
                fresh = relax.Var(f"stage_input_{number}", variable.ty)
                made[variable] = fresh
            parameters.append(fresh)
            names[fresh.name] = graph.names[variable]
        blocked = [made[v].name for _, v in inputs if v in made and self._held[0].get(v)]
        with builder.function("main", parameters, {BLOCKED_INPUTS: blocked}):
            with builder.dataflow():
                for place in sorted(part):
                    variable, value = graph.bindings[place]
                    bound = builder.emit(substituted(value, made), variable.name)
                    made[variable] = bound
                    names[bound.name] = graph.names[variable]
                fields = [made.get(variable, variable) for variable in outputs]
                single = len(fields) == 1
                result = builder.emit_output(fields[0] if single else relax.Tuple(fields))
            builder.emit_func_output(result)
        return builder.get(), names

    def _shared(self, part: Before, outputs: Sequence[Any]) -> Before:
        """Return the operators on constants and counters alone that a part reads."""
        found: set[int] = set()
        waiting = [v for p in part for v in operands(self.graph.bindings[p][1])]
        waiting += [v for v in outputs if isinstance(v, relax.Var)]
        while waiting:
            variable = waiting.pop()
            place = self._place.get(variable)
            if place is None or place in found or variable in self._dependent:
                continue
            found.add(place)
            waiting += operands(self.graph.bindings[place][1])
        return frozenset(found)

    @cached_property
    def weight_bytes(self) -> dict[int, int]:
        """Return the bytes of the constants that each operator reads, as they are in the graph."""
        found = {}
        for place in self.operators:
            waiting = list(operands(self.graph.bindings[place][1]))
            size = 0
            seen: set[int] = set()
            while waiting:
                expression = waiting.pop()
                array = value_of(expression)
                if array is not None:
                    size += array.nbytes
                elif expression not in self._dependent and expression in self._place:
                    other = self._place[expression]
                    if other not in seen:
                        seen.add(other)
                        value = self.graph.bindings[other][1]
                        own = value_of(value)
                        size += own.nbytes if own is not None else 0
                        waiting += operands(value)
            found[place] = size
        return found


def _bytes_of(variable: Any) -> int:
    shape = shape_of(variable)
    assert shape is not None
    return math.prod(shape) * np.dtype(dtype_of(variable)).itemsize
