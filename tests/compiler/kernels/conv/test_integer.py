"""Convolutions of quantized values: bit-identical to NumPy integers, on every instruction set."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from support.emulated_runs import run_case, run_emulated
from support.integer_graphs import Code, ConvCase, build_module, open_module
from support.kernel_runs import random_decisions

from edgec.compiler.kernels.emit import epilogue
from edgec.compiler.kernels.emit.quantized_values import quantize_floats
from edgec.compiler.kernels.isa import Dot, dot_of
from edgec.compiler.runtime.session import why_not_here
from edgec.targets import load_target

# vpdpbusd and vpmaddubsw, 512 and 256 bits.
NAMES = ("x86-64-v4-vnni", "x86-64-v4", "x86-64-v3")
TARGETS = [name for name in NAMES if not why_not_here(load_target(name))]

CASES = {
    "1x1": ConvCase([1, 33, 7, 9], [37, 33, 1, 1]),
    "1x1, strided": ConvCase([2, 20, 8, 9], [18, 20, 1, 1], attributes={"strides": (2, 2)}),
    "3x3": ConvCase([1, 20, 9, 11], [37, 20, 3, 3], attributes={"padding": (1, 1, 1, 1)}),
    "3x3, hard swish": ConvCase(
        [1, 20, 9, 11],
        [37, 20, 3, 3],
        attributes={"padding": (1, 1, 1, 1)},
        result=Code("uint8", 0.03, 20),
        swish=True,
    ),
    "1x1, hard swish, then a factor and a sum": ConvCase(
        [1, 12, 5, 6], [17, 12, 1, 1], swish=True, affine=(1.37, -0.41)
    ),
    "1x1, few of the codes, hard swish": ConvCase(
        [1, 5, 7, 9], [37, 5, 1, 1], result=Code("uint8", 0.4, 200), largest=3, swish=True
    ),
    "3x3, zero is 0": ConvCase(
        [1, 32, 6, 7],
        [16, 32, 3, 3],
        attributes={"padding": (1, 1, 1, 1)},
        data=Code("uint8", 0.02, 0),
        relu=True,
    ),
    "3 channels": ConvCase(
        [1, 3, 15, 17],
        [19, 3, 3, 3],
        attributes={"strides": (2, 2), "padding": (0, 0, 1, 1)},
    ),
    "pads beyond the window": ConvCase(
        [1, 9, 5, 6], [16, 9, 3, 3], attributes={"padding": (4, 3, 5, 4)}
    ),
    "tiny image": ConvCase([1, 24, 3, 3], [40, 24, 3, 3], attributes={"padding": (1, 1, 1, 1)}),
    "all at once": ConvCase(
        [2, 21, 14, 13],
        [35, 21, 3, 4],
        attributes={"strides": (2, 1), "dilation": (1, 2), "padding": (0, 3, 1, 2)},
        relu=True,
    ),
    "sums of two groups": ConvCase(
        [1, 37, 6, 7], [20, 37, 3, 3], attributes={"padding": (1, 1, 1, 1)}, largest=32
    ),
    "sums of two groups, extreme": ConvCase(
        [1, 64, 5, 5],
        [32, 64, 1, 1],
        data=Code("uint8", 0.02, 3),
        result=Code("uint8", 3.0, 128),
        largest=32,
        extreme=True,
    ),
    "extreme": ConvCase(
        [1, 64, 5, 5],
        [32, 64, 3, 3],
        attributes={"padding": (1, 1, 1, 1)},
        data=Code("uint8", 0.02, 3),
        result=Code("uint8", 3.0, 128),
        extreme=True,
    ),
    "8 bits on both sides": ConvCase(
        [1, 21, 9, 11], [37, 21, 3, 3], attributes={"padding": (1, 1, 1, 1)}, largest=127
    ),
    "8 bits on both sides, extreme": ConvCase(
        [1, 64, 5, 5],
        [32, 64, 3, 3],
        attributes={"padding": (1, 1, 1, 1)},
        result=Code("uint8", 3.0, 128),
        largest=127,
        extreme=True,
    ),
}

KINDS = {
    "signal": ConvCase([2, 18, 31], [21, 18, 5], attributes={"strides": 2, "padding": (2, 1)}),
    "signal, dilated": ConvCase(
        [1, 16, 40], [16, 16, 3], attributes={"dilation": 3, "padding": (3, 3)}
    ),
    "8 groups of 4": ConvCase(
        [1, 32, 9, 11], [32, 4, 3, 3], groups=8, attributes={"padding": (1, 1, 1, 1)}
    ),
    "groups of 3 to 5": ConvCase(
        [2, 24, 7, 9], [40, 3, 3, 2], groups=8, attributes={"strides": (2, 1), "dilation": (1, 2)}
    ),
    "groups that do not divide": ConvCase(
        [1, 9, 7, 9], [21, 3, 3, 3], groups=3, attributes={"padding": (1, 0, 1, 2)}, relu=True
    ),
    "wide groups, 8 bits": ConvCase([1, 80, 6, 5], [48, 40, 1, 1], groups=2, largest=127),
    "depthwise, two to one": ConvCase(
        [1, 20, 9, 8], [40, 1, 3, 3], groups=20, attributes={"padding": (1, 1, 1, 1)}
    ),
}

TRANSPOSED = {
    "twice, windows meet": ConvCase(
        [2, 20, 7, 6],
        [20, 19, 4, 4],
        attributes={"strides": (2, 2), "padding": (1, 1, 1, 1)},
        transposed=True,
    ),
    "twice, odd": ConvCase(
        [1, 9, 6, 9],
        [9, 33, 3, 3],
        attributes={"strides": (2, 2), "padding": (1, 1, 1, 1), "output_padding": (1, 1)},
        relu=True,
        transposed=True,
    ),
    "windows side by side": ConvCase(
        [1, 24, 9, 7], [24, 10, 2, 2], attributes={"strides": (2, 2)}, transposed=True
    ),
    "signal, uneven": ConvCase(
        [1, 12, 21],
        [12, 18, 5],
        attributes={"strides": 3, "padding": (0, 2)},
        largest=127,
        transposed=True,
    ),
}

DECIDED = ("1x1", "3x3", "tiny image", "all at once", "8 bits on both sides", "groups of 3 to 5")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [*CASES, *KINDS, *TRANSPOSED])
def test_equals_integers(name: str, target: str, tmp_path: Path) -> None:
    case = {**CASES, **KINDS, **TRANSPOSED}[name]
    built = open_module(case.module(), load_target(target), tmp_path)
    kernel = "integer_conv"
    if name in TRANSPOSED:
        kernel = "integer_conv_transpose"
    assert [t for t in built.templates if t != "pack"] == [kernel]
    expected = case.expected()
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(built.run({"x": case.arrays()[0]})["y"], expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [*DECIDED, *TRANSPOSED])
def test_any_decision(name: str, seed: int, tmp_path: Path) -> None:
    case = {**CASES, **KINDS, **TRANSPOSED}[name]
    target = load_target(TARGETS[seed % len(TARGETS)])
    built = open_module(case.module(), target, tmp_path, random_decisions(seed))
    np.testing.assert_array_equal(built.run({"x": case.arrays()[0]})["y"], case.expected())


def test_groups_are_summed_only_where_int16_holds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight more than fits: one group at a time; forced, it is wrong."""
    case = replace(CASES["sums of two groups, extreme"], largest=33)
    data, expected, target = case.arrays()[0], case.expected(), load_target("x86-64-v3")
    built = open_module(case.module(), target, tmp_path)
    assert not any("together" in step.workload for step in built.program.steps)
    np.testing.assert_array_equal(built.run({"x": data})["y"], expected)
    monkeypatch.setattr(Dot, "cannot_saturate", lambda *_: True)
    (tmp_path / "forced").mkdir()
    forced = open_module(case.module(), target, tmp_path / "forced")
    assert any('"together":2' in step.workload for step in forced.program.steps)
    assert not np.array_equal(forced.run({"x": data})["y"], expected)


