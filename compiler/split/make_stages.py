"""Make stages of a graph: the parts between cuts, as modules of their own."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tvm import IRModule, relax

from edgec.compiler.ir.graph import operands, substituted
from edgec.compiler.ir.relax_helpers import dtype_of, shape_of
from edgec.compiler.ir.signature import Signature, State, TensorSpec
from edgec.compiler.kernels.emit.requantize import Requantization, requantizations_text
from edgec.compiler.lowering.pack.packer import BLOCKED_INPUTS, REQUANTIZATIONS
from edgec.compiler.split.cut_graph import Before, CutGraph


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


def make_stages(graph: CutGraph, cuts: Sequence[Before]) -> list[Stage]:
    """Return the stages between cuts, each of which holds those before it."""
    bounds = [frozenset[int](), *cuts, frozenset(graph.operators)]
    return stages_of_parts(graph, [after - before for before, after in pairwise(bounds)])


def stages_of_parts(
    graph: CutGraph,
    parts: Sequence[Before],
    requantizations: Mapping[str, Requantization | None] | None = None,
) -> list[Stage]:
    """Return a stage for each part of a graph, in an order in which they can run.

    Args:
        graph: the graph.
        parts: the operators of each.
        requantizations: of stages that devices share how accumulators of some channels become
            quantized, by the names of variables; None: no stage is shared.
    """
    maker = _StageMaker(graph, requantizations)
    return [maker.stage(part, last=part is parts[-1]) for part in parts]


class _StageMaker:
    def __init__(
        self, cut: CutGraph, requantizations: Mapping[str, Requantization | None] | None
    ) -> None:
        self._cut, self._values = cut, cut.values
        self._requantizations = requantizations

    def stage(self, part: Before, last: bool) -> Stage:
        """Return the stage of some operators; the last one gives what none computes."""
        graph = self._values.graph
        own = {graph.bindings[place][0] for place in part}
        outputs = self._given_by(part, last)
        shared = self._shared(part, [variable for _, variable in outputs])
        kept = self._counters_of(part | shared)
        outputs += [(state.output, self._values.result_of[state.output]) for state in kept]
        shared |= self._shared(frozenset(), [variable for _, variable in outputs])
        read = [v for p in sorted(part | shared) for v in operands(graph.bindings[p][1])]
        read += [v for _, v in outputs if v in self._values.parameters]
        taken = list(dict.fromkeys(v for v in read if v in self._values.dependent and v not in own))
        inputs = [(self._input_name(v), v) for v in self._in_order(taken)]
        known = {variable for _, variable in outputs}
        outputs += [
            (self._cut.name(p), graph.bindings[p][0])
            for p in sorted(part)
            if any(r not in part for r in self._cut.readers[p])
            and graph.bindings[p][0] not in known
        ]
        given = {name for name, _ in outputs}
        states = tuple(
            s
            for s in self._values.states
            if s.output in given and s.input in [name for name, _ in inputs]
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
        read = {v for p in part for v in operands(self._values.graph.bindings[p][1])}
        counted = {state.output for state in self._values.counters}
        kept_by = {state.output: self._values.inputs[state.input] for state in self._values.states}
        found = []
        for name, variable in self._values.result_of.items():
            if name in counted:
                continue
            if name in self._cut.given:
                mine = self._cut.given[name] in part
            elif name in kept_by and self._values.graph.readers.get(kept_by[name]):
                mine = kept_by[name] in read
            else:
                mine = last
            if mine:
                source = self._values.returned_parameter(variable)
                found.append((name, variable if source is None else source))
        return found

    def _counters_of(self, places: Before) -> list[State]:
        """Return the counters that operators read, and those that these count with."""
        kept: list[State] = []
        while True:
            outputs = [self._values.result_of[state.output] for state in kept]
            reached = places | self._shared(frozenset(), outputs)
            read = {v for p in reached for v in operands(self._values.graph.bindings[p][1])}
            now = [s for s in self._values.counters if self._values.inputs[s.input] in read]
            if len(now) == len(kept):
                return now
            kept = now

    def _in_order(self, variables: Collection[Any]) -> list[Any]:
        """Return inputs of the model first, in its order, then values in the graph's."""
        model = [v for v in self._values.graph.parameters if v in variables]
        return model + sorted(
            (v for v in variables if v not in model), key=self._values.place.__getitem__
        )

    def _spec(self, name: str, variable: Any) -> TensorSpec:
        for spec in (*self._values.signature.inputs, *self._values.signature.outputs):
            if spec.name == name:
                return spec
        shape = shape_of(variable)
        assert shape is not None
        return TensorSpec(name, shape, dtype_of(variable))

    def _input_name(self, variable: Any) -> str:
        for name, parameter in self._values.inputs.items():
            if parameter.same_as(variable):
                return name
        return self._cut.name(self._values.place[variable])

    def _module(
        self, part: Before, inputs: Sequence[tuple[str, Any]], outputs: Sequence[Any]
    ) -> tuple[IRModule, dict[str, str]]:
        graph = self._values.graph
        others = {
            v: f for v, f in graph.module.functions_items() if not isinstance(f, relax.Function)
        }
        builder = relax.BlockBuilder(IRModule(others))
        made: dict[Any, Any] = {}
        names: dict[str, str] = {}
        decided: dict[str, Requantization | None] = {}
        parameters = []
        for number, (_, variable) in enumerate(inputs):
            fresh = variable
            if variable not in self._values.parameters:
                fresh = relax.Var(f"stage_input_{number}", variable.ty)
                made[variable] = fresh
            parameters.append(fresh)
            names[fresh.name] = graph.names[variable]
        blocked = [made[v].name for _, v in inputs if v in made and self._cut.held[0].get(v)]
        with builder.function("main", parameters, {BLOCKED_INPUTS: blocked}):
            with builder.dataflow():
                for place in sorted(part):
                    variable, value = graph.bindings[place]
                    bound = builder.emit(substituted(value, made), variable.name)
                    made[variable] = bound
                    if variable.name in (self._requantizations or {}):
                        decided[bound.name] = (self._requantizations or {})[variable.name]
                    names[bound.name] = graph.names[variable]
                fields = [made.get(variable, variable) for variable in outputs]
                single = len(fields) == 1
                result = builder.emit_output(fields[0] if single else relax.Tuple(fields))
            builder.emit_func_output(result)
        module = builder.get()
        if self._requantizations is not None:
            main = module["main"].with_attr(REQUANTIZATIONS, requantizations_text(decided))
            module.update_func(module.get_global_var("main"), main)
        return module, names

    def _shared(self, part: Before, outputs: Sequence[Any]) -> Before:
        """Return the operators on constants and counters alone that a part reads."""
        found: set[int] = set()
        waiting = [v for p in part for v in operands(self._values.graph.bindings[p][1])]
        waiting += [v for v in outputs if isinstance(v, relax.Var)]
        while waiting:
            variable = waiting.pop()
            place = self._values.place.get(variable)
            if place is None or place in found or variable in self._values.dependent:
                continue
            found.add(place)
            waiting += operands(self._values.graph.bindings[place][1])
        return frozenset(found)
