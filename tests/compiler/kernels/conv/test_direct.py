"""Convolutions: dense, grouped, depthwise, 1-D, transposed; borders, blocks that are not full."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.kernel_runs import X86_TARGETS, Branch, check_branches, random_decisions
from support.onnx_graphs import node, random


def conv(
    shape: Sequence[int], weight: Sequence[int], uses: str = "conv", **attributes: Any
) -> Branch:
    nodes = [node("Conv", ["x", "w"], ["y"], **attributes)]
    return Branch(nodes, {"x": shape}, [uses], {"w": random(*weight, seed=7)})


def transposed(shape: Sequence[int], weight: Sequence[int], **attributes: Any) -> Branch:
    nodes = [node("ConvTranspose", ["x", "w"], ["y"], **attributes)]
    return Branch(nodes, {"x": shape}, ["conv_transpose"], {"w": random(*weight, seed=7)})


DENSE = {
    "3x3": conv([1, 20, 9, 11], [37, 20, 3, 3], pads=[1] * 4),
    "3x3, full blocks": conv([1, 32, 12, 10], [64, 32, 3, 3], pads=[1] * 4),
    "no padding": conv([2, 17, 8, 9], [5, 17, 3, 3]),
    "pads of all sizes": conv([1, 18, 7, 9], [19, 18, 5, 3], pads=[1, 0, 2, 3]),
    "pads beyond the window": conv([1, 9, 5, 6], [16, 9, 3, 3], pads=[4, 3, 5, 4]),
    "tiny image": conv([1, 24, 3, 3], [40, 24, 3, 3], pads=[1] * 4),
    "one pixel": conv([3, 33, 1, 1], [33, 33, 1, 1]),
    "window as large as the image": conv([1, 12, 5, 7], [20, 12, 5, 7]),
    "strides": conv([1, 16, 15, 17], [24, 16, 3, 3], strides=[2, 3], pads=[1] * 4),
    "strides beyond the window": conv([1, 16, 11, 13], [8, 16, 2, 2], strides=[3, 3]),
    "dilations": conv([1, 10, 12, 13], [21, 10, 3, 3], dilations=[2, 3], pads=[2, 3, 2, 3]),
    "all at once": conv(
        [2, 21, 14, 13],
        [35, 21, 3, 4],
        strides=[2, 1],
        dilations=[1, 2],
        pads=[0, 3, 1, 2],
    ),
    "1x1": conv([2, 33, 7, 5], [18, 33, 1, 1]),
    "1x1, long": conv([2, 17, 31, 37], [35, 17, 1, 1]),
    "1x1, strided": conv([1, 33, 7, 8], [18, 33, 1, 1], strides=[2, 2]),
    "1x1, padded": conv([1, 33, 4, 5], [18, 33, 1, 1], pads=[1, 0, 0, 2]),
    "one output channel": conv([1, 35, 6, 7], [1, 35, 3, 3], pads=[1] * 4),
}

FIRST_LAYERS = {
    "1 channel": conv([1, 1, 13, 19], [6, 1, 5, 5], pads=[2] * 4),
    "2 channels": conv([2, 2, 9, 9], [17, 2, 3, 3], strides=[2, 2]),
    "3 channels": conv([1, 3, 23, 21], [33, 3, 7, 7], strides=[2, 2], pads=[3] * 4),
    "3 channels, 1x1": conv([2, 3, 5, 7], [20, 3, 1, 1]),
    "4 channels": conv([1, 4, 9, 8], [16, 4, 3, 3], dilations=[2, 1], pads=[0, 1, 2, 0]),
    "5 channels": conv([1, 5, 9, 8], [16, 5, 3, 3], pads=[1] * 4),
}

GROUPED = {
    "2 groups": conv([1, 48, 7, 9], [80, 24, 3, 3], group=2, pads=[1] * 4),
    "groups of whole blocks": conv([1, 64, 5, 6], [64, 16, 3, 3], group=4),
    "many to a block": conv([2, 24, 6, 5], [24, 3, 3, 3], group=8, pads=[1] * 4),
    "of odd sizes": conv([1, 15, 6, 7], [21, 5, 3, 3], group=3, strides=[2, 1], pads=[1] * 4),
    "1x1": conv([1, 30, 6, 7], [50, 15, 1, 1], group=2),
    "of few channels": conv([1, 4, 8, 8], [6, 2, 3, 3], group=2),
    "depthwise with a multiplier": conv([1, 9, 8, 9], [27, 1, 3, 3], group=9, pads=[1] * 4),
    "depthwise": conv([2, 20, 9, 8], [20, 1, 3, 3], "pool", group=20, pads=[1] * 4),
    "depthwise, strided and dilated": conv(
        [1, 33, 17, 16],
        [33, 1, 5, 3],
        "pool",
        group=33,
        strides=[2, 1],
        dilations=[1, 2],
        pads=[2, 0, 1, 3],
    ),
    "depthwise, wide": conv([1, 16, 3, 70], [16, 1, 1, 7], "pool", group=16, pads=[0, 3, 0, 3]),
    "depthwise, pads beyond the window": conv(
        [1, 7, 4, 5], [7, 1, 3, 3], "pool", group=7, pads=[4] * 4
    ),
}

SIGNALS = {
    "1-D": conv([1, 20, 50], [21, 20, 5], strides=[2], pads=[2, 1]),
    "1-D, first layer": conv([2, 1, 90], [24, 1, 16], strides=[4]),
    "1-D, dilated": conv([1, 18, 40], [34, 18, 3], dilations=[4], pads=[4, 4]),
    "1-D, 1": conv([1, 40, 33], [9, 40, 1]),
    "1-D, grouped": conv([1, 12, 30], [8, 6, 3], group=2),
    "1-D, depthwise": conv([2, 19, 31], [19, 1, 5], "pool", group=19, pads=[4, 0]),
}

TRANSPOSED = {
    "2x2 stride 2": transposed([1, 20, 5, 7], [20, 18, 2, 2], strides=[2, 2]),
    "3x3 stride 1": transposed([2, 17, 6, 5], [17, 33, 3, 3], pads=[1] * 4),
    "3x3 stride 2": transposed([1, 9, 5, 4], [9, 16, 3, 3], strides=[2, 2], pads=[1] * 4),
    "output padding": transposed(
        [1, 16, 5, 6], [16, 20, 3, 3], strides=[2, 2], pads=[1] * 4, output_padding=[1, 1]
    ),
    "output padding of one side": transposed(
        [1, 8, 4, 5], [8, 8, 4, 4], strides=[2, 3], pads=[1, 0, 0, 1], output_padding=[0, 2]
    ),
    "4x4 stride 2": transposed([1, 33, 4, 5], [33, 10, 4, 4], strides=[2, 2], pads=[1] * 4),
    "5x3 stride 3 and 1": transposed([1, 6, 4, 6], [6, 5, 5, 3], strides=[3, 1], pads=[2, 1, 0, 1]),
    "one pixel": transposed([1, 12, 1, 1], [12, 24, 4, 4], strides=[4, 4]),
    "1-D": transposed([2, 10, 17], [10, 18, 4], strides=[2], pads=[1, 1]),
}


def with_epilogue(steps: Sequence[Any], uses: str = "conv", **inputs: Sequence[int]) -> Branch:
    """A convolution to [2, 21, 4, 5] named `c`, then nodes that make `y` of it."""
    kinds = {
        "conv": node("Conv", ["x", "w", "b"], ["c"]),
        "pool": node("Conv", ["x", "v", "b"], ["c"], group=21),
        "conv_transpose": node("ConvTranspose", ["x", "u", "b"], ["c"], pads=[2] * 4),
    }
    weights = {"b": random(21, seed=1), "row": random(1, 21, 1, 1, seed=2)}
    match uses:
        case "conv":
            weights["w"] = random(21, 21, 3, 3, seed=3)
        case "pool":
            weights["v"] = random(21, 1, 3, 3, seed=3)
        case _:
            weights["u"] = random(21, 21, 3, 3, seed=3)
    return Branch([kinds[uses], *steps], {"x": [2, 21, 6, 7], **inputs}, [uses], weights)


RESIDUAL = [node("Add", ["c", "r"], ["s"]), node("Relu", ["s"], ["y"])]
SILU = [node("Sigmoid", ["c"], ["s"]), node("Mul", ["c", "s"], ["y"])]
EPILOGUES = {
    "relu": with_epilogue([node("Relu", ["c"], ["y"])]),
    "leaky relu": with_epilogue([node("LeakyRelu", ["c"], ["y"], alpha=0.1)]),
    "sigmoid": with_epilogue([node("Sigmoid", ["c"], ["y"])]),
    "tanh": with_epilogue([node("Tanh", ["c"], ["y"])]),
    "erf": with_epilogue([node("Erf", ["c"], ["y"])]),
    "hard swish": with_epilogue([node("HardSwish", ["c"], ["y"])]),
    "hard sigmoid": with_epilogue([node("HardSigmoid", ["c"], ["y"], alpha=0.3)]),
    "silu": with_epilogue(SILU),
    "residual": with_epilogue(RESIDUAL, r=[2, 21, 4, 5]),
    "residual on the left": with_epilogue([node("Sub", ["r", "c"], ["y"])], r=[2, 21, 4, 5]),
    "gate": with_epilogue([node("Mul", ["c", "g"], ["y"])], g=[2, 21, 1, 1]),
    "after an activation": with_epilogue(
        [node("Relu", ["c"], ["s"]), node("Mul", ["s", "row"], ["y"])]
    ),
    "depthwise, residual": with_epilogue(RESIDUAL, "pool", r=[2, 21, 4, 5]),
    "depthwise, silu": with_epilogue(SILU, "pool"),
    "depthwise, gate": with_epilogue([node("Mul", ["c", "g"], ["y"])], "pool", g=[2, 21, 1, 1]),
    "transposed, residual": with_epilogue(RESIDUAL, "conv_transpose", r=[2, 21, 4, 5]),
    "transposed, relu": with_epilogue([node("Relu", ["c"], ["y"])], "conv_transpose"),
}

FAMILIES = {
    "dense": DENSE,
    "first layers": FIRST_LAYERS,
    "grouped": GROUPED,
    "signals": SIGNALS,
    "transposed": TRANSPOSED,
    "epilogues": EPILOGUES,
}


CASES = [(family, target) for family in FAMILIES for target in X86_TARGETS]
# Four lanes: what is decided by the number of channels differs, the rest is the same code.
CASES = [case for case in CASES if case[1] != "x86-64-v2" or case[0] in ("dense", "grouped")]


@pytest.mark.parametrize(("family", "target"), CASES)
def test_default_decision(family: str, target: str, tmp_path: Path) -> None:
    check_branches(FAMILIES[family], target, tmp_path)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("family", ["dense", "first layers", "grouped", "transposed"])
def test_any_decision(family: str, seed: int, tmp_path: Path) -> None:
    """Tuning may choose each of a space; here every branch draws some."""
    target = X86_TARGETS[-1 - seed % len(X86_TARGETS)]
    check_branches(FAMILIES[family], target, tmp_path, random_decisions(seed))


# The first convolution gives about 5, but 0 in the channels of the last block that do not exist,
# and 1 / 0 is infinite: who reads them, even to multiply with zero, gets NaN.
INFINITE_PADDING = [
    node("Conv", ["x", "w", "b"], ["c"]),
    node("Div", ["one", "c"], ["d"]),
]
READERS = {
    "dense": ([node("Conv", ["d", "k"], ["y"])], ["conv", "conv"]),
    "grouped": ([node("Conv", ["d", "k2"], ["y"], group=3)], ["conv", "conv"]),
    "depthwise": ([node("Conv", ["d", "k3"], ["y"], group=21)], ["conv", "pool"]),
    "transposed": ([node("ConvTranspose", ["d", "k"], ["y"])], ["conv", "conv_transpose"]),
    "mean": ([node("GlobalAveragePool", ["d"], ["y"])], ["conv", "global_pool"]),
    "concat": (
        [node("Concat", ["d", "d"], ["e"], axis=1), node("Conv", ["e", "k4"], ["y"])],
        ["conv", "channel_map", "conv"],
    ),
}
READER_WEIGHTS = {
    "w": 0.1 * random(21, 6, 1, 1),
    "b": np.full(21, 5, np.float32),
    "one": np.ones(1, np.float32),
    "k": random(21, 21, 3, 3),
    "k2": random(6, 7, 3, 3),
    "k3": random(21, 1, 3, 3),
    "k4": random(6, 42, 3, 3),
}


def reader(name: str) -> Branch:
    nodes, uses = READERS[name]
    nodes = [*INFINITE_PADDING, *nodes]
    used = {tensor for item in nodes for tensor in item.input}
    weights = {key: array for key, array in READER_WEIGHTS.items() if key in used}
    return Branch(nodes, {"x": [1, 6, 5, 4]}, uses, weights)


@pytest.mark.parametrize("target", X86_TARGETS)
def test_padding_channels_may_hold_anything(target: str, tmp_path: Path) -> None:
    check_branches({name: reader(name) for name in READERS}, target, tmp_path)
