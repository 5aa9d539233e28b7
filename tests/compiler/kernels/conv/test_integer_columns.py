"""Convolutions of few channels by columns: bit-identical to NumPy integers, like all others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.emulated_runs import run_case
from support.integer_graphs import Code, ConvCase, open_module

from edgec.compiler.kernels.conv import integer_dense
from edgec.compiler.kernels.conv.decision import ConvDecision
from edgec.compiler.kernels.conv.integer import IntegerConvWorkload
from edgec.compiler.kernels.conv.integer_columns import (
    ColumnsDecision,
    columns_space,
    two_parts,
    with_units_again,
)
from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.kernels.isa import dot_of
from edgec.compiler.kernels.template import from_text, to_text
from edgec.compiler.lowering.schedule import default_decide
from edgec.compiler.runtime.session import why_not_here
from edgec.targets import load_target

NAMES = ("x86-64-v4-vnni", "x86-64-v4", "x86-64-v3")
HERE = [name for name in NAMES if not why_not_here(load_target(name))]
FIRST = ConvWorkload(1, 3, 32, 32, 16, 16, 16, (3, 3), (2, 2), padding=(1, 1))
CASES = {
    "three channels, odd": ConvCase(
        [2, 3, 15, 17],
        [19, 3, 5, 3],
        attributes={"strides": (2, 2), "padding": (2, 1, 1, 2)},
        largest=11,
    ),
    "one channel, padding beyond the window": ConvCase(
        [1, 1, 5, 6], [9, 1, 3, 3], attributes={"padding": (4, 3, 5, 4)}, relu=True, largest=20
    ),
    "two channels, no padding, SiLU": ConvCase(
        [1, 2, 9, 23],
        [18, 2, 3, 4],
        attributes={"strides": (1, 3)},
        result=Code("uint8", 0.03, 20),
        silu=True,
        largest=15,
    ),
}


PLAN = ConvDecision(1, 2, 2, rows_first=False, segment=2)


def decided(case: ConvCase, target: str, plan: ConvDecision, folder: Path) -> tuple[Any, Any]:
    """Run it by columns; returns the result, and the decision by the weights."""

    def decide(operator: str, workload: Any, machine: Any) -> Any:
        if operator == "edgec.integer_conv":
            return ColumnsDecision(plan)
        return default_decide(operator, workload, machine)

    built = open_module(case.module(), load_target(target), folder, decide)
    step = next(step for step in built.program.steps if step.template == "integer_conv")
    found = from_text(integer_dense.TEMPLATE.decision, step.decision)
    assert isinstance(found, ColumnsDecision)
    return built.run({"x": case.arrays()[0]})["y"], found


@pytest.mark.parametrize("name", CASES)
def test_equals_integers(name: str, tmp_path: Path) -> None:
    """The negative control: with weights that differ, it does not."""
    case = CASES[name]
    found, decision = decided(case, HERE[-1], PLAN, tmp_path)
    expected = case.expected()
    assert decision.again == ()
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(found, expected)
    other = replace(case, largest=case.largest - 1)
    assert not np.array_equal(found, other.expected())


@pytest.mark.parametrize("target", ["rpi5", "rpi4"])
def test_equals_integers_on_arm(target: str, tmp_path: Path) -> None:
    case = CASES["three channels, odd"].signed()
    decision = ColumnsDecision(ConvDecision(1, 3, 2, rows_first=False, segment=9))
    found = run_case(case, load_target(target), "integer_conv", decision, tmp_path)
    np.testing.assert_array_equal(found, case.expected())


def test_what_would_saturate_is_multiplied_in_two_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second part left out, it is wrong."""
    case = replace(CASES["three channels, odd"], largest=127, extreme=True)
    case = replace(case, result=Code("uint8", 3.0, 128))
    # Whatever it costs.
    monkeypatch.setattr(integer_dense, "_estimate", lambda _w, way, _t: type(way) is ConvDecision)
    for again in (True, False):
        folder = tmp_path / str(again)
        folder.mkdir()
        if not again:
            monkeypatch.setattr(integer_dense, "with_units_again", lambda way, *_: way)
        found, decision = decided(case, "x86-64-v3", PLAN, folder)
        assert bool(decision.again) == again
        assert np.array_equal(found, case.expected()) == again


@pytest.mark.parametrize("name", ["x86-64-v3", "rpi4"])
def test_parts_are_exact(name: str) -> None:
    target, random = load_target(name), np.random.default_rng(0)
    weight = random.integers(-128, 128, (40, 3, 3, 3), np.int8)
    weight[:2] = -128
    dot = dot_of(target)
    assert dot is not None
    again = with_units_again(ColumnsDecision(ConvDecision(1, 2, 3)), weight, target)
    assert again.again
    for before in (0, 1):
        parts = two_parts(weight, before, target)
        largest = int(np.iinfo(dot.data).max)
        assert all(dot.cannot_saturate(part.reshape(40, -1), 1, 1, largest) for part in parts)
        whole = sum(part.astype(int).reshape(40, -1)[:, before : before + 27] for part in parts)
        assert np.array_equal(whole, weight.transpose(0, 3, 2, 1).reshape(40, -1))


def test_zeros_in_front_make_other_pairs() -> None:
    weight = np.zeros((8, 1, 3, 3), np.int8)
    weight[0, 0, :2, 0] = 100
    found = with_units_again(
        ColumnsDecision(ConvDecision(1, 2, 1)), weight, load_target("x86-64-v3")
    )
    assert (found.before, found.again) == (1, ())


def test_is_for_few_channels() -> None:
    template, workload = integer_dense.TEMPLATE, IntegerConvWorkload(FIRST, 3)
    for name in ("x86-64-v3", "rpi5", "rpi4"):
        decision = template.default(workload, load_target(name))
        assert isinstance(decision, ColumnsDecision)
        assert from_text(template.decision, to_text(decision)) == decision
    for other in ({"in_channels": 4}, {"kernel": (1, 1)}, {"dilation": (1, 2)}):
        conv = replace(FIRST, **other)
        assert columns_space(IntegerConvWorkload(conv, 3), load_target("x86-64-v3")) == []


def test_columns_of_a_long_line_are_cut_so_that_they_stay_near() -> None:
    conv = replace(FIRST, in_w=4096, out_w=2048)
    target = load_target("x86-64-v3")
    for decision in columns_space(IntegerConvWorkload(conv, 3), target):
        read = 2 * decision.columns.segment * decision.columns.tile_w + 1
        assert 9 * read <= target.l1d_kib * 1024 // 2
