"""Sums and gates on quantized values: bit-identical to NumPy integers, and near real numbers."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from support.integer_graphs import Array, Code, open_module
from tvm import IRModule, relax

from edgec.compiler.kernels.integer_elementwise import LEAST_FRACTION, accumulator_fraction
from edgec.compiler.runtime.session import why_not_here
from edgec.targets import load_target

op = relax.op
NAMES = ("x86-64-v4", "x86-64-v3")
TARGETS = [name for name in NAMES if not why_not_here(load_target(name))]


@dataclass(frozen=True)
class Case:
    """An image plus another, or times a gate for each channel.

    Attributes:
        shape: [N, C, H, W].
        quantized: of the image, the other operand and the result.
        gated: whether the other operand is a gate.
        relu: whether one follows.
    """

    shape: tuple[int, int, int, int]
    quantized: tuple[Code, Code, Code]
    gated: bool = False
    relu: bool = False

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of both operands."""
        return self.shape, (*self.shape[:2], 1, 1) if self.gated else self.shape

    def arrays(self) -> dict[str, Array]:
        random = np.random.default_rng(7)
        return {
            name: random.integers(0, 256, shape).astype(np.uint8)
            for name, shape in zip("ab", self.shapes, strict=True)
        }

    def module(self) -> IRModule:
        parameters = [
            relax.Var(name, relax.TensorType(list(shape), "uint8"))
            for name, shape in zip("ab", self.shapes, strict=True)
        ]
        builder = relax.BlockBuilder()
        with builder.function("main", parameters):
            with builder.dataflow():
                # Windows of one pixel: what comes out is blocked.
                left, right = (
                    builder.emit(op.nn.max_pool2d(quantized.dequantize(builder, parameter)))
                    for quantized, parameter in zip(self.quantized, parameters, strict=False)
                )
                value = builder.emit((op.multiply if self.gated else op.add)(left, right))
                if self.relu:
                    value = builder.emit(op.nn.relu(value))
                result = builder.emit_output(self.quantized[2].quantize(builder, value))
            builder.emit_func_output(result)
        return builder.get()

    def exact(self) -> Array:
        """Quantized values before they are rounded and clipped, in float64."""
        left, right = (
            (array.astype(np.float64) - code.zero_point) * float(np.float32(code.scale))
            for array, code in zip(self.arrays().values(), self.quantized, strict=False)
        )
        value = left * right if self.gated else left + right
        value = np.maximum(value, 0) if self.relu else value
        return value / float(np.float32(self.quantized[2].scale)) + self.quantized[2].zero_point

    def expected(self) -> Array:
        """The arithmetic that `integer_elementwise` states, on int64."""
        scales = [float(np.float32(code.scale)) for code in self.quantized]
        left, right = (
            array.astype(np.int64) - code.zero_point
            for array, code in zip(self.arrays().values(), self.quantized, strict=False)
        )
        zero = self.quantized[2].zero_point
        if self.gated:
            factor = scales[0] / scales[2] * scales[1]
            largest = max(255 - self.quantized[1].zero_point, self.quantized[1].zero_point)
            fraction = accumulator_fraction([factor * largest])
            assert fraction is not None
            by = np.rint(right.astype(np.float32) * np.float32(factor * 2 ** (8 + fraction)))
            total = ((left << 7) * by.astype(np.int64) + 2**14) >> 15
        else:
            factors = [scale / scales[2] for scale in scales[:2]]
            fraction = accumulator_fraction(factors)
            assert fraction is not None
            total = sum(
                ((value << 7) * round(factor * 2 ** (8 + fraction)) + 2**14) >> 15
                for value, factor in zip((left, right), factors, strict=True)
            )
        quantized = (total + (zero << fraction) + (1 << (fraction - 1))) >> fraction
        return np.clip(quantized, zero if self.relu else 0, 255).astype(np.uint8)


# No scale is a multiple of another: half a code is rare.
SUM = Case(
    (1, 20, 9, 11), (Code("uint8", 0.0203, 128), Code("uint8", 0.031, 7), Code("uint8", 0.04, 90))
)
GATE = Case(
    (2, 20, 6, 7),
    (Code("uint8", 0.02, 12), Code("uint8", 1 / 255, 0), Code("uint8", 0.015, 9)),
    gated=True,
)
CASES = {
    "sum": SUM,
    "sum, relu": replace(SUM, relu=True),
    "sum of few": replace(SUM, shape=(1, 8, 2, 2)),
    "sum, ends of all ranges": replace(
        SUM,
        quantized=(Code("uint8", 0.02, 255), Code("uint8", 0.02, 0), Code("uint8", 0.01, 255)),
    ),
    "sum of many": replace(SUM, shape=(1, 33, 31, 37)),
    "gate": GATE,
    "gate, relu": replace(GATE, relu=True),
    "gate of both signs": replace(
        GATE, quantized=(GATE.quantized[0], Code("uint8", 0.01, 100), GATE.quantized[2])
    ),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_equals_integers(name: str, target: str, tmp_path: Path) -> None:
    case = CASES[name]
    built = open_module(case.module(), load_target(target), tmp_path)
    assert built.templates.count("integer_elementwise") == 1
    assert "elementwise" not in built.templates
    expected = case.expected()
    assert len(np.unique(expected)) > 50 or case.shape[2] == 2
    np.testing.assert_array_equal(built.run(case.arrays())["y"], expected)


@pytest.mark.parametrize("name", CASES)
def test_codes_are_those_of_real_numbers(name: str) -> None:
    case = CASES[name]
    exact = np.clip(case.exact(), 0, 255)
    assert np.abs(case.expected() - exact).max() < 0.5 + 2 * 2.0**-LEAST_FRACTION
    assert np.mean(case.expected() != np.rint(exact)) < 0.1


def test_a_scale_that_is_off_shows(tmp_path: Path) -> None:
    """The comparison sees a zero point that is off by one."""
    code = SUM.quantized[1]
    other = replace(
        SUM, quantized=(SUM.quantized[0], replace(code, zero_point=8), SUM.quantized[2])
    )
    built = open_module(other.module(), load_target(TARGETS[-1]), tmp_path)
    assert not np.array_equal(built.run(SUM.arrays())["y"], SUM.expected())


def test_too_large_a_factor_stays_float(tmp_path: Path) -> None:
    """A code of an operand is worth a hundred of the result."""
    assert accumulator_fraction([100.0]) is None
    case = replace(SUM, quantized=(Code("uint8", 4.0, 128), *SUM.quantized[1:]))
    built = open_module(case.module(), load_target(TARGETS[-1]), tmp_path)
    assert "elementwise" in built.templates
    values = np.rint(np.clip(case.exact(), 0, 255))
    assert np.abs(built.run(case.arrays())["y"] - values).max() <= 1
