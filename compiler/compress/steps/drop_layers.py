"""Provide residual blocks that change the output least are left out: x + f(x) becomes x."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field
from tvm import IRModule, relax

from edgec.compiler.calibration.accuracy import Comparison
from edgec.compiler.calibration.samples import Sample
from edgec.compiler.compress.costs import costs_of
from edgec.compiler.compress.reconstruct import reconstruct
from edgec.compiler.compress.step import CompressionStep, StepContext
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.ir.anchors import find_operators
from edgec.compiler.ir.graph import Graph, operands
from edgec.compiler.ir.relax_helpers import op_name, shape_of
from edgec.compiler.ir.signature import Signature, Tensors, TensorSpec

# Batches that the effect of a block on the outputs is measured on.
MAX_BATCHES = 8

_SWITCHES = "switches"


@dataclass(frozen=True)
class Block:
    """A block describes a residual block.

    Attributes:
        sum: variable of x + f(x).
        shortcut: x.
        branch: f(x).
    """

    sum: Any
    shortcut: Any
    branch: Any


class Layers(CompressionStep):
    """Leaves out residual blocks, the one that adds least noise for what it saves first.

    Attributes:
        ratio: share of multiplications that goes at least, 0..1.
        repair: adjust the weights behind by least squares.
    """

    kind: Literal["layers"] = "layers"
    ratio: float = Field(gt=0, lt=1)
    repair: bool = True

    @property
    def needs_samples(self) -> bool:
        """Return whether the step cannot do without samples: it measures."""
        return True

    def apply(self, graph: Graph, context: StepContext) -> IRModule:
        """Leave blocks out and correct what is behind them."""
        free = {o.anchor for o in self.weighted(graph)}
        fixed = {o.anchor for o in find_operators(graph) if o.weight is not None} - free
        blocks = [b for b in find_blocks(graph) if not fixed - _needed(graph, [b])]
        if not blocks:
            raise UnsupportedModelError(
                "layers: the model has no residual block (x + f(x) of one shape) to leave out"
            )
        dropped = self._chosen(graph, blocks, context)
        module = without_blocks(graph, dropped)
        if not self.repair:
            return module
        needed, sums = _needed(graph, dropped), {block.sum for block in dropped}
        origins = [v for v, _ in graph.bindings if v in needed and v not in sums]
        return reconstruct(module, graph, origins, context, lambda _, values: values)

    def _chosen(self, graph: Graph, blocks: Sequence[Block], context: StepContext) -> list[Block]:
        """Return one after the other, each measured with those before it gone."""
        model = _SwitchedModel(graph, blocks, context)
        total = macs = costs_of(graph).macs
        dropped: list[Block] = []
        with context.progress.parts("blocks", len(blocks)) as advance:
            while macs > (1 - self.ratio) * total:
                best, least = None, np.inf
                for block in blocks:
                    if block in dropped:
                        continue
                    left = _macs(graph, [*dropped, block])
                    if left < macs:
                        saliency = model.noise([*dropped, block]) / (macs - left)
                        best, least = (block, saliency) if saliency < least else (best, least)
                if best is None:
                    raise UnsupportedModelError(
                        f"layers: {self.ratio:.0%} asked for, but all {len(blocks)} residual "
                        f"blocks together are {1 - macs / total:.0%}: ask for less"
                    )
                dropped.append(best)
                macs = _macs(graph, dropped)
                advance()
        return dropped


def find_blocks(graph: Graph) -> list[Block]:
    """Return sums of a value and of something computed from it."""
    above: dict[Any, set[Any]] = {}
    for variable, value in graph.bindings:
        read = [graph.operand(x) for x in operands(value) if isinstance(x, relax.Var)]
        above[variable] = set(read).union(*(above.get(x, ()) for x in read))
    blocks = []
    for variable, value in graph.bindings:
        if op_name(value) != "relax.add" or any(graph.constant(x) is not None for x in value.args):
            continue
        one, other = (graph.operand(x) for x in value.args)
        if not shape_of(one) == shape_of(other) == shape_of(variable):
            continue
        if one in above.get(other, ()):
            blocks.append(Block(variable, one, other))
        elif other in above.get(one, ()):
            blocks.append(Block(variable, other, one))
    return blocks


def _needed(graph: Graph, dropped: Collection[Block]) -> set[Any]:
    """Return variables that the results still depend on."""
    shortcuts = {block.sum: block.shortcut for block in dropped}
    needed: set[Any] = set()
    waiting = [result for result in graph.results if isinstance(result, relax.Var)]
    while waiting:
        variable = waiting.pop()
        if variable in needed:
            continue
        needed.add(variable)
        if variable in shortcuts:
            waiting.append(shortcuts[variable])
        else:
            value = graph.definitions.get(variable)
            waiting += [x for x in operands(value) if isinstance(x, relax.Var)]
    return needed


def _macs(graph: Graph, dropped: Collection[Block]) -> int:
    needed = _needed(graph, dropped)
    names = {graph.names[variable] for variable in needed}
    return sum(o.macs for o in costs_of(graph).operators if o.name in names)


def without_blocks(graph: Graph, dropped: Collection[Block]) -> IRModule:
    """Return the module in which sums are their shortcuts, and nothing else is computed in vain."""
    needed = _needed(graph, dropped)
    shortcuts = {block.sum: block.shortcut for block in dropped}

    def rewrite(
        builder: relax.BlockBuilder, variable: Any, value: Any, current: Callable[[Any], Any]
    ) -> Any:
        if variable in shortcuts:
            return current(shortcuts[variable])
        if value is None or variable not in needed:
            return variable
        return builder.emit(value, variable.name)

    return graph.rebuilt(rewrite)


class _SwitchedModel:
    """A switched model is the model, with blocks left out at will."""

    def __init__(self, graph: Graph, blocks: Sequence[Block], context: StepContext) -> None:
        assert context.samples is not None
        self._blocks = blocks
        switches = relax.Var(_SWITCHES, relax.TensorType([len(blocks)], "float32"))
        numbers = {block.sum: i for i, block in enumerate(blocks)}

        def change(
            builder: relax.BlockBuilder, variable: Any, value: Any, current: Callable[[Any], Any]
        ) -> Any:
            if variable in numbers:
                number, block = numbers[variable], blocks[numbers[variable]]
                switch = builder.emit(relax.op.strided_slice(switches, [0], [number], [number + 1]))
                branch = builder.emit(relax.op.multiply(current(block.branch), switch))
                value = relax.op.add(current(block.shortcut), branch)
            return value

        module = graph.map_values(change, parameters=[switches])
        spec = TensorSpec(_SWITCHES, (len(blocks),), "float32")
        inputs = (*context.signature.inputs, spec)
        self._model = context.evaluate(module, Signature(inputs, context.signature.outputs))
        self._samples = list(context.samples.limited(MAX_BATCHES))
        self._metric = context.metric
        self._expected = [self._run(sample, ()) for sample in self._samples]

    def _run(self, sample: Sample, dropped: Collection[Block]) -> Tensors:
        on = np.array([block not in dropped for block in self._blocks], np.float32)
        return self._model.run({**sample, _SWITCHES: on})

    def noise(self, dropped: Collection[Block]) -> float:
        """Return share of the worst output's energy that changes without blocks."""
        comparison = Comparison(self._metric)
        for sample, expected in zip(self._samples, self._expected, strict=True):
            comparison.add(expected, self._run(sample, dropped))
        return float(10 ** (-comparison.result().sqnr_db / 10))
