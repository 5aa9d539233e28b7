"""Correct a sum of factors by boosted decision trees (Friedman 2001).

The sum knows what a kernel executes and moves; what it does not know, such as how much of the
moving hides behind the computing, trees learn from the shares of the sum and from ratios of counts.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edgec.compiler.predict.features import FEATURES, StepFeatures

Row = NDArray[np.float64]

# Counts whose ratio says how long inner loops are, and what they are made of.
_RATIOS = (
    ("multiply_add", "loop"),
    ("multiply_add", "load"),
    ("multiply_add", "task"),
    ("intrinsic", "loop"),
    ("load", "loop"),
    ("store", "loop"),
    ("store", "load"),
    ("scalar", "loop"),
    ("loop", "task"),
    ("gather", "store"),
)
_PAIRS = tuple((FEATURES.index(one), FEATURES.index(other)) for one, other in _RATIOS)
# The correction never goes further than this factor, either way.
FURTHEST = 4.0


def tree_inputs(features: StepFeatures, factors: Row, kinds: Sequence[str]) -> Row:
    """Return what trees decide by.

    Args:
        features: of a kernel call.
        factors: the cost of one of each of `FEATURES`, for its kind.
        kinds: those that are told apart.
    """
    parts = factors * features.row
    total = max(float(parts.sum()), 1e-9)
    logs = np.log1p(features.row)
    ratios = [logs[one] - logs[other] for one, other in _PAIRS]
    which = [float(features.kind == kind) for kind in kinds]
    context = np.log1p(features.context)
    return np.concatenate(
        [[np.log(total), float(features.counted)], parts / total, logs, ratios, context, which]
    )


class Trees(BaseModel):
    """Trees are decisions whose leaves add up to the logarithm of a correction.

    Each tree is complete: decision n leads to n * 2 + 1, or to n * 2 + 2 where the input is at
    least the bound; those of the last level lead to leaves.

    Attributes:
        kinds: kernels that are told apart.
        depth: decisions from the root to a leaf.
        inputs: which input each decision asks for [trees, decisions].
        bounds: what it is compared with [trees, decisions].
        leaves: what they add [trees, leaves].
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: tuple[str, ...]
    depth: int
    inputs: list[list[int]]
    bounds: list[list[float]]
    leaves: list[list[float]]

    @cached_property
    def _arrays(self) -> tuple[NDArray[np.int64], Row, Row]:
        return (
            np.array(self.inputs, np.int64),
            np.array(self.bounds, np.float64),
            np.array(self.leaves, np.float64),
        )

    def factor(self, features: StepFeatures, factors: Row) -> float:
        """Return what the sum of factors is multiplied by."""
        given = tree_inputs(features, factors, self.kinds)
        inputs, bounds, leaves = self._arrays
        trees = np.arange(len(inputs))
        place = np.zeros(len(inputs), np.int64)
        for _ in range(self.depth):
            place = 2 * place + 1 + (given[inputs[trees, place]] >= bounds[trees, place])
        total = float(leaves[trees, place - (2**self.depth - 1)].sum())
        return float(np.exp(np.clip(total, -np.log(FURTHEST), np.log(FURTHEST))))
