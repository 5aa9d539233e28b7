"""Pooling: borders, ceil mode, what a mean counts, whole planes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.kernel_runs import X86_TARGETS, Branch, check_branches, random_decisions
from support.onnx_graphs import node, random


def pool(op_type: str, shape: Sequence[int], *window: int, **attributes: Any) -> Branch:
    nodes = [node(op_type, ["x"], ["y"], kernel_shape=window, **attributes)]
    return Branch(nodes, {"x": shape}, ["pool"])


def max_pool(shape: Sequence[int], *window: int, **attributes: Any) -> Branch:
    return pool("MaxPool", shape, *window, **attributes)


def mean_pool(shape: Sequence[int], *window: int, padded: int = 0, **attributes: Any) -> Branch:
    return pool("AveragePool", shape, *window, count_include_pad=padded, **attributes)


WINDOWS = {
    "max 2x2": max_pool([2, 20, 8, 10], 2, 2, strides=[2, 2]),
    "max 3x3 padded": max_pool([1, 33, 9, 11], 3, 3, strides=[2, 2], pads=[1] * 4),
    "max, pads of all sizes": max_pool([1, 5, 9, 8], 3, 4, strides=[1, 2], pads=[0, 2, 2, 1]),
    "max, wide line": max_pool([1, 16, 3, 75], 3, 3, pads=[1] * 4),
    "max, dilated": max_pool([1, 17, 11, 12], 3, 2, dilations=[2, 3], pads=[1, 2, 2, 0]),
    "max, ceil": max_pool([1, 18, 8, 7], 3, 3, strides=[2, 2], ceil_mode=1),
    "max, ceil and pads": max_pool([1, 8, 8, 10], 3, 3, strides=[2, 2], pads=[1] * 4, ceil_mode=1),
    "max, same": max_pool([1, 8, 9, 10], 3, 2, strides=[2, 2], auto_pad="SAME_UPPER"),
    "max 1-D": max_pool([2, 19, 30], 4, strides=[3], pads=[2, 1]),
    "mean 2x2": mean_pool([2, 20, 8, 10], 2, 2, strides=[2, 2]),
    "mean of what is inside": mean_pool([1, 33, 9, 7], 3, 3, strides=[2, 1], pads=[1] * 4),
    "mean, pads of all sizes": mean_pool([1, 5, 9, 8], 3, 4, strides=[1, 2], pads=[0, 2, 2, 1]),
    "mean with pads": mean_pool([1, 18, 9, 8], 3, 3, padded=1, pads=[1] * 4),
    "mean with some pads": mean_pool([1, 9, 6, 8], 3, 2, padded=1, pads=[1, 0, 2, 1]),
    "mean, ceil": mean_pool([1, 18, 8, 7], 3, 3, strides=[2, 2], ceil_mode=1),
    "mean, ceil and pads": mean_pool([1, 8, 8, 9], 3, 3, strides=[2, 2], pads=[1] * 4, ceil_mode=1),
    "mean 1-D": mean_pool([2, 19, 30], 4, strides=[3], pads=[2, 1]),
    "mean 1-D with pads": mean_pool([1, 6, 13], 3, padded=1, pads=[1, 1]),
    "then relu": Branch(
        [
            node("AveragePool", ["x"], ["p"], kernel_shape=[3, 3], pads=[1] * 4),
            node("Relu", ["p"], ["y"]),
        ],
        {"x": [1, 10, 6, 7]},
        ["pool"],
    ),
}


def plane(op_type: str, shape: Sequence[int], **attributes: Any) -> Branch:
    """A reduction behind a 1x1 convolution, which gives it blocked channels."""
    channels = shape[1]
    weights = {"w": random(channels, channels, *(1 for _ in shape[2:]), seed=3)}
    nodes = [node("Conv", ["x", "w"], ["c"]), node(op_type, ["c"], ["y"], **attributes)]
    return Branch(nodes, {"x": shape}, ["conv", "global_pool"], weights)


PLANES = {
    "mean": plane("GlobalAveragePool", [2, 20, 7, 7]),
    "largest": plane("GlobalMaxPool", [1, 33, 5, 9]),
    "mean of one pixel": plane("GlobalAveragePool", [1, 18, 1, 1]),
    "mean of three pixels": plane("GlobalAveragePool", [1, 16, 1, 3]),
    "mean of a signal": plane("GlobalAveragePool", [2, 10, 21]),
    "reduce mean": plane("ReduceMean", [1, 24, 6, 5], axes=[2, 3]),
    "reduce max": plane("ReduceMax", [1, 24, 6, 5], axes=[-1, -2]),
    "reduce sum": Branch(
        [node("Conv", ["x", "w"], ["c"]), node("ReduceSum", ["c", "axes"], ["y"])],
        {"x": [2, 8, 6, 5]},
        ["conv", "global_pool"],
        {"w": random(8, 8, 1, 1), "axes": np.array([2, 3])},
    ),
}

FAMILIES = {"windows": WINDOWS, "planes": PLANES}


@pytest.mark.parametrize("target", X86_TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_default_decision(family: str, target: str, tmp_path: Path) -> None:
    check_branches(FAMILIES[family], target, tmp_path)


def test_any_decision(tmp_path: Path) -> None:
    check_branches(WINDOWS, X86_TARGETS[-1], tmp_path, random_decisions(0))
