"""3x3 convolutions of quantized values by Winograd's algorithm: the bits of NumPy integers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.integer_graphs import Code, ConvCase, open_module

from edgec.compiler.kernels.conv import integer_dense
from edgec.compiler.kernels.conv.decision import ConvDecision
from edgec.compiler.kernels.conv.integer import IntegerConvWorkload
from edgec.compiler.kernels.conv.integer_winograd_decision import integer_winograd_space, is_exact
from edgec.compiler.kernels.conv.winograd_decision import WinogradDecision
from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.runtime.session import why_not_here
from edgec.targets import Target, load_target

# vpdpwssd and vpmaddwd, 512 and 256 bits.
NAMES = ("x86-64-v4-vnni", "x86-64-v4", "x86-64-v3")
TARGETS = [name for name in NAMES if not why_not_here(load_target(name))]

PADDED: dict[str, Any] = {"padding": (1, 1, 1, 1)}
CASES = {
    "odd blocks, rows and columns": ConvCase([2, 20, 9, 11], [19, 20, 3, 3], attributes=PADDED),
    "no padding, one block": ConvCase([1, 5, 7, 9], [16, 5, 3, 3]),
    "pads beyond the window": ConvCase(
        [1, 9, 5, 6], [16, 9, 3, 3], attributes={"padding": (4, 3, 5, 4)}
    ),
    "one tile, 8 bits on both sides": ConvCase(
        [1, 24, 4, 4], [40, 24, 3, 3], attributes=PADDED, largest=127
    ),
    "extreme": ConvCase(
        [1, 224, 5, 5],
        [16, 224, 3, 3],
        attributes=PADDED,
        data=Code("uint8", 0.02, 3),
        result=Code("uint8", 8.0, 128),
        largest=127,
        extreme=True,
    ),
}


def winograd_only(out: int, seed: int = 0) -> Any:
    """Any decision for tiles of such size."""
    generator = np.random.default_rng(seed)

    def decide(operator: str, workload: Any, target: Target) -> Any:
        space = TEMPLATES[operator].space(workload, target)
        found = [d for d in space if getattr(d, "out", 0) == out]
        return found[int(generator.integers(len(found)))] if found else space[0]

    return decide


# Compiling takes most of the time: every case once, and what differs between targets.
RUNS = [
    *((name, 4, "x86-64-v3") for name in CASES),
    ("odd blocks, rows and columns", 2, "x86-64-v3"),
    *(("no padding, one block", 4, target) for target in TARGETS if target != "x86-64-v3"),
]


@pytest.mark.parametrize(("name", "out", "target"), RUNS)
def test_equals_integers(name: str, out: int, target: str, tmp_path: Path) -> None:
    case = CASES[name]
    built = open_module(case.module(), load_target(target), tmp_path, winograd_only(out, len(name)))
    assert "integer_conv" in built.templates
    expected = case.expected()
    assert len(np.unique(expected)) > 2 or case.extreme
    found = built.run({"x": case.arrays()[0]})["y"]
    np.testing.assert_array_equal(found, expected)


def whole_images(out: int) -> Any:
    """Tasks that are whole images, with the least code."""

    def decide(operator: str, workload: Any, target: Target) -> Any:
        space = TEMPLATES[operator].space(workload, target)
        if "conv" not in operator:
            return space[0]
        found = [d for d in space if getattr(d, "out", 0) == out and d.splits == 1]
        return max(found, key=lambda d: (d.register_tiles * d.repeats, d.repeats, -d.vectors))

    return decide


@pytest.mark.parametrize(
    ("pixels", "padding", "out", "target"),
    [
        ((7, 9), (1, 1, 1, 1), 4, "x86-64-v3"),
        ((10, 8), (0, 0, 0, 0), 4, TARGETS[0]),
        ((5, 6), (1, 1, 1, 1), 2, "x86-64-v3"),
    ],
)
def test_small_tiles_at_the_end_of_an_image(
    pixels: tuple[int, int], padding: tuple[int, ...], out: int, target: str, tmp_path: Path
) -> None:
    """Rests of 3 and 1, none and 2 rows and columns; of 1 row for tiles of 2."""
    case = ConvCase([2, 20, *pixels], [19, 20, 3, 3], attributes={"padding": padding})
    built = open_module(case.module(), load_target(target), tmp_path, whole_images(out))
    expected = case.expected()
    assert len(np.unique(expected)) > 50
    np.testing.assert_array_equal(built.run({"x": case.arrays()[0]})["y"], expected)


def test_sums_that_do_not_fit_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine times 2**6 of the sum must fit 32 bits; forced, it is wrong."""
    case = CASES["extreme"]
    case = replace(case, shape=[1, 264, 6, 6], weight=[16, 264, 3, 3], attributes={})
    data, weight, *_ = case.arrays()
    weight[0, 0] = -weight[0, 0]
    assert is_exact(weight, 2, (0, 255))
    assert not is_exact(weight, 4, (0, 255))
    assert is_exact(weight[:, :230], 4, (0, 255))
    assert is_exact(weight, 4, (0, 129))
    target, decide = load_target("x86-64-v3"), winograd_only(4)
    expected = case.expected()
    built = open_module(case.module(), target, tmp_path, decide)
    np.testing.assert_array_equal(built.run({"x": data})["y"], expected)
    monkeypatch.setattr(integer_dense, "is_exact", lambda *_: True)
    (tmp_path / "forced").mkdir()
    forced = open_module(case.module(), target, tmp_path / "forced", decide)
    assert not np.array_equal(forced.run({"x": data})["y"], expected)


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4-vnni"])
def test_large_layers_are_computed_by_it(target: str) -> None:
    machine = load_target(target)
    large = ConvWorkload(1, 64, 56, 56, 64, 56, 56, (3, 3), padding=(1, 1))
    strided = replace(large, out_h=28, out_w=28, stride=(2, 2))
    small = replace(large, in_h=5, in_w=5, out_h=5, out_w=5)
    decide = TEMPLATES["edgec.integer_conv"].default
    assert isinstance(decide(IntegerConvWorkload(large, 3), machine), WinogradDecision)
    for direct in (strided, small):
        assert isinstance(decide(IntegerConvWorkload(direct, 3), machine), ConvDecision)


def test_what_multiplies_no_pairs_has_only_the_direct_sum() -> None:
    machine = load_target("rpi4")
    large = ConvWorkload(1, 64, 56, 56, 64, 56, 56, (3, 3), padding=(1, 1))
    assert integer_winograd_space(IntegerConvWorkload(large, 3), machine) == []
