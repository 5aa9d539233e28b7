"""3x3 convolutions by Winograd's algorithm: borders, odd extents, blocks that are not full."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_runs import X86_TARGETS, Branch, check_branches
from onnx_graphs import node, random

from edgec.compiler.kernels.conv import default_decision
from edgec.compiler.kernels.conv_workload import ConvWorkload
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.kernels.winograd import (
    WinogradDecision,
    pack_winograd,
    suits_winograd,
    winograd_space,
)
from edgec.targets import Target, load_target


def conv(shape: Sequence[int], out_channels: int, *then: Any, **attributes: Any) -> Branch:
    name = "c" if then else "y"
    nodes = [node("Conv", ["x", "w", "b"], [name], **attributes), *then]
    weights = {"w": random(out_channels, shape[1], 3, 3, seed=7), "b": random(out_channels, seed=8)}
    return Branch(nodes, {"x": shape}, ["conv"], weights)


BRANCHES = {
    "even": conv([1, 32, 12, 10], 32, pads=[1] * 4),
    "odd rows and columns": conv([2, 21, 9, 11], 37, pads=[1] * 4),
    "no padding": conv([1, 17, 8, 9], 5),
    "pads on one side": conv([1, 18, 7, 9], 19, pads=[1, 0, 2, 3]),
    "pads beyond the window": conv([1, 9, 5, 6], 16, pads=[4, 3, 5, 4]),
    "smaller than a patch": conv([1, 24, 2, 3], 40, pads=[1] * 4),
    "one line": conv([1, 8, 1, 30], 8, pads=[1, 1, 1, 1]),
    "activation": conv([1, 20, 7, 7], 33, node("Relu", ["c"], ["y"]), pads=[1] * 4),
}


def winograd_only(seed: int) -> Any:
    """Any decision for Winograd's algorithm where it applies, the default elsewhere."""
    generator = np.random.default_rng(seed)

    def decide(operator: str, workload: Any, target: Target) -> Any:
        template = TEMPLATES[operator]
        space = [d for d in template.space(workload, target) if isinstance(d, WinogradDecision)]
        if not space:
            return template.default(workload, target)
        return space[int(generator.integers(len(space)))]

    return decide


@pytest.mark.parametrize("target", X86_TARGETS)
@pytest.mark.parametrize("seed", range(2))
def test_against_onnx_runtime(target: str, seed: int, tmp_path: Path) -> None:
    check_branches(BRANCHES, target, tmp_path, winograd_only(seed))


def workload(**changes: Any) -> ConvWorkload:
    fields: dict[str, Any] = {
        "batch": 1,
        "in_channels": 64,
        "in_h": 56,
        "in_w": 56,
        "out_channels": 64,
        "out_h": 56,
        "out_w": 56,
        "kernel": (3, 3),
        "padding": (1, 1),
    }
    return ConvWorkload(**{**fields, **changes})


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
    small = workload(in_channels=512, out_channels=512, in_h=7, in_w=7, out_h=7, out_w=7)
    assert not isinstance(default_decision(small, target), WinogradDecision)


def test_weights_of_a_constant_window() -> None:
    """G g G' of all ones: the sums of the rows of G, multiplied with each other."""
    decision = WinogradDecision(register_tiles=4, vectors=1, repeats=1)
    packed = pack_winograd(workload(), decision, np.ones((64, 64, 3, 3), np.float32), 16)
    assert packed.shape == (4, 16, 64, 16)
    sums = np.array([1, 1.5, 0.5, 1])
    np.testing.assert_array_equal(packed[0, :, 0, 0], np.outer(sums, sums).ravel())
