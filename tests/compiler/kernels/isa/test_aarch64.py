"""What instructions of Arm with dot products make of int8 is what NumPy computes: bit by bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.emulated_runs import run_case
from support.integer_graphs import Code, ConvCase

from edgec.targets import load_target

RPI5 = load_target("rpi5")
# One task of many tiles, whose last one overlaps: 4 x 31 pixels.
BROAD = ConvCase([1, 18, 4, 31], [11, 18, 1, 1], largest=127)
DEPTHWISE = ConvCase(
    [1, 6, 7, 33], [6, 1, 5, 5], groups=6, attributes={"padding": (2, 2, 2, 2)}, largest=127
)
CASES = {
    "no zero point is added": replace(BROAD, relu=True, result=Code("uint8", 0.02, 0)),
    "hard swish, near": replace(BROAD, swish=True, result=Code("uint8", 0.03, 20)),
    "hard swish, far and raised": replace(BROAD, swish=True, result=Code("uint8", 0.003, 90)),
    "SiLU": replace(BROAD, silu=True, result=Code("uint8", 0.03, 20)),
    "depthwise, hard swish": replace(DEPTHWISE, swish=True, result=Code("uint8", 0.03, 20)),
    "depthwise, three lines": replace(DEPTHWISE, shape=[1, 6, 3, 33]),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_integers(name: str, tmp_path: Path) -> None:
    """The negative control: with weights that differ in one, it does not."""
    case = CASES[name].signed()
    template = "integer_depthwise" if case.groups > 1 else "integer_conv"
    found, expected = run_case(case, RPI5, template, None, tmp_path), case.expected()
    assert len(np.unique(expected)) > 100
    np.testing.assert_array_equal(found, expected)
    other = replace(case, largest=case.largest - 1)
    assert not np.array_equal(found, other.expected())
