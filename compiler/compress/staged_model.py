"""Provide a module that is run in stages, over all samples each: the values in between are on disk.

What one stage gives may decide what the next one computes, and nothing is computed twice.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import IRModule, relax

from edgec.compiler.calibration.samples import Sample
from edgec.compiler.ir.evaluate import Evaluate
from edgec.compiler.ir.graph import Graph, operands, substituted
from edgec.compiler.ir.relax_helpers import dtype_of, shape_of, value_of
from edgec.compiler.ir.signature import Signature, TensorSpec


class StagedModel:
    """A staged model is a canonical module on this machine; stage k computes what is wanted in it.

    Args:
        graph: the module.
        signature: the signature of the module.
        wanted: for each stage, variables of the graph.
        samples: by number.
        folder: the folder that values are kept in.
        evaluate: compiles the stages.
    """

    def __init__(
        self,
        graph: Graph,
        signature: Signature,
        wanted: Sequence[Sequence[Any]],
        samples: Sequence[Sample],
        folder: Path,
        evaluate: Evaluate,
    ) -> None:
        self._graph = graph
        self._wanted = wanted
        self._folder = folder
        self._evaluate = evaluate
        self._samples = samples
        self._inputs = {v: s.name for v, s in zip(graph.parameters, signature.inputs, strict=True)}
        self._numbers = {v: i for i, (v, _) in enumerate(graph.bindings)}
        self._first, self._last = self._stages()

    def _stages(self) -> tuple[dict[Any, int], dict[Any, int]]:
        """Return the stage in which each variable is computed.

        And the one in which it is read last.
        """
        first: dict[Any, int] = {}
        last: dict[Any, int] = {}
        for stage, variables in enumerate(self._wanted):
            for variable in variables:
                first.setdefault(variable, stage)
                last[variable] = stage
        for variable, value in reversed(self._graph.bindings):
            if variable not in first:
                continue
            for operand in _variables(value):
                first[operand] = min(first.get(operand, first[variable]), first[variable])
                last[operand] = max(last.get(operand, 0), first[variable])
        # A tuple is taken apart where it comes from.
        for variable, value in self._graph.bindings:
            if variable in first and isinstance(value, relax.TupleGetItem):
                first[variable] = first[value.tuple_value]
        return first, last

    def run(self, stage: int, changed: Mapping[Any, Any]) -> None:
        """Compute what a stage needs, for every sample; stages come in order.

        Args:
            stage: its number.
            changed: expressions that take the place of those of the graph, by variable.
        """
        graph = self._graph
        mine = [
            (variable, changed.get(variable, value))
            for variable, value in graph.bindings
            if self._first.get(variable) == stage and value_of(value) is None
        ]
        computed = {variable for variable, _ in mine}
        given, constants = [], []
        for operand in dict.fromkeys(v for _, value in mine for v in _variables(value)):
            if value_of(graph.definitions.get(operand)) is not None:
                constants.append((operand, graph.definitions[operand]))
            elif operand not in computed:
                given.append(operand)
        kept = [
            v
            for v in computed
            if shape_of(v) is not None and (self._last[v] > stage or v in self._wanted[stage])
        ]
        if kept:
            module = _module(graph, [*constants, *mine], given, kept)
            ins, outs = (tuple(map(self._spec, variables)) for variables in (given, kept))
            model = self._evaluate(module, Signature(ins, outs))
            for sample in range(len(self._samples)):
                values = model.run({self._name(v): self.value(v, sample) for v in given})
                for variable in kept:
                    np.save(self._path(variable, sample), values[self._name(variable)])
        for variable, until in self._last.items():
            if stage - 1 <= until <= stage and variable not in self._wanted[stage]:
                for sample in range(len(self._samples)):
                    self._path(variable, sample).unlink(missing_ok=True)

    def value(self, variable: Any, sample: int) -> NDArray[Any]:
        """Return what is wanted in the stage that ran last, for one sample."""
        if variable in self._inputs:
            return self._samples[sample][self._inputs[variable]]
        return np.asarray(np.load(self._path(variable, sample)))

    def _name(self, variable: Any) -> str:
        return self._inputs.get(variable) or f"value {self._numbers[variable]}"

    def _path(self, variable: Any, sample: int) -> Path:
        return self._folder / f"{self._name(variable)}, {sample}.npy"

    def _spec(self, variable: Any) -> TensorSpec:
        return TensorSpec(self._name(variable), shape_of(variable) or (), dtype_of(variable))


def _variables(value: Any) -> list[Any]:
    return [operand for operand in operands(value) if isinstance(operand, relax.Var)]


def _module(
    graph: Graph, bindings: Sequence[tuple[Any, Any]], given: Sequence[Any], kept: Sequence[Any]
) -> IRModule:
    """Return some bindings by themselves; `main` returns a tuple."""
    functions = graph.module.functions_items()
    others = {v: f for v, f in functions if not isinstance(f, relax.Function)}
    builder = relax.BlockBuilder(IRModule(others))
    made = {v: relax.Var(f"given_{i}", v.ty) for i, v in enumerate(given)}
    with builder.function("main", list(made.values())):
        with builder.dataflow():
            for variable, value in bindings:
                made[variable] = builder.emit(substituted(value, made), variable.name)
            bound = builder.emit_output(relax.Tuple([made[variable] for variable in kept]))
        builder.emit_func_output(bound)
    return builder.get()
