"""Unstructured pruning: the smallest weights become zero."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from tvm import IRModule

from edgec.compiler.compress.rewrite import with_weights
from edgec.compiler.compress.step import Step, Work
from edgec.compiler.dataflow import Graph
from edgec.compiler.errors import UnsupportedModelError


class Sparse(Step):
    """Weights with |w| < T become zero.

    Attributes:
        ratio: share of weights that becomes zero.
        scope: one T for each layer, or one for all.
    """

    kind: Literal["sparse"] = "sparse"
    ratio: float = Field(gt=0, lt=1)
    scope: Literal["layer", "model"] = "layer"

    def apply(self, graph: Graph, work: Work) -> IRModule:
        """Zero the smallest weights."""
        found = {o.anchor: o.weight.array for o in self.weighted(graph) if o.weight is not None}
        if not found:
            raise UnsupportedModelError(
                "sparse: the model has no convolution or matrix product with constant weights"
            )
        every = np.concatenate([np.abs(array).ravel() for array in found.values()])
        common = float(np.quantile(every, self.ratio)) if self.scope == "model" else None
        return with_weights(
            graph, {anchor: self._pruned(array, common) for anchor, array in found.items()}
        )

    def _pruned(self, array: NDArray[np.float32], threshold: float | None) -> NDArray[np.float32]:
        if threshold is None:
            threshold = float(np.quantile(np.abs(array), self.ratio))
        return np.where(np.abs(array) < threshold, np.float32(0), array)
