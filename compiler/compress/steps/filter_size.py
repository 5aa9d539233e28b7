"""Shrink filters: 3x3 becomes 1x1, 5x5 becomes 3x3 where what lies outside hardly matters."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from tvm import IRModule, relax

from edgec.compiler.calibration.float_model import FloatModel
from edgec.compiler.calibration.moments import Moments, measure_moments, patch_length
from edgec.compiler.compress.channel_groups.scores import centered, corrected_error
from edgec.compiler.compress.reconstruct import MAX_LENGTH, reconstruct
from edgec.compiler.compress.step import CompressionStep, StepContext
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.ir.anchors import Operator
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import constant
from edgec.compiler.ir.rewrite import convolution_attributes


class FilterSize(CompressionStep):
    """Each convolution gets the smallest kernel size that loses no more than it may.

    With samples, what counts is the error in the convolution's output after the weights that are
    left are adjusted, as a share of the output's energy; without, the energy of the weights.

    Attributes:
        energy: largest share that a convolution may lose, 0..1.
        repair: adjust the weights that are left by least squares, if there are samples.
    """

    kind: Literal["kernels"] = "kernels"
    energy: float = Field(gt=0, lt=1)
    repair: bool = True

    def apply(self, graph: Graph, context: StepContext) -> IRModule:
        """Cut kernels and paddings."""
        candidates = [o for o in self.weighted(graph) if _can_shrink(o, graph)]
        moments: dict[Any, Moments] = {}
        if context.samples is not None and candidates:
            small = [o for o in candidates if patch_length(o) <= MAX_LENGTH]
            model = FloatModel(
                graph, context.signature, [o.inputs[0] for o in small], context.evaluate
            )
            measured = measure_moments(model, small, context.samples, context.progress)
            moments = {o.anchor: found for o, found in measured}
        margins = {o.anchor: self._margins(o, graph, moments.get(o.anchor)) for o in candidates}
        margins = {anchor: found for anchor, found in margins.items() if any(found)}
        if not margins:
            raise UnsupportedModelError(
                f"kernels: no convolution could lose its margin for {self.energy:.0%} of its "
                f"energy ({len(candidates)} have one): allow more"
            )
        module = _shrunk(graph, margins)
        if context.samples is None or not self.repair:
            return module
        origins = [variable for variable, _ in graph.bindings]
        return reconstruct(module, graph, origins, context, lambda _, values: values)

    def _margins(
        self, operator: Operator, graph: Graph, moments: Moments | None
    ) -> tuple[int, int]:
        """Return how many rows above and below, and columns beside, can go."""
        for margins in _choices(operator, graph):
            if self._loss(operator, moments, margins) <= self.energy:
                return margins
        return 0, 0

    def _loss(self, operator: Operator, moments: Moments | None, margins: tuple[int, int]) -> float:
        assert operator.weight is not None
        array = operator.weight.array
        outside = np.ones(array.shape[2:], bool)
        outside[_middle(outside.shape, margins)] = False
        if moments is None:
            total = float(np.square(array).sum())
            return float(np.square(array[:, :, outside]).sum()) / total if total else 0.0
        second = centered(moments, operator.bias is not None)
        rows = array.reshape(len(second), len(array) // len(second), -1)
        columns = np.flatnonzero(np.tile(outside.reshape(-1), array.shape[1]))
        return corrected_error(rows, second, columns)


def _can_shrink(operator: Operator, graph: Graph) -> bool:
    return operator.kind in ("conv", "depthwise_conv") and bool(_choices(operator, graph))


def _choices(operator: Operator, graph: Graph) -> list[tuple[int, int]]:
    """Return margins that padding makes up for, the largest first."""
    assert operator.weight is not None
    if operator.weight.array.ndim != 4:
        return []
    attributes = graph.definitions[operator.anchor].attrs
    top, left, bottom, right = (int(n) for n in attributes.padding)
    (height, width), (tall, wide) = operator.weight.array.shape[2:], map(int, attributes.dilation)
    rows = min((height - 1) // 2, min(top, bottom) // tall)
    columns = min((width - 1) // 2, min(left, right) // wide)
    found = [(min(i, rows), min(i, columns)) for i in range(max(rows, columns), 0, -1)]
    return [margins for margins in found if any(margins)]


def _middle(kernel: tuple[int, ...], margins: tuple[int, int]) -> tuple[slice, slice]:
    (height, width), (rows, columns) = kernel, margins
    return slice(rows, height - rows), slice(columns, width - columns)


def _shrunk(graph: Graph, margins: dict[Any, tuple[int, int]]) -> IRModule:
    def change(
        _builder: relax.BlockBuilder, variable: Any, value: Any, _current: Callable[[Any], Any]
    ) -> Any:
        if variable in margins:
            rows, columns = margins[variable]
            array = _array(graph, variable)
            middle = array[(slice(None), slice(None), *_middle(array.shape[2:], margins[variable]))]
            tall, wide = (int(n) for n in value.attrs.dilation)
            cut = (rows * tall, columns * wide) * 2
            padding = [int(n) - m for n, m in zip(value.attrs.padding, cut, strict=True)]
            attributes = convolution_attributes(value, padding=padding)
            value = relax.Call(value.op, [value.args[0], constant(middle)], attributes)
        return value

    return graph.map_values(change)


def _array(graph: Graph, variable: Any) -> NDArray[np.float32]:
    array = graph.constant(graph.definitions[variable].args[1])
    assert array is not None
    return np.asarray(array)
