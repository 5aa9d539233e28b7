"""Products with packed weights against NumPy: every format, group size and odd shape."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support.integer_graphs import channel_constant, open_module
from support.kernel_runs import X86_TARGETS, random_decisions
from support.onnx_graphs import make_model, node, random, save
from tvm import relax

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.boards.artifacts import emulation
from edgec.compiler.ir.operators import decode_weight
from edgec.compiler.ir.relax_helpers import constant
from edgec.compiler.lowering.schedule import default_decide
from edgec.compiler.numerics.affine import quantize_channels, quantize_groups, quantize_log2
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.quantize.quantization_recipe import RECIPES, QuantizationRecipe
from edgec.compiler.support.progress import Silent
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
            packed_weight = floats.astype(kind)
            return packed_weight.astype(np.float32), [packed_weight], self._half
        if self.format == "int8":
            channel = quantize_channels(floats, 1, 127)
            return channel.values, [channel.quantized, channel.scales], self._channel
        rows = np.ascontiguousarray(floats.T)
        if self.format == "log2":
            group = quantize_log2(rows, self.group)
            return group.values.T, [group.packed, group.scales], self._groups
        group = quantize_groups(rows, self.group, symmetric=self.symmetric)
        return group.values.T, [group.packed, group.scales, group.zero_points], self._groups

    def _half(self, builder: Any, packed_weight: Any) -> Any:
        shape = (self.k, self.n)
        return builder.emit(
            decode_weight(constant(packed_weight[0]), [], format="float", shape=shape)
        )

    def _channel(self, builder: Any, packed_weight: Any) -> Any:
        return channel_constant(builder, *packed_weight, 1)

    def _groups(self, builder: Any, packed_weight: Any) -> Any:
        quantized, *parameters = map(constant, packed_weight)
        kind, shape = self.format, (self.k, self.n)
        return builder.emit(
            decode_weight(
                quantized, parameters, format=kind, shape=shape, group=self.group, rows_last=True
            )
        )

    def module(self) -> Any:
        x = relax.Var("x", relax.TensorType([self.m, self.k], "float32"))
        builder = relax.BlockBuilder()
        _, packed_weight, emit = self.weight()
        with builder.function("main", [x]):
            with builder.dataflow():
                value = builder.emit(
                    op.matmul(x, emit(builder, packed_weight), out_dtype="float32")
                )
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


def wrong(case: Case, run: Callable[[dict[str, Any]], dict[str, Any]]) -> str:
    """What is wrong with the results, the negative control included."""
    x = random(case.m, case.k, seed=9)
    found = run({"x": x})["y"]
    assert found.max() > 0
    if errors(case, found, x) > 8:
        return f"{case}: {errors(case, found, x)} units off"
    noticed = errors(case, found, x + np.float32(1e-3)) > 8
    return "" if noticed else f"{case}: other inputs are not noticed"


@pytest.mark.parametrize("target", X86_TARGETS)
@pytest.mark.parametrize("name", FORMATS)
def test_equals_numpy(name: str, target: str, tmp_path: Path) -> None:
    # The same default or random tiles for all shapes would leave some untried.
    for number, (m, k, n) in enumerate(SHAPES):
        case = Case(m, k, n, *FORMATS[name])
        decide = random_decisions(number) if number % 2 else default_decide
        folder = tmp_path / str(number)
        folder.mkdir()
        built = open_module(case.module(), load_target(target), folder, decide)
        assert built.templates == ["stored_matmul"]
        assert not wrong(case, built.run)


INT4 = QuantizationRecipe(activations="float", weights="int4")
ASYMMETRIC = INT4.model_copy(update={"weight_group": 64, "symmetric_weights": False})
ELSEWHERE = {
    "rpi4 int4 asymmetric": ASYMMETRIC,
    "rpi5 int4": INT4,
    "rpi5 log2": RECIPES["log2"],
    "rpi4 fp16": RECIPES["fp16"],
    "riscv64 fp16": RECIPES["fp16"],
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_equals_the_reference_on_other_processors(name: str, tmp_path: Path) -> None:
    target, recipe = name.split()[0], ELSEWHERE[name]
    weights = {"v": random(129, 37) / 12, "w": random(37, 21, seed=1) / 6}
    nodes = [
        node("MatMul", ["x", "v"], ["a"]),
        node("ReduceMax", ["a"], ["b"], axes=[0]),
        node("MatMul", ["b", "w"], ["y"]),
    ]
    model = make_model(nodes, {"x": (9, 129)}, ["y"], weights)
    path = save(model, tmp_path)
    options = CompileOptions(quantize=QuantizeOptions(recipe=recipe, repair=False), runner=True)
    bundle = compile_model(path, target, options, output=tmp_path / "y.edgec")
    assert (bundle.path / "model.so").read_bytes().count(b"stored_matmul") >= 2
    command = [*emulation(load_target(target), Silent()).command, str(bundle.path / "run")]
    done = subprocess.run(
        [*command, "--verify"], check=True, capture_output=True, env={}, timeout=60
    )
    report = json.loads(done.stdout)
    assert report["passed"]
    assert 0 < report["verify"][0]["of_allowed"] < 1
