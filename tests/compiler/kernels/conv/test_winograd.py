"""3x3 convolutions by Winograd's algorithm: borders, odd extents, blocks that are not full."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.conv_workloads import conv_workload
from support.kernel_runs import X86_TARGETS, Branch, LoadedKernels, check_branches
from support.onnx_graphs import node, random

from edgec.compiler.kernels.conv.winograd_decision import winograd_space
from edgec.compiler.kernels.conv.winograd_weights import pack_winograd
from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.kernels.emit.epilogue import EpilogueStep
from edgec.compiler.kernels.templates import TEMPLATES
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
    "pads of almost a window": conv([1, 9, 5, 6], 16, pads=[2, 1, 2, 2]),
    "smaller than a patch": conv([1, 24, 2, 3], 40, pads=[1] * 4),
    "one line": conv([1, 8, 1, 30], 8, pads=[1, 1, 1, 1]),
    "activation": conv([1, 20, 7, 7], 33, node("Relu", ["c"], ["y"]), pads=[1] * 4),
}


def winograd_only(out: int, seed: int) -> Any:
    """Any decision for tiles of such size where the algorithm applies, the default elsewhere."""
    generator = np.random.default_rng(seed)

    def decide(operator: str, workload: Any, target: Target) -> Any:
        template = TEMPLATES[operator]
        space = [d for d in template.space(workload, target) if getattr(d, "out", 0) == out]
        if not space:
            return template.default(workload, target)
        return space[int(generator.integers(len(space)))]

    return decide


@pytest.mark.parametrize("target", X86_TARGETS)
@pytest.mark.parametrize("out", [2, 4])
def test_against_onnx_runtime(target: str, out: int, tmp_path: Path) -> None:
    check_branches(BRANCHES, target, tmp_path, winograd_only(out, seed=out))


def direct_sum(work: ConvWorkload, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The convolution in double precision."""
    top, left = work.padding
    padded = np.zeros((*x.shape[:2], work.out_h + 2, work.out_w + 2))
    padded[:, :, top : top + work.in_h, left : left + work.in_w] = x
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, weight.astype(np.float64), optimize=True)


# Largest error as part of the largest value; two to four times what was measured.
LARGEST_ERROR = {2: 1e-6, 4: 4e-6}


@pytest.mark.parametrize("target", X86_TARGETS)
def test_precision(target: str, tmp_path: Path) -> None:
    """Against double precision, next to an epilogue, with padding channels that hold NaN."""
    steps = (
        EpilogueStep("add", "channel"),
        EpilogueStep("add", "element"),
        EpilogueStep("leaky_relu", None, (0.1,)),
    )
    work = conv_workload(
        batch=2, in_channels=101, in_h=15, in_w=18, out_channels=43, out_h=15, out_w=18
    )
    work = replace(work, epilogue=steps)
    machine = load_target(target)
    c = machine.float_lanes
    x, weight = random(2, 101, 15, 18, seed=1), random(43, 101, 3, 3, seed=2)
    bias, other = random(43, seed=3), random(2, 43, 15, 18, seed=4)
    total = direct_sum(work, x, weight) + bias[:, None, None] + other
    expected = np.where(total > 0, total, 0.1 * total)
    template = TEMPLATES["edgec.conv"]
    decisions = {
        out: min(
            (d for d in winograd_space(work, machine) if d.out == out),
            key=lambda d: template.estimate(work, d, machine),
        )
        for out in LARGEST_ERROR
    }
    # Four tasks share three tiles of output channels (four where vectors have 4 lanes).
    decisions[4] = replace(decisions[4], vectors=math.ceil(math.ceil(43 / c) / 5), splits=4)
    kernels = {
        f"out{out}": template.emit(work, decision, machine, f"out{out}")
        for out, decision in decisions.items()
    }
    loaded = LoadedKernels(kernels, target, tmp_path)
    operands = [blocked(bias[None, :, None, None], c), blocked(other, c)]
    size = 2 * math.ceil(43 / c) * c * 15 * 18

    def largest_error(out: int, used: np.ndarray) -> float:
        packed = pack_winograd(work, decisions[out], used, c)
        result = loaded(f"out{out}", blocked(x, c), packed, *operands, size=size)
        planes = result.reshape(2, -1, 15, 18, c).transpose(0, 1, 4, 2, 3)
        pixels = planes.reshape(2, -1, 15, 18)[:, :43]
        return float(np.abs(pixels - expected).max() / np.abs(expected).max())

    # The negative control: one weight that is slightly off.
    wrong = weight.copy()
    wrong[7, 50, 1, 2] += 1e-3
    for out, limit in LARGEST_ERROR.items():
        assert largest_error(out, weight) < limit < largest_error(out, wrong)


def blocked(array: np.ndarray, c: int) -> np.ndarray:
    """[N, C, H, W] in blocks of c channels, NaN where there is no channel."""
    n, channels, h, w = array.shape
    blocks = math.ceil(channels / c)
    whole = np.full((n, blocks * c, h, w), np.nan, np.float32)
    whole[:, :channels] = array
    return np.ascontiguousarray(whole.reshape(n, blocks, c, h, w).transpose(0, 1, 3, 4, 2))
