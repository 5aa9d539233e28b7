"""Depthwise convolutions of quantized values.

Bit-identical to NumPy integers, on every instruction set.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.integer_graphs import Code, ConvCase, open_module
from support.kernel_runs import random_decisions

from edgec.compiler.kernels.conv.depthwise_writer import DepthwiseDecision
from edgec.compiler.kernels.isa import Dot
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.pack import conv as pack_conv
from edgec.compiler.numerics.pair_sums import pair_products, wrapped_sums
from edgec.compiler.runtime.session import why_not_here
from edgec.targets import Target, load_target

# vpdpbusd and vpmaddubsw, 512 and 256 bits.
NAMES = ("x86-64-v4-vnni", "x86-64-v4", "x86-64-v3")
TARGETS = [name for name in NAMES if not why_not_here(load_target(name))]
FOUR_LANES = "four lanes"


def depthwise(shape: Sequence[int], kh: int, kw: int, **options: Any) -> ConvCase:
    groups = shape[1]
    return ConvCase(shape, [groups, 1, kh, kw], groups=groups, **options)


CASES = {
    "3x3": depthwise([2, 20, 9, 8], 3, 3, attributes={"padding": (1, 1, 1, 1)}),
    "no padding": depthwise([1, 16, 6, 7], 3, 2, data=Code("uint8", 0.02, 0), relu=True),
    "5x5, strided": depthwise(
        [1, 33, 17, 16], 5, 5, attributes={"strides": (2, 2), "padding": (2, 2, 2, 2)}
    ),
    "strides of 1 and 4": depthwise(
        [1, 9, 8, 31], 3, 5, attributes={"strides": (1, 4), "padding": (2, 0, 1, 3)}
    ),
    "stride above the window": depthwise([1, 8, 19, 11], 2, 1, attributes={"strides": (5, 2)}),
    "sums of two groups": depthwise(
        [1, 24, 7, 15], 5, 7, attributes={"padding": (2, 3, 2, 3)}, largest=32
    ),
    "window larger than the image": depthwise(
        [1, 10, 2, 3], 5, 9, attributes={"padding": (4, 4, 3, 5)}
    ),
    "pads beyond the window": depthwise([1, 9, 4, 5], 3, 3, attributes={"padding": (4, 3, 5, 4)}),
    "one pixel": depthwise([1, 16, 3, 3], 3, 3),
    "hard swish": depthwise([1, 20, 8, 11], 3, 3, attributes={"padding": (1, 1, 1, 1)}, swish=True),
    "in floats after the sums": depthwise(
        [1, 12, 6, 9],
        3,
        3,
        attributes={"padding": (1, 1, 1, 1)},
        swish=True,
        result=Code("uint8", 0.001, 9),
    ),
    "fewer lines than the window has": depthwise(
        [1, 24, 3, 24], 5, 5, attributes={"padding": (2, 2, 2, 2)}, data=Code("uint8", 0.02, 37)
    ),
    "few lines, none of them padding": depthwise(
        [1, 24, 7, 7], 5, 5, attributes={"padding": (2, 2, 2, 2)}, data=Code("uint8", 0.02, 0)
    ),
    "extreme": depthwise(
        [1, 16, 9, 9],
        7,
        7,
        largest=64,
        data=Code("uint8", 0.02, 3),
        result=Code("uint8", 0.4, 128),
        extreme=True,
    ),
}

# Not by the kernel of integers: groups of taps do not begin at windows, or the lines are long.
OTHERS = {
    "dilated": depthwise([1, 8, 9, 9], 3, 3, attributes={"dilation": (1, 2)}),
    "strided by 3": depthwise([1, 8, 9, 9], 3, 3, attributes={"strides": (1, 3)}),
    "long lines": depthwise([1, 8, 5, 420], 3, 3, largest=32),
}


def machine(name: str) -> Target:
    """Return a target of this machine; one has vectors of four lanes, as Arm's have."""
    if name != FOUR_LANES:
        return load_target(name)
    update = {"vector_bits": 128, "vector_registers": 32, "integer_dot": "generic"}
    return load_target(TARGETS[-1]).model_copy(update=update)


