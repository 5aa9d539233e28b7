"""Convolutions of quantized values by Winograd's algorithm: every bit is that of the direct sum."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.emulated_runs import run_emulated
from support.integer_graphs import Array, Code, ConvCase, build_module

from edgec.compiler.kernels.conv import integer_template
from edgec.compiler.kernels.conv.decision import ConvDecision
from edgec.compiler.kernels.conv.integer import IntegerConvWorkload
from edgec.compiler.kernels.conv.integer_winograd_decision import (
    IntegerWinogradDecision,
    fits_integer_winograd,
    integer_winograd_space,
)
from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.kernels.template import from_text, to_text
from edgec.compiler.lowering.schedule import default_decide
from edgec.targets import Target, load_target

RPI4 = load_target("rpi4")
PADDED = {"padding": (1, 1, 1, 1)}
# Odd blocks of channels, images that are no whole tiles, several tasks; epilogues of both kinds.
CASES = {
    "odd blocks": (
        ConvCase([2, 20, 9, 11], [21, 20, 3, 3], attributes=PADDED, largest=127),
        IntegerWinogradDecision(2, 3, 2),
    ),
    "uneven padding, in floats": (
        ConvCase(
            [1, 9, 4, 5],
            [13, 9, 3, 3],
            attributes={"padding": (1, 2, 1, 1)},
            relu=True,
            swish=True,
        ),
        IntegerWinogradDecision(1, 2, 1, 2),
    ),
    "no padding, SiLU": (
        ConvCase([1, 16, 12, 9], [16, 16, 3, 3], result=Code("uint8", 0.03, 20), silu=True),
        IntegerWinogradDecision(3, 4, 1),
    ),
}


def run(case: ConvCase, decision: IntegerWinogradDecision | None, folder: Path) -> Array:
    """Run it under QEMU."""

    def decide(operator: str, workload: Any, target: Target) -> Any:
        own = decision is not None and operator == "edgec.integer_conv"
        return decision if own else default_decide(operator, workload, target)

    library = folder / "model.so"
    program, signature = build_module(case.module(), RPI4, library, decide)
    assert [step.template for step in program.steps if step.template != "pack"] == ["integer_conv"]
    return run_emulated(library, RPI4, signature, {"x": case.arrays()[0]})["y"]


@pytest.mark.parametrize("name", CASES)
def test_equals_integers(name: str, tmp_path: Path) -> None:
    case, decision = CASES[name]
    case = case.signed()
    expected = case.expected(floats=case.relu)
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(run(case, decision, tmp_path), expected)


def test_sums_that_do_not_fit_are_added_directly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forced, the result is wrong."""
    case = ConvCase(
        [1, 240, 4, 4],
        [4, 240, 3, 3],
        result=Code("uint8", 3.0, 128),
        attributes=PADDED,
        largest=127,
        extreme=True,
    ).signed()
    decision = IntegerWinogradDecision(1, 1, 1)
    np.testing.assert_array_equal(run(case, decision, tmp_path), case.expected())
    monkeypatch.setattr(integer_template, "fits_integer_winograd", lambda *_: True)
    assert not np.array_equal(run(case, decision, tmp_path), case.expected())


@pytest.mark.parametrize(
    ("count", "dtype", "fits"),
    [
        (262143, "int8", True),
        (262144, "int8", False),
        (131586, "uint8", True),
        (131587, "uint8", False),
    ],
)
def test_fits_is_the_exact_bound(count: int, dtype: str, fits: bool) -> None:
    weight = np.ones((2, count, 1, 1), np.int8)
    weight[0, ::2] = -1
    assert fits_integer_winograd(weight, dtype) == fits


def test_is_for_processors_without_dot_products() -> None:
    conv = ConvWorkload(1, 64, 28, 28, 64, 28, 28, (3, 3), padding=(1, 1))
    template, workload = integer_template.TEMPLATE, IntegerConvWorkload(conv, 3)
    decision = template.default(workload, RPI4)
    assert isinstance(decision, IntegerWinogradDecision)
    assert from_text(template.decision, to_text(decision)) == decision
    assert isinstance(template.default(workload, load_target("rpi5")), ConvDecision)
    for other in (replace(conv, stride=(2, 2), out_h=14, out_w=14), replace(conv, kernel=(5, 5))):
        assert integer_winograd_space(other, RPI4) == []
