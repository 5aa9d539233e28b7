"""What the model says of Winograd's algorithm, without any code."""

from typing import Any

import pytest
from support.conv_workloads import conv_workload as workload

from edgec.compiler.kernels.conv.cost import default_decision
from edgec.compiler.kernels.conv.winograd_decision import (
    STACK_BYTES,
    WinogradDecision,
    suits_winograd,
    winograd_space,
)
from edgec.compiler.kernels.template import from_text, to_text
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.targets import load_target


@pytest.mark.parametrize(
    "changes",
    [
        {"kernel": (5, 5)},
        {"stride": (2, 2)},
        {"dilation": (2, 2)},
        {"groups": 2},
        {"plain_input": True},
        {"out_step": (2, 2), "full_out": (112, 112)},
    ],
)
def test_other_convolutions_are_left(changes: dict[str, Any]) -> None:
    assert suits_winograd(workload())
    assert not suits_winograd(workload(**changes))
    assert winograd_space(workload(**changes), load_target("x86-64-v3")) == []


def test_model_prefers_it_for_many_tiles_only() -> None:
    target = load_target("x86-64-v4")
    assert isinstance(default_decision(workload(), target), WinogradDecision)
    # A few tiles do not pay for reading 16 / 9 of the weights.
    small = workload(in_channels=512, out_channels=512, in_h=3, in_w=3, out_h=3, out_w=3)
    assert not isinstance(default_decision(small, target), WinogradDecision)


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "rpi4"])
def test_larger_tiles_are_the_default(target: str) -> None:
    machine = load_target(target)
    default = default_decision(workload(), machine)
    assert isinstance(default, WinogradDecision)
    assert default.out == 4
    smaller = default_decision(workload(), machine, tile_sizes=(2,))
    assert isinstance(smaller, WinogradDecision)
    assert smaller.out == 2

    def estimate(decision: Any) -> float:
        return TEMPLATES["edgec.conv"].estimate(workload(), decision, machine)

    assert estimate(default) < 0.9 * estimate(smaller)


def test_cores_share_the_output_channels_of_few_tiles() -> None:
    machine = load_target("rpi4")
    few = workload(in_channels=512, out_channels=512, in_h=14, in_w=14, out_h=14, out_w=14)
    assert default_decision(few, machine).splits == machine.cores
    assert {decision.splits for decision in winograd_space(workload(in_h=224, out_h=224), machine)}
    alone = machine.model_copy(update={"cores": 1})
    assert {decision.splits for decision in winograd_space(few, alone)} == {1}


def test_what_a_task_holds_fits_a_stack() -> None:
    """Patches of hundreds of channels and many tiles may exceed the second-level cache, not it."""
    deep = workload(in_channels=512, out_channels=512)
    space = winograd_space(deep, load_target("x86-64-v3"))
    held = [4 * d.positions * d.register_tiles * d.repeats * 512 for d in space]
    assert load_target("x86-64-v3").l2_kib * 1024 < max(held) <= STACK_BYTES


def test_records_from_before_there_was_a_choice() -> None:
    text = '{"register_tiles":4,"vectors":1,"repeats":1}'
    assert from_text(WinogradDecision, text) == WinogradDecision(4, 1, 1, out=2)
    assert "splits" not in to_text(WinogradDecision(4, 1, 1))
