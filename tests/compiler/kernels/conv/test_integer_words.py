"""Convolutions of few channels and depthwise ones by products of int16: every bit as before."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.emulated_runs import run_case
from support.integer_graphs import Code, ConvCase

from edgec.compiler.kernels.conv import integer_dense, integer_depthwise
from edgec.compiler.kernels.conv.decision import ConvDecision
from edgec.compiler.kernels.conv.depthwise_writer import (
    DepthwiseDecision,
    IntegerDepthwiseWorkload,
)
from edgec.compiler.kernels.conv.integer import IntegerConvWorkload
from edgec.compiler.kernels.conv.integer_words import WordsDecision, words_space
from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.kernels.template import from_text, to_text
from edgec.targets import load_target

RPI4 = load_target("rpi4")
FIRST = ConvWorkload(1, 3, 32, 32, 16, 16, 16, (3, 3), (2, 2), padding=(1, 1))
DEPTHWISE = ConvWorkload(1, 16, 28, 28, 16, 28, 28, (5, 5), padding=(2, 2), groups=16)
CASES: dict[str, tuple[ConvCase, Any]] = {
    "three channels, several lines": (
        ConvCase(
            [2, 3, 9, 8],
            [9, 3, 5, 5],
            attributes={"strides": (2, 2), "padding": (2, 2, 2, 2)},
            largest=127,
        ),
        WordsDecision(ConvDecision(3, 4, 1)),
    ),
    "one channel, one column": (
        ConvCase([1, 1, 5, 3], [13, 1, 3, 3], attributes={"padding": (1, 1, 1, 1)}, relu=True),
        WordsDecision(ConvDecision(1, 1, 4, rows_first=False)),
    ),
    "depthwise, strided, several parts": (
        ConvCase(
            [1, 6, 11, 9],
            [6, 1, 5, 5],
            groups=6,
            attributes={"strides": (2, 2), "padding": (2, 2, 2, 2)},
            largest=127,
        ),
        DepthwiseDecision(4, 2, 2, words=True),
    ),
    "depthwise, uneven padding, SiLU": (
        ConvCase(
            [2, 4, 7, 6],
            [4, 1, 3, 5],
            groups=4,
            attributes={"padding": (0, 3, 1, 2)},
            result=Code("uint8", 0.03, 20),
            silu=True,
        ),
        DepthwiseDecision(6, 1, 3, words=True),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_integers(name: str, tmp_path: Path) -> None:
    """The negative control: with weights that differ in one, it does not."""
    case, decision = CASES[name]
    case = case.signed()
    template = "integer_depthwise" if case.groups > 1 else "integer_conv"
    found, expected = run_case(case, RPI4, template, decision, tmp_path), case.expected()
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(found, expected)
    other = replace(case, largest=case.largest - 1)
    assert not np.array_equal(found, other.expected())


def test_is_for_processors_without_dot_products() -> None:
    template, few = integer_dense.TEMPLATE, IntegerConvWorkload(replace(FIRST, in_channels=1), 3)
    decision = template.default(few, RPI4)
    assert isinstance(decision, WordsDecision)
    assert from_text(template.decision, to_text(decision)) == decision
    assert not any(isinstance(d, WordsDecision) for d in template.space(few, load_target("rpi5")))
    assert words_space(IntegerConvWorkload(replace(FIRST, in_channels=4), 3), RPI4) == []
    depthwise = IntegerDepthwiseWorkload(DEPTHWISE, 3)
    for name, words in (("rpi4", True), ("rpi5", False)):
        chosen = integer_depthwise.TEMPLATE.default(depthwise, load_target(name))
        assert chosen.words == words
        assert from_text(DepthwiseDecision, to_text(chosen)) == chosen