@pytest.mark.parametrize("target", [*TARGETS, FOUR_LANES])
@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_equals_integers(name: str, target: str, tmp_path: Path) -> None:
    case = {**CASES, **OTHERS}[name]
    if target == FOUR_LANES and name == "long lines":
        pytest.skip("a line of so few lanes is not long")
    built = open_module(case.module(), machine(target), tmp_path)
    kernel = "integer_depthwise" if name in CASES else "pool"
    assert [t for t in built.templates if t != "pack"] == [kernel]
    expected = case.expected(floats=name in OTHERS)
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(built.run({"x": case.arrays()[0]})["y"], expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "name", ["5x5, strided", "sums of two groups", "one pixel", "few lines, none of them padding"]
)
def test_any_decision(name: str, seed: int, tmp_path: Path) -> None:
    case = CASES[name]
    target = machine([*TARGETS, FOUR_LANES][-1 - seed])
    target = target.model_copy(update={"cores": 1 + 7 * seed})
    built = open_module(case.module(), target, tmp_path, random_decisions(seed))
    np.testing.assert_array_equal(built.run({"x": case.arrays()[0]})["y"], case.expected())


@pytest.mark.parametrize(
    ("kernel", "decision"),
    [
        ((3, 3), DepthwiseDecision(8, 2, 3, shifts=2)),
        # All weights stay in registers, then they do not.
        ((5, 5), DepthwiseDecision(4, 3, 1, shifts=2)),
        ((5, 5), DepthwiseDecision(8, 1, 2, shifts=4)),
        ((5, 5), DepthwiseDecision(4, 3, 2, columns=True)),
        ((3, 3), DepthwiseDecision(8, 1, 3, columns=True)),
    ],
)
def test_pixels_share_windows(
    kernel: tuple[int, int], decision: DepthwiseDecision, tmp_path: Path
) -> None:
    """The negative control: with weights that differ in one, it does not."""
    kh, kw = kernel
    padding = (kh // 2, kw // 2, kh // 2, kw // 2)
    case = depthwise([2, 6, 7, 11], kh, kw, attributes={"padding": padding})
    built = open_module(case.module(), machine(FOUR_LANES), tmp_path, lambda *_: decision)
    found = built.run({"x": case.arrays()[0]})["y"]
    np.testing.assert_array_equal(found, case.expected())
    other = replace(case, largest=case.largest - 1)
    assert not np.array_equal(found, other.expected())


def test_what_would_saturate_is_left_to_floats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of 8 bits overflow the pairs of vpmaddubsw; forced, the result is wrong."""
    case = replace(CASES["extreme"], largest=127)
    data, expected = case.arrays()[0], case.expected(floats=True)
    target = load_target("x86-64-v3")
    built = open_module(case.module(), target, tmp_path)
    assert "integer_depthwise" not in built.templates
    np.testing.assert_array_equal(built.run({"x": data})["y"], expected)
    monkeypatch.setattr(Dot, "cannot_saturate", lambda *_: True)
    (tmp_path / "forced").mkdir()
    forced = open_module(case.module(), target, tmp_path / "forced")
    assert "integer_depthwise" in forced.templates
    assert np.abs(forced.run({"x": data})["y"].astype(int) - expected).max() > 5


def test_sums_of_int16_wrap_only_as_far_as_weights_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All products in one sum, weights and data at their ends: forced, the result is wrong."""
    case = replace(CASES["extreme"], result=Code("uint8", 4.0, 128))
    data, weight = case.arrays()[:2]
    sizes = abs(pair_products(weight).astype(int)).sum(axis=2)
    sums = wrapped_sums(weight)
    assert sorted(place for places in sums for place in places) == list(range(sizes.shape[1]))
    assert max(255 * sizes[:, places].sum(axis=1).max() for places in sums) == 255 * 256
    target = load_target("x86-64-v3")

    def pairs(operator: str, workload: Any, target: Target) -> Any:
        space = TEMPLATES[operator].space(workload, target)
        return next((decision for decision in space if getattr(decision, "pairs", False)), space[0])

    built = open_module(case.module(), target, tmp_path, pairs)
    np.testing.assert_array_equal(built.run({"x": data})["y"], case.expected())
    monkeypatch.setattr(pack_conv, "wrapped_sums", lambda _: (tuple(range(sizes.shape[1])),))
    (tmp_path / "forced").mkdir()
    forced = open_module(case.module(), target, tmp_path / "forced", pairs)
    assert (forced.run({"x": data})["y"] != case.expected()).any()
