"""ConvTransposeAsConv: where it applies, and the numbers."""

from pathlib import Path
from typing import Any

import pytest
from support.kernel_runs import Branch, check_branches
from support.onnx_graphs import make_model, node, operators, random, to_relax

from edgec.compiler.passes import ConvTransposeAsConv


def spread(out_channels: int, window: int, **attributes: Any) -> Branch:
    attributes.setdefault("strides", [window, window])
    nodes = [node("ConvTranspose", ["x", "w", "b"], ["y"], **attributes)]
    weights = {"w": random(24, out_channels, window, window), "b": random(out_channels, seed=1)}
    return Branch(nodes, {"x": (2, 24, 5, 7)}, [], weights)


def rewritten(branch: Branch) -> dict[str, int]:
    model = make_model(branch.nodes, branch.inputs, ["y"], branch.weights)
    return dict(operators(ConvTransposeAsConv()(to_relax(model))))


@pytest.mark.parametrize(("out_channels", "window"), [(1, 2), (3, 2), (1, 4), (4, 2)])
def test_becomes_a_convolution(out_channels: int, window: int) -> None:
    found = rewritten(spread(out_channels, window))
    assert found["conv2d"] == 1
    assert "conv2d_transpose" not in found


@pytest.mark.parametrize(
    "branch",
    [
        spread(5, 2),  # more channels than a vector
        spread(1, 3, strides=[2, 2]),  # windows overlap
        spread(1, 2, strides=[3, 3], output_padding=[1, 1]),  # gaps
        spread(1, 2, pads=[1, 0, 0, 0]),
    ],
    ids=["channels", "overlap", "gaps", "pads"],
)
def test_is_left(branch: Branch) -> None:
    assert rewritten(branch)["conv2d_transpose"] == 1


def test_numbers(tmp_path: Path) -> None:
    cases = {f"{o} channels, {k}x{k}": spread(o, k) for o, k in [(1, 2), (3, 2), (1, 4)]}
    # One convolution, the move of channels to space, the bias.
    uses = ["conv", "transpose", "elementwise"]
    branches = {n: Branch(b.nodes, b.inputs, uses, b.weights) for n, b in cases.items()}
    check_branches(branches, "native", tmp_path)
