"""Boosted trees: which way a decision leads, what leaves add up to, and how far they go."""

import numpy as np
import pytest

from edgec.compiler.predict.features import CONTEXT, FEATURES, StepFeatures
from edgec.compiler.predict.trees import FURTHEST, Trees, tree_inputs

FACTORS = np.ones(len(FEATURES))


def features(kind: str = "conv", **values: float) -> StepFeatures:
    row = np.array([values.get(name, 0.0) for name in FEATURES])
    return StepFeatures(kind, row, True, 0.0, np.ones(len(CONTEXT)))


def trees(*leaves: float) -> Trees:
    """Return a tree that asks whether the sum is at least 10, then whether it is a convolution."""
    last = len(tree_inputs(features(), FACTORS, ("conv",))) - 1
    return Trees(
        kinds=("conv",),
        depth=2,
        inputs=[[0, last, last]],
        bounds=[[float(np.log(10)), 0.5, 0.5]],
        leaves=[list(leaves)],
    )


def test_leaves_are_reached_by_decisions() -> None:
    tree = trees(0.1, 0.2, 0.3, 0.4)
    for kind, calls, leaf in (("pool", 5, 0.1), ("conv", 5, 0.2), ("pool", 10, 0.3)):
        found = tree.factor(features(kind, call=calls), FACTORS)
        assert found == pytest.approx(np.exp(leaf))
    twice = {name: getattr(tree, name) * 2 for name in ("inputs", "bounds", "leaves")}
    both = Trees(kinds=tree.kinds, depth=tree.depth, **twice)
    assert both.factor(features(call=99), FACTORS) == pytest.approx(np.exp(0.8))


def test_a_correction_has_its_bounds() -> None:
    assert trees(9, 9, 9, 9).factor(features(call=5), FACTORS) == pytest.approx(FURTHEST)
    assert trees(-9, -9, -9, -9).factor(features(call=5), FACTORS) == pytest.approx(1 / FURTHEST)
