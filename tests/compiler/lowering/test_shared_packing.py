"""Weights that one program has packed serve the next, where that costs little."""

from dataclasses import replace

import numpy as np
import pytest

from edgec.compiler.kernels.template import Template
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.shared_packing import SharedPacking
from edgec.targets import load_target

DENSE = TEMPLATES["edgec.conv"]
WEIGHT = np.arange(8, dtype=np.float32)


def template(costs: dict[int, float]) -> Template:
    """A kernel whose decisions are numbers of columns that it reads together."""
    return replace(
        DENSE,
        space=lambda _w, _t: list(costs),
        estimate=lambda _w, decision, _t: costs[decision],
        pack=lambda _w, decision, _t, _p, array: array.reshape(decision, -1).T.copy(),
    )


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ({1: 100.0, 2: 119.0, 4: 130.0}, 2),
        ({1: 100.0, 2: 121.0, 4: 130.0}, 1),
    ],
)
def test_a_little_slower_for_weights_that_are_there(costs: dict[int, float], expected: int) -> None:
    sharing, target = SharedPacking(), load_target("rpi4")
    assert sharing.decision(template(costs), None, 2, target, WEIGHT) == 2
    assert sharing.decision(template(costs), None, 1, target, WEIGHT) == expected
    # Other weights are packed as suits them.
    assert sharing.decision(template(costs), None, 1, target, 2 * WEIGHT) == 1
