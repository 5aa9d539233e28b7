"""Resize: modes, coordinate conventions, roundings, extents that do not divide."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from support.kernel_runs import X86_TARGETS, Branch, check_branches
from support.onnx_graphs import node, random


def resize(
    after: Sequence[int],
    mode: str,
    coordinates: str,
    rounding: str = "round_prefer_floor",
    channels: int = 18,
) -> Branch:
    """A 1x1 convolution to [2, channels, 6, 7], resized."""
    attributes = {"coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Resize", ["c", "", "", "sizes"], ["y"], mode=mode, **attributes),
    ]
    weights = {"w": random(channels, 3, 1, 1), "sizes": np.array([2, channels, *after])}
    return Branch(nodes, {"x": [2, 3, 6, 7]}, ["conv", "resize"], weights)


# Extents are such that no position lies on the border of two roundings: there ONNX Runtime, which
# computes positions in float32, is off itself.
COORDINATES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")

LINEAR = {
    f"{name}, {after}": resize(after, "linear", name)
    for name in COORDINATES
    for after in ([12, 14], [9, 20], [4, 5], [1, 7])
    # To one pixel the convention is ONNX's own.
    if (name, after) != ("align_corners", [1, 7])
}
NEAREST = {
    f"{name}, {rounding}, {after}": resize(after, "nearest", name, rounding)
    for name in COORDINATES
    for rounding in ROUNDINGS
    for after in ([12, 14], [24, 28])
}
CHANNELS = {
    f"{count} channels": resize([11, 15], "linear", "half_pixel", channels=count)
    for count in (1, 16, 35)
}
FAMILIES = {"linear": LINEAR, "nearest": NEAREST, "channels": CHANNELS}


@pytest.mark.parametrize("target", X86_TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_resize(family: str, target: str, tmp_path: Path) -> None:
    check_branches(FAMILIES[family], target, tmp_path)
