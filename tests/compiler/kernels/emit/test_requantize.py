"""Sums to quantized values in 16 bits: how near to real numbers, and what decides that."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.integer_graphs import Code, ConvCase, open_module

from edgec.compiler.kernels.emit.epilogue import EpilogueStep
from edgec.compiler.kernels.emit.fixed_point import (
    LEAST_FRACTION,
    requantization,
    swished_requantization,
)
from edgec.compiler.kernels.emit.requantize import Requantization
from edgec.compiler.lowering.pack.requantize import GATES
from edgec.compiler.runtime.session import why_not_here
from edgec.targets import load_target

CONV = ConvCase([1, 40, 9, 11], [37, 40, 3, 3], attributes={"padding": (1, 1, 1, 1)}, largest=63)
SILU = replace(CONV, result=Code("uint8", 0.03, 10), silu=True)
SWISH = replace(CONV, result=Code("uint8", 0.03, 20), swish=True)


@pytest.mark.parametrize(
    "case",
    [
        CONV,
        replace(CONV, result=Code("uint8", 0.001, 255)),
        replace(CONV, relu=True),
        SILU,
        replace(SILU, result=Code("uint8", 0.009, 31)),
        replace(SILU, result=Code("uint8", 0.2, 2)),
        SWISH,
        replace(SWISH, result=Code("uint8", 0.012, 31)),
        replace(SWISH, result=Code("uint8", 0.12, 3)),
        replace(CONV, affine=(1.5, -0.77)),
        replace(SILU, affine=(0.8, 0.013)),
        replace(SWISH, affine=(1.37, -0.41)),
        replace(SWISH, affine=(0.07, 0.6), result=Code("uint8", 0.006, 3)),
    ],
)
def test_codes_are_those_of_real_numbers(case: ConvCase) -> None:
    """Off by less than `fixed_point` states, before both are rounded."""
    plan = case.fixed_point()
    assert plan is not None
    assert (plan.gate is not None) == (case.swish or case.silu)
    limits = np.iinfo(case.result.dtype)
    exact = np.clip(case.exact() + case.result.zero_point, limits.min, limits.max)
    error = np.abs(case.expected() - exact)
    slack = 2.0 ** (1 + case.swish - plan.fraction) + case.silu * 255 / 2**11
    assert error.max() < 0.5 + slack
    assert error.max() > 0.4
    # As many are rounded the other way as the slack says, on average less than half of it.
    assert np.mean(case.expected() != np.rint(exact)) < slack


def test_channels_have_shifts_of_their_own() -> None:
    """Scales 2000 times apart; with one shift for all no fraction would be left."""
    scales = np.float32([1e-6, 2e-3])
    plan = swished_requantization(scales, np.array([10**8, 5 * 10**4]), 0.02, 127)
    assert plan is not None
    assert plan.shifts[0] - plan.shifts[1] > 9
    assert plan.fraction > LEAST_FRACTION
    assert plan.multipliers.min() >= 2**12


def test_padded_channels_change_nothing() -> None:
    """Targets of 4 and of 16 lanes pad differently, and give the same."""
    scales, reach = np.float32([1e-5]), np.array([1e7])
    for plan in GATES.values():
        found = [
            (plan or requantization)(np.pad(scales, (0, more)), np.pad(reach, (0, more)), *args)
            for more in (0, 3)
            for args in [(0.05, 127) if plan else (128,)]
        ]
        assert None not in found
        assert found[0].fraction == found[1].fraction
        assert found[0].multipliers == found[1].multipliers[:1]
        assert found[0].shifts == found[1].shifts[:1]


def test_sums_and_the_half_for_rounding_fit_32_bits() -> None:
    """Shifted by 16 bits, a sum gets 2**15."""
    fits, beyond = np.array([2.0**31 - 2**15 - 1]), np.array([2.0**31 - 2**15])
    assert requantization(np.array([1e-8]), fits, 8) is not None
    assert requantization(np.array([1e-8]), beyond, 8) is None


def test_a_zero_point_and_the_half_for_rounding_fit_16_bits() -> None:
    """A number that is added moves the zero point to where uint8 results turned from 255 to 0."""
    plan = Requantization(7, np.int16([1]), np.int16([0]))
    assert plan.holds(255.49)
    assert not plan.holds(255.6)
    assert plan.operand(255.49, 0, 255)[2] + 64 <= 2**15 - 1


def test_a_scale_finer_than_sums_stays_float() -> None:
    assert swished_requantization(np.float32([1.0]), np.array([10]), 1e-9, 127) is None
    assert requantization(np.float32([20.0]), np.array([10]), 128) is None


@pytest.mark.parametrize(("apart", "same"), [(1.5, True), (100, False)])
def test_one_shift_where_it_leaves_enough_digits(apart: float, same: bool) -> None:
    factors = np.array([0.01, 0.01 / apart])
    plan = requantization(factors, np.array([10**6, 10**6]), 128)
    assert plan is not None
    assert (plan.shifts[0] == plan.shifts[1]) == same
    assert plan.fraction >= 6


def test_a_channel_that_reaches_little_needs_no_shift_of_its_own() -> None:
    plan = requantization(np.array([0.01, 0.0001]), np.array([10**6, 10**4]), 128)
    assert plan is not None
    assert plan.shifts[0] == plan.shifts[1]


TARGETS = [name for name in ("x86-64-v3", "x86-64-v4") if not why_not_here(load_target(name))]


@pytest.mark.parametrize("target", TARGETS)
def test_a_multiplier_that_is_off_shows(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison with integers sees one part in 300 of a scale."""
    machine = load_target(target)
    x, expected = {"x": SWISH.arrays()[0]}, SWISH.expected()
    (tmp_path / "right").mkdir()
    built = open_module(SWISH.module(), machine, tmp_path / "right")
    np.testing.assert_array_equal(built.run(x)["y"], expected)
    plan = swished_requantization

    def off(scales: np.ndarray, *others: Any, **named: Any) -> Requantization | None:
        return plan(scales * 1.003, *others, **named)

    monkeypatch.setitem(GATES, (EpilogueStep("hard_swish"),), off)
    (tmp_path / "off").mkdir()
    wrong = open_module(SWISH.module(), machine, tmp_path / "off")
    assert not np.array_equal(wrong.run(x)["y"], expected)
