"""Small networks with random weights, canonical, and inputs for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from support.contexts import work_on
from support.onnx_graphs import make_model
from tvm import IRModule

from edgec.compiler.calibration.accuracy import Accuracy, Comparison, same_top1
from edgec.compiler.calibration.samples import samples_from_tensors
from edgec.compiler.compress.step import StepContext
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.ir.graph import Graph
from edgec.compiler.parity.reference import run_reference


@dataclass(frozen=True)
class SmallModel:
    """A small model describes a canonical module, and what steps need to work on it.

    Attributes:
        graph: the module.
        context: with samples.
        blind: without.
        test: another batch.
    """

    graph: Graph
    context: StepContext
    blind: StepContext
    test: Mapping[str, np.ndarray]

    def accuracy(self, module: IRModule) -> Accuracy:
        """Return the accuracy of a changed module, on inputs that it was not changed for."""
        comparison = Comparison(same_top1)
        comparison.add(self.run(self.graph.module), self.run(module))
        return comparison.result()

    def run(self, module: IRModule) -> dict[str, np.ndarray]:
        """Return outputs for the other batch."""
        return run_reference(module, self.context.signature, self.test)


def small_model(
    nodes: Sequence[Any], weights: Mapping[str, np.ndarray], shape: Sequence[int]
) -> SmallModel:
    """Return the small model of ONNX nodes from `x` to `y`."""
    model = make_model(nodes, {"x": list(shape)}, ["y"], weights)
    imported = canonical_model(model)
    graph = Graph(imported.module, imported.value_names)
    images = np.random.default_rng(0).standard_normal((8 * shape[0], *shape[1:]))
    for axis in (2, 3):
        # Neighbours are alike, as in photographs.
        images = (images + np.roll(images, 1, axis) + np.roll(images, -1, axis)) / 3**0.5
    inputs = images.astype(np.float32)
    signature = imported.signature
    samples = samples_from_tensors({"x": inputs[: -shape[0]]}, signature.inputs)
    test = {"x": inputs[-shape[0] :]}
    context, blind = work_on(graph, signature, samples), work_on(graph, signature)
    return SmallModel(graph, context, blind, test)
