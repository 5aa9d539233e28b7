"""Convolutions of quantized values by Winograd's algorithm: every bit is that of the direct sum."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.emulated_runs import run_case
from support.integer_graphs import Code, ConvCase

from edgec.compiler.kernels.conv import integer_dense
from edgec.compiler.kernels.conv.decision import ConvDecision
from edgec.compiler.kernels.conv.integer import IntegerConvWorkload
from edgec.compiler.kernels.conv.lane_winograd_decision import (
    LaneWinogradDecision,
    lane_winograd_space,
    parts_needed,
)
from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.kernels.template import from_text, to_text
from edgec.targets import load_target

RPI4 = load_target("rpi4")
PADDED = {"padding": (1, 1, 1, 1)}
# Odd blocks of channels, images that are no whole tiles, several tasks; epilogues of both kinds.
CASES = {
    "odd blocks, SiLU": (
        ConvCase(
            [2, 20, 9, 11],
            [21, 20, 3, 3],
            attributes=PADDED,
            largest=127,
            result=Code("uint8", 0.03, 20),
            silu=True,
        ),
        LaneWinogradDecision(2, 3, 2),
    ),
    "uneven padding, in floats": (
        ConvCase(
            [1, 9, 4, 5],
            [13, 9, 3, 3],
            attributes={"padding": (1, 2, 1, 1)},
            relu=True,
            swish=True,
        ),
        LaneWinogradDecision(1, 2, 1, 2),
    ),
}
# Its accumulators reach 35 million.
EXTREME = ConvCase(
    [1, 240, 4, 4],
    [4, 240, 3, 3],
    attributes=PADDED,
    result=Code("uint8", 300.0, 128),
    largest=127,
    extreme=True,
)


@pytest.mark.parametrize("name", CASES)
def test_equals_integers(name: str, tmp_path: Path) -> None:
    case, decision = CASES[name]
    case = case.signed()
    expected = case.expected(floats=case.relu)
    assert len(np.unique(expected)) > 2
    found = run_case(case, RPI4, "integer_conv", decision, tmp_path)
    np.testing.assert_array_equal(found, expected)


def test_sums_that_do_not_fit_are_added_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one part, the result is wrong."""
    case, decision = EXTREME.signed(), LaneWinogradDecision(1, 1, 1)
    assert parts_needed(case.arrays()[1], "int8") == 2
    right = run_case(case, RPI4, "integer_conv", decision, tmp_path)
    np.testing.assert_array_equal(right, case.expected())
    monkeypatch.setattr(integer_dense, "parts_needed", lambda *_: 1)
    forced = run_case(case, RPI4, "integer_conv", decision, tmp_path)
    assert not np.array_equal(forced, case.expected())


@pytest.mark.parametrize(
    ("largest", "dtype", "parts"),
    [(127, "int8", 1), (128, "int8", 2), (64, "uint8", 1), (65, "uint8", 2), (1000, "int8", None)],
)
def test_parts_are_by_the_exact_bound(largest: int, dtype: str, parts: int | None) -> None:
    """2048 weights of 127 and 128, 2**18 and 2**25 / 255: 131,586."""
    weight = np.zeros((2, 2048, 1, 1), np.int16)
    weight[0, ::2], weight[0, 1::2] = largest, -largest
    assert parts_needed(weight, dtype) == parts  # type: ignore[arg-type]


def test_is_for_processors_without_dot_products() -> None:
    conv = ConvWorkload(1, 64, 28, 28, 64, 28, 28, (3, 3), padding=(1, 1))
    template, workload = integer_dense.TEMPLATE, IntegerConvWorkload(conv, 3)
    decision = template.default(workload, RPI4)
    assert isinstance(decision, LaneWinogradDecision)
    assert from_text(template.decision, to_text(decision)) == decision
    assert isinstance(template.default(workload, load_target("rpi5")), ConvDecision)
    for other in (replace(conv, stride=(2, 2), out_h=14, out_w=14), replace(conv, kernel=(5, 5))):
        assert lane_winograd_space(other, RPI4) == []