@pytest.mark.parametrize(
    ("result", "relu", "ends"),
    [
        (Code("uint8", 0.05, 100), False, "[1.0,1.0]"),
        (Code("uint8", 0.05, 100), True, "[0.0,1.0]"),
        (Code("uint8", 1e-12, 100), False, "[1.0,0.0]"),
    ],
)
def test_ends_of_codes_are_open_where_narrowing_clips(
    result: Code, relu: bool, ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all ends open, a ReLU or what reaches 2**31 quantized values is wrong."""
    case = replace(TRANSPOSED["windows side by side"], result=result, relu=relu)
    target = load_target("x86-64-v3")
    data, expected = case.arrays()[0], case.expected()
    built = open_module(case.module(), target, tmp_path)
    assert any(f'"parameters":{ends}' in step.workload for step in built.program.steps)
    np.testing.assert_array_equal(built.run({"x": data})["y"], expected)
    if ends != "[1.0,1.0]":
        monkeypatch.setattr(
            epilogue, "quantize_floats", lambda x, y, dtype, *_: quantize_floats(x, y, dtype, 1, 1)
        )
        (tmp_path / "forced").mkdir()
        forced = open_module(case.module(), target, tmp_path / "forced")
        assert not np.array_equal(forced.run({"x": data})["y"], expected)


def test_what_would_saturate_is_not_multiplied_in_int16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of 8 bits overflow the pairs of vpmaddubsw; forced, it is wrong."""
    case = CASES["8 bits on both sides, extreme"]
    data, expected, target = case.arrays()[0], case.expected(), load_target("x86-64-v3")
    monkeypatch.setattr(Dot, "cannot_saturate", lambda *_: True)
    (tmp_path / "forced").mkdir()
    forced = open_module(case.module(), target, tmp_path / "forced")
    assert "integer_conv" in forced.templates
    assert np.abs(forced.run({"x": data})["y"].astype(int) - expected).max() > 5


@pytest.mark.parametrize(
    ("pair", "largest", "fits"),
    [
        ((64, 64), 255, True),
        ((127, 1), 255, True),
        ((127, -128), 255, True),
        ((-64, -64), 255, True),
        ((65, 64), 255, False),
        ((-128, -1), 255, False),
        ((127, 127), 127, True),
    ],
)
def test_fits_is_the_exact_bound(pair: tuple[int, int], largest: int, fits: bool) -> None:
    dot = dot_of(load_target("x86-64-v3"))
    assert dot is not None
    sums = [largest * sum(w for w in pair if sign * w > 0) for sign in (1, -1)]
    assert all(-32768 <= total <= 32767 for total in sums) == fits
    weight = np.array([[1, 2, *pair]], np.int8)
    assert dot.cannot_saturate(weight, 1, largest=largest) == fits


@dataclass(frozen=True)
class Lowest(ConvCase):
    """All data are -128, and all weights one number."""

    number: int = -128

    def arrays(self) -> tuple[np.ndarray, ...]:  # type: ignore[override]
        data, weight, *others = super().arrays()
        return np.full_like(data, -128), np.full_like(weight, self.number), *others


def lowest(number: int, channels: int = 37, taps: int = 1, stride: int = 1) -> Lowest:
    """Return a convolution on int8 whose last groups of channels are left over."""
    padding = (taps // 2,) * 4
    return Lowest(
        [1, channels, 5, 4],
        [9, channels, taps, taps],
        attributes={"padding": padding, "strides": (stride, stride)},
        data=Code("int8", 0.02, 3),
        result=Code("int8", 0.5, 0),
        number=number,
    )


def test_values_that_meet_in_an_int16_on_arm() -> None:
    """Every second one: with neighbours taken for them, these two would be added."""
    dot = dot_of(load_target("rpi4"))
    assert dot is not None
    assert not dot.cannot_saturate(np.int8([[-128, 0, -128]]), 1, largest=127)
    assert dot.cannot_saturate(np.int8([[-128, -128, -127]]), 1, largest=127)
    assert dot.cannot_saturate(np.int8([[63, 0, 64, 0, 64, 0, 64, 127]]), 1, 2, largest=127)
    assert not dot.cannot_saturate(np.int8([[64, 0, 64, 0, 64, 0, 64]]), 1, 2, largest=127)


@pytest.mark.parametrize(
    ("case", "together"),
    [
        (lowest(-128, 8), 1),
        (lowest(-64), 1),
        (lowest(-63), 2),
        (lowest(-63, taps=3, stride=2), 2),
        (replace(lowest(-63, 20), transposed=True, weight=[20, 9, 3, 3]), 2),
    ],
)
def test_sums_in_int16_on_arm(case: Lowest, together: int, tmp_path: Path) -> None:
    """As many products as int16 holds: of two of 128 * 128 smull and smlal gave -32,768."""
    target = load_target("rpi4")
    template = "integer_conv_transpose" if case.transposed else "integer_conv"
    library = tmp_path / "model.so"
    program, signature = build_module(case.module(), target, library)
    (workload,) = (step.workload for step in program.steps if step.template == template)
    assert (f'"together":{together}' in workload) == (together > 1)
    found = run_emulated(library, target, signature, {"x": case.arrays()[0]})["y"]
    np.testing.assert_array_equal(found, case.expected())


def test_more_products_than_int16_holds_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test above is worth."""
    case = lowest(-64)
    monkeypatch.setattr(Dot, "cannot_saturate", lambda *_: True)
    found = run_case(case, load_target("rpi4"), "integer_conv", None, tmp_path)
    assert not np.array_equal(found, case.expected())
