"""Kernels that only move values: exactly, and of every number of channels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.integer_graphs import Code, open_module
from support.kernel_runs import X86_TARGETS, Branch, LoadedKernels, check_branches
from support.onnx_graphs import node, random
from tvm import IRModule, relax

from edgec.compiler.kernels import layout
from edgec.compiler.kernels.layout import PackWorkload, emit_pack
from edgec.targets import load_target

# Channels and positions.
SIZES = [(1, 1), (3, 5), (3, 37), (16, 40), (33, 70), (64, 49), (8, 16), (17, 16), (4, 7)]


def blocked(image: np.ndarray, lanes: int) -> np.ndarray:
    """[N, C, P] to [N, B, P, lanes], zero in channels that do not exist."""
    n, channels, positions = image.shape
    padded = np.pad(image, ((0, 0), (0, -channels % lanes), (0, 0)))
    return padded.reshape(n, -1, lanes, positions).transpose(0, 1, 3, 2)


@pytest.mark.parametrize("target", X86_TARGETS)
def test_pack_and_unpack(target: str, tmp_path: Path) -> None:
    machine = load_target(target)
    kernels = {}
    for channels, positions in SIZES:
        for unpack in (False, True):
            name = f"k{channels}_{positions}_{int(unpack)}"
            work = PackWorkload(2, channels, positions, unpack)
            kernels[name] = emit_pack(work, machine, name)
    run = LoadedKernels(kernels, target, tmp_path)
    for channels, positions in SIZES:
        image = random(2, channels, positions)
        packed = blocked(image, machine.float_lanes)
        name = f"k{channels}_{positions}"
        np.testing.assert_array_equal(run(f"{name}_0", image, size=packed.size), packed.ravel())
        # What padding channels hold is not read.
        noise = blocked(np.ones_like(image), machine.float_lanes) == 0
        dirty = np.where(noise, np.float32(np.nan), packed)
        np.testing.assert_array_equal(run(f"{name}_1", dirty, size=image.size), image.ravel())


def mapped(channels: Sequence[int], steps: Sequence[Any], **weights: np.ndarray) -> Branch:
    """1x1 convolutions to `c0`, `c1`, ... that the steps read and make `y` of."""
    nodes, inputs, kernels = [], {}, {}
    for number, count in enumerate(channels):
        nodes.append(node("Conv", [f"x{number}", f"w{number}"], [f"c{number}"]))
        inputs[f"x{number}"] = [2, 5, 4, 3]
        kernels[f"w{number}"] = random(count, 5, 1, 1, seed=number)
    uses = ["conv"] * len(channels) + ["channel_map"]
    return Branch([*nodes, *steps], inputs, uses, {**kernels, **weights})


def concat(*channels: int) -> Branch:
    names = [f"c{number}" for number in range(len(channels))]
    return mapped(channels, [node("Concat", names, ["y"], axis=1)])


def sliced(channels: int, start: int, end: int, step: int = 1) -> Branch:
    weights = {
        name: np.array([value]) for name, value in (("s", start), ("e", end), ("a", 1), ("t", step))
    }
    return mapped([channels], [node("Slice", ["c0", "s", "e", "a", "t"], ["y"])], **weights)


def shuffle(channels: int, groups: int) -> Branch:
    steps = [
        node("Reshape", ["c0", "split"], ["r"]),
        node("Transpose", ["r"], ["t"], perm=[0, 2, 1, 3, 4]),
        node("Reshape", ["t", "whole"], ["y"]),
    ]
    split = np.array([2, groups, channels // groups, 4, 3])
    return mapped([channels], steps, split=split, whole=np.array([2, channels, 4, 3]))


MAPS = {
    "concat of whole blocks": concat(16, 32),
    "concat of parts": concat(24, 10),
    "concat of three": concat(5, 17, 3),
    "concat of many to a block": concat(1, 2, 3, 4, 5),
    "slice": sliced(40, 7, 29),
    "slice from the end": sliced(20, -5, 20),
    "slice with steps": sliced(33, 1, 33, 3),
    "slice backwards": sliced(21, 20, -22, -2),
    "second half of a split": mapped(
        [26], [node("Split", ["c0", "sizes"], ["first", "y"], axis=1)], sizes=np.array([15, 11])
    ),
    "shuffle": shuffle(24, 4),
    "shuffle of many blocks": shuffle(66, 3),
    "signals": Branch(
        [
            node("Conv", ["x", "w"], ["c"]),
            node("Concat", ["x", "c"], ["y"], axis=1),
        ],
        {"x": [2, 7, 30]},
        ["conv", "channel_map"],
        {"w": random(12, 7, 1)},
    ),
}


@pytest.mark.parametrize("target", X86_TARGETS)
def test_channel_maps(target: str, tmp_path: Path) -> None:
    check_branches(MAPS, target, tmp_path)


def mean_of_quantized(shape: list[int]) -> IRModule:
    """The mean of each plane of quantized values of scale 0.5 and zero point 3."""
    code = Code("uint8", 0.5, 3)
    parameter = relax.Var("x", relax.TensorType(shape, "uint8"))
    builder = relax.BlockBuilder()
    with builder.function("main", [parameter]):
        with builder.dataflow():
            # A window of one pixel: what comes out is blocked.
            blocked = builder.emit(relax.op.nn.max_pool2d(code.dequantize(builder, parameter)))
            result = builder.emit_output(relax.op.mean(blocked, [2, 3], keepdims=True))
        builder.emit_func_output(result)
    return builder.get()


@pytest.mark.parametrize("plane", [(2, 2), (5, 7), (31, 37)])
def test_means_of_codes_are_exact(
    plane: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All quantized values 255 and any quantized values.

    With more of them in an int16 than it holds, it is wrong.
    """
    target = load_target("x86-64-v3")
    built = open_module(mean_of_quantized([2, 11, *plane]), target, tmp_path)
    assert "global_pool" in built.templates
    x = np.random.default_rng(1).integers(0, 256, (2, 11, *plane)).astype(np.uint8)
    x[0] = 255
    sums = (x.astype(np.int64) - 3).sum(axis=(2, 3), keepdims=True)
    expected = sums.astype(np.float32) * np.float32(1 / np.prod(plane)) * np.float32(0.5)
    np.testing.assert_array_equal(built.run({"x": x})["y"], expected)
    if np.prod(plane) > 1000:
        monkeypatch.setattr(layout, "_VECTORS_PER_INT16", 200)
        (tmp_path / "forced").mkdir()
        forced = open_module(mean_of_quantized([2, 11, *plane]), target, tmp_path / "forced")
        assert not np.array_equal(forced.run({"x": x})["y"], expected)
