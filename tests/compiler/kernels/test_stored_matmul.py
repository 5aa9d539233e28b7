"""Products with stored weights against NumPy: every format, group size and odd shape."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from integer_graphs import build_module, channel_constant, open_module
from kernel_runs import X86_TARGETS, random_decisions
from onnx_graphs import random
from tvm import relax

from edgec.compiler.operators import decode_weight
from edgec.compiler.passes.base import constant
from edgec.compiler.quantize.numerics import quantize_channels, quantize_groups, quantize_log2
from edgec.targets import load_target

op = relax.op


@dataclass(frozen=True)
class Case:
    """A product of [m, k] by [k, n] weights, then a bias and a ReLU."""

    m: int
    k: int
    n: int
    format: str
    group: int = 32
    symmetric: bool = True

    def weight(self) -> tuple[Any, Any, Any]:
        """What the weights stand for, stored, and a function that emits them."""
        floats = random(self.k, self.n, seed=self.k + self.n) / np.float32(self.k**0.5)
        if self.format in ("float16", "bfloat16"):
            kind = np.float16 if self.format == "float16" else ml_dtypes.bfloat16
            stored = floats.astype(kind)
            return stored.astype(np.float32), [stored], self._half
        if self.format == "int8":
            channel = quantize_channels(floats, 1, 127)
            return channel.values, [channel.codes, channel.scales], self._channel
        rows = np.ascontiguousarray(floats.T)
        if self.format == "log2":
            group = quantize_log2(rows, self.group)
            return group.values.T, [group.packed, group.scales], self._groups
        group = quantize_groups(rows, self.group, symmetric=self.symmetric)
        return group.values.T, [group.packed, group.scales, group.zero_points], self._groups

    def _half(self, builder: Any, stored: Any) -> Any:
        shape = (self.k, self.n)
        return builder.emit(decode_weight(constant(stored[0]), [], format="float", shape=shape))

    def _channel(self, builder: Any, stored: Any) -> Any:
        return channel_constant(builder, *stored, 1)

    def _groups(self, builder: Any, stored: Any) -> Any:
        codes, *parameters = map(constant, stored)
        kind, shape = self.format, (self.k, self.n)
        return builder.emit(
            decode_weight(
                codes, parameters, format=kind, shape=shape, group=self.group, rows_last=True
            )
        )

    def module(self) -> Any:
        x = relax.Var("x", relax.TensorType([self.m, self.k], "float32"))
        builder = relax.BlockBuilder()
        _, stored, emit = self.weight()
        with builder.function("main", [x]):
            with builder.dataflow():
                value = builder.emit(op.matmul(x, emit(builder, stored), out_dtype="float32"))
                value = builder.emit(op.add(value, constant(self.bias)))
                result = builder.emit_output(op.nn.relu(value))
            builder.emit_func_output(result)
        return builder.get()

    @property
    def bias(self) -> Any:
        return random(1, self.n, seed=3)

    def expected(self, x: Any) -> Any:
        """In float64."""
        values, _, _ = self.weight()
        return np.maximum(x.astype(np.float64) @ values.astype(np.float64) + self.bias, 0)

    def scale(self, x: Any) -> Any:
        """Size of what is summed, for each result."""
        values, _, _ = self.weight()
        return np.abs(x).astype(np.float64) @ np.abs(values) + np.abs(self.bias)


FORMATS = {
    "int8": ("int8", 32, True),
    "float16": ("float16", 32, True),
    "bfloat16": ("bfloat16", 32, True),
    "log2 32": ("log2", 32, True),
    "log2 128": ("log2", 128, True),
    **{
        f"int4 {group} {'symmetric' if symmetric else 'asymmetric'}": ("int4", group, symmetric)
        for group in (32, 64, 128)
        for symmetric in (True, False)
    },
}
# One row and several, one tile and many; short last groups, columns that are no whole vector.
SHAPES = ((1, 33, 5), (1, 256, 130), (3, 300, 37), (9, 129, 21), (70, 96, 40))


def errors(case: Case, found: Any, x: Any) -> float:
    """Largest error as a share of what is summed, in units of the last place of float32."""
    return float((np.abs(found - case.expected(x)) / case.scale(x)).max() / 2**-23)


@pytest.mark.parametrize("target", X86_TARGETS)
@pytest.mark.parametrize("name", FORMATS)
def test_equals_numpy(name: str, target: str, tmp_path: Path) -> None:
    for number, (m, k, n) in enumerate(SHAPES):
        case = Case(m, k, n, *FORMATS[name])
        for seed in (None, number):
            folder = tmp_path / f"{number}-{seed}"
            folder.mkdir()
            options = {} if seed is None else {"decide": random_decisions(seed)}
            built = open_module(case.module(), load_target(target), folder, **options)
            assert built.templates == ["stored_matmul"]
            x = random(m, k, seed=9)
            found = built.run({"x": x})["y"]
            assert found.max() > 0
            assert errors(case, found, x) < 8
            assert errors(case, found, x + np.float32(1e-3)) > 8
