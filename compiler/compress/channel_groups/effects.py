"""Describe what the error of each layer does to the outputs of the model, measured.

A tenth of all coupled channels is ablated (held at its mean), alone, and the model run: one
compiled model with a factor and a summand for every value whose channels may go.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from edgec.compiler.calibration.accuracy import Comparison, same_top1
from edgec.compiler.calibration.moments import Moments
from edgec.compiler.compress.channel_groups.dependencies import Dependencies, Group
from edgec.compiler.compress.channel_groups.scores import ChannelBlock, Consumer
from edgec.compiler.compress.step import StepContext
from edgec.compiler.ir.anchors import Operator
from edgec.compiler.ir.relax_helpers import op_name
from edgec.compiler.ir.signature import Signature, TensorSpec

# Batches that it is measured on.
MAX_BATCHES = 8

# Share of the blocks of coupled channels that is ablated.
SHARE = 0.1


def weighted_by_effect(
    dependencies: Dependencies,
    ranked: Sequence[Sequence[ChannelBlock]],
    consumers: Sequence[Consumer],
    moments: Mapping[Any, tuple[Operator, Moments]],
    context: StepContext,
) -> list[list[ChannelBlock]]:
    """Return the blocks with saliencies in shares of the outputs' energy."""
    assert context.samples is not None
    model = _AblatedModel(dependencies, consumers, moments, context)
    weighted = []
    with context.progress.parts("effect of layers", len(ranked)) as advance:
        for blocks in ranked:
            ablated = blocks[: max(1, round(SHARE * len(blocks)))]
            groups = [group for block in ablated for group in block.groups]
            missing = sum(
                item.missing(np.concatenate([item.columns(group) for group in groups]))
                for item in consumers
            )
            factor = model.noise(groups) / max(missing, 1e-12)
            weighted.append([replace(b, saliency=b.saliency * factor) for b in blocks])
            advance()
    return weighted


class _AblatedModel:
    """An ablated model holds chosen channels at their means."""

    def __init__(
        self,
        dependencies: Dependencies,
        consumers: Sequence[Consumer],
        moments: Mapping[Any, tuple[Operator, Moments]],
        context: StepContext,
    ) -> None:
        assert context.samples is not None
        self._dependencies = dependencies
        graph = dependencies.graph
        self._ids: list[NDArray[np.int64]] = []
        self._means: list[NDArray[np.float32]] = []
        self._shapes: list[list[int]] = []
        specs, parameters = [], []
        ablated: dict[Any, tuple[Any, Any]] = {}
        for item in consumers:
            variable = item.linear.variable
            data = graph.operand(graph.definitions[variable].args[0])
            axis = 1 if "conv" in op_name(graph.definitions[variable]) else -1
            ids = dependencies.axis(data, axis)
            if not ids.any():
                continue
            number, rank = len(self._ids), len(data.ty.shape.values)
            shape = [1] * rank
            shape[axis] = len(ids)
            self._shapes.append(shape)
            pair = []
            for what in ("factor", "summand"):
                specs.append(TensorSpec(f"{what} {number}", tuple(shape), "float32"))
                pair.append(relax.Var(f"{what}_{number}", relax.TensorType(shape, "float32")))
            parameters += pair
            ablated[variable] = (pair[0], pair[1])
            self._ids.append(ids)
            self._means.append(_mean(moments.get(variable), len(ids)))

        def change(
            builder: relax.BlockBuilder, variable: Any, value: Any, _current: Callable[[Any], Any]
        ) -> Any:
            if variable in ablated:
                factor, summand = ablated[variable]
                product = builder.emit(relax.op.multiply(value.args[0], factor))
                data = builder.emit(relax.op.add(product, summand))
                value = relax.Call(value.op, [data, *value.args[1:]], value.attrs)
            return value

        module = graph.map_values(change, parameters=parameters)
        signature = context.signature
        inputs = (*signature.inputs, *specs)
        self._model = context.evaluate(module, Signature(inputs, signature.outputs))
        self._samples = list(context.samples.limited(MAX_BATCHES))
        self._expected = [self._model.run({**s, **self._ablated(())}) for s in self._samples]

    def _ablated(self, groups: Sequence[Group]) -> dict[str, NDArray[np.float32]]:
        removed = np.array([group.identity for group in groups], np.int64)
        arrays = {}
        for number, (ids, means) in enumerate(zip(self._ids, self._means, strict=True)):
            gone = np.isin(ids, removed)
            shape = self._shapes[number]
            arrays[f"factor {number}"] = np.where(gone, 0, 1).astype(np.float32).reshape(shape)
            arrays[f"summand {number}"] = np.where(gone, means, np.float32(0)).reshape(shape)
        return arrays

    def noise(self, groups: Sequence[Group]) -> float:
        """Return share of the worst output's energy that changes with groups ablated."""
        comparison = Comparison(same_top1)
        for sample, expected in zip(self._samples, self._expected, strict=True):
            comparison.add(expected, self._model.run({**sample, **self._ablated(groups)}))
        return float(10 ** (-comparison.result().sqnr_db / 10))


def _mean(found: tuple[Operator, Moments] | None, channels: int) -> NDArray[np.float32]:
    """Return the mean of each channel that a sum reads; 0 where it is not known."""
    if found is None:
        return np.zeros(channels, np.float32)
    return np.asarray(found[1].mean.reshape(channels, -1).mean(axis=1))
