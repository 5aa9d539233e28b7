"""Products of int8 activations by grouped weights: bit-identical to NumPy."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.integer_graphs import Array, open_module
from support.onnx_graphs import random
from tvm import IRModule, relax

from edgec.compiler.ir.operators import grouped_matmul
from edgec.compiler.ir.relax_helpers import constant
from edgec.compiler.numerics.grouped_product import grouped_product, quantize_rows
from edgec.compiler.runtime.session import why_not_here
from edgec.targets import load_target

NAMES = ("x86-64-v4-vnni", "x86-64-v4", "x86-64-v3")
TARGETS = [name for name in NAMES if not why_not_here(load_target(name))]


@dataclass(frozen=True)
class Case:
    """A product [m, k] by [k, n], then a bias."""

    m: int
    k: int
    n: int
    bits: int = 4
    group: int = 32
    scales: str = "float16"
    zeros: str = ""

    def weights(self) -> tuple[Array, Array, Array | None]:
        """Return codes uint8 [n, groups, group], scales and zero points [n, groups]."""
        numbers = np.random.default_rng(self.k + self.n)
        groups = -(-self.k // self.group)
        codes = numbers.integers(0, 1 << self.bits, (self.n, groups, self.group), np.uint8)
        codes[0] = (1 << self.bits) - 1
        codes[-1] = 0
        scales = (0.01 + numbers.random((self.n, groups))).astype(self.scales)
        zeros = numbers.integers(0, 1 << self.bits, (self.n, groups), np.uint8)
        if not self.zeros:
            return codes, scales, None
        # Eighths are exact in every sum.
        return codes, scales, zeros if self.zeros == "uint8" else (zeros / 8).astype(self.zeros)

    def module(self) -> IRModule:
        codes, scales, zeros = self.weights()
        packed = codes if self.bits == 8 else codes[..., ::2] | codes[..., 1::2] << 4
        x = relax.Var("x", relax.TensorType([self.m, self.k], "float32"))
        builder = relax.BlockBuilder()
        with builder.function("main", [x]):
            with builder.dataflow():
                value = builder.emit(
                    grouped_matmul(
                        x,
                        constant(packed.reshape(self.n, -1)),
                        constant(scales),
                        None if zeros is None else constant(zeros),
                        bits=self.bits,
                        group=self.group,
                    )
                )
                result = builder.emit_output(relax.op.multiply(value, constant(self.factor)))
            builder.emit_func_output(result)
        return builder.get()

    @property
    def factor(self) -> Array:
        """Return powers of two of each column."""
        return (2.0 ** (np.arange(self.n) % 3)).astype(np.float32)[np.newaxis]

    def data(self) -> Array:
        """Return rows with a group of zeros, and one of a single large value."""
        x = random(self.m, self.k, seed=9)
        x[0, : self.group] = 0
        x[-1, -1] = 1000
        return x

    def expected(self, x: Array) -> Array:
        codes, scales, zeros = self.weights()
        points = np.full(scales.shape, 1 << self.bits - 1) if zeros is None else zeros
        return grouped_product(quantize_rows(x, self.group), codes, scales, points) * self.factor


# One row, few, many; a short last group, columns that are no whole vector, one tile and several.
CASES = [
    Case(1, 64, 70),
    Case(1, 300, 5, group=16, scales="float32", zeros="uint8"),
    Case(3, 256, 33, group=128, zeros="float16"),
    Case(21, 96, 75, zeros="uint8"),
    Case(9, 530, 21, group=256),
    Case(1, 64, 70, bits=8, zeros="uint8"),
    Case(2, 100, 37, bits=8),
    Case(13, 96, 40, bits=8, group=16, zeros="float32"),
    Case(10, 512, 33, bits=8, group=256, scales="float32"),
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_numpy(case: Case, target: str, tmp_path: Path) -> None:
    built = open_module(case.module(), load_target(target), tmp_path)
    assert built.templates == ["quantize_rows", "grouped_product"]
    x = case.data()
    found = built.run({"x": x})["y"]
    np.testing.assert_array_equal(found, case.expected(x))
    x[0, -1] *= np.float32(1.5)
    assert (found != case.expected(x)).any()
