"""Products of int8 activations by grouped weights: bit-identical to NumPy."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from support.integer_graphs import Array, build_module, open_module
from support.kernel_runs import X86_TARGETS
from support.onnx_graphs import make_model, node, random, save
from tvm import IRModule, relax

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.boards.artifacts import emulation
from edgec.compiler.ir.operators import grouped_matmul, grouped_take
from edgec.compiler.ir.relax_helpers import constant
from edgec.compiler.numerics.grouped_codes import GroupForm, Numbers, pack_codes
from edgec.compiler.numerics.grouped_product import grouped_product, quantize_rows
from edgec.compiler.runtime.session import why_not_here
from edgec.compiler.support.progress import Silent
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
    scales: Numbers = "float16"
    zeros: bool = False
    minima: Numbers | Literal[""] = ""

    @property
    def form(self) -> GroupForm:
        return GroupForm(self.bits, self.group, self.scales, self.zeros, self.minima)

    def arrays(self) -> dict[str, Array]:
        """Return codes uint8 [n, groups, group], and what groups and units have."""
        numbers = np.random.default_rng(self.k + self.n)
        groups = -(-self.k // self.group)
        codes = numbers.integers(0, 1 << self.bits, (self.n, groups, self.group), np.uint8)
        codes[0] = (1 << self.bits) - 1
        codes[-1] = 0
        found = {"codes": codes}
        if self.zeros:
            found["zeros"] = numbers.integers(0, 1 << self.bits, (self.n, groups), np.uint8)
        for kind, name, units in (
            (self.scales, "scales", "scale_units"),
            (self.minima, "minima", "minimum_units"),
        ):
            if kind == "int8":
                found[name] = numbers.integers(-128, 128, (self.n, groups), np.int8)
                shared = (self.n, groups * self.group // 256)
                found[units] = (0.01 + numbers.random(shared)).astype(np.float16)
            elif kind:
                found[name] = (0.01 + numbers.random((self.n, groups))).astype(kind)
        return found

    def numbers(self, name: str, units: str) -> Array:
        arrays = self.arrays()
        if units not in arrays:
            return arrays[name]
        wide = np.repeat(arrays[units], 256 // self.group, axis=1).astype(np.float32)
        return arrays[name] * wide

    def weights(self) -> tuple[Array, Array, Array, Array | None]:
        """Return codes uint8 [n, groups, group]; scales, zero points, minima [n, groups]."""
        arrays, scales = self.arrays(), self.numbers("scales", "scale_units")
        if self.minima:
            none = np.zeros(scales.shape, np.uint8)
            return arrays["codes"], scales, none, self.numbers("minima", "minimum_units")
        middle = np.full(scales.shape, 1 << self.bits - 1)
        return arrays["codes"], scales, arrays.get("zeros", middle), None

    def operands(self) -> list[Any]:
        """Return the arrays of the form as constants."""
        arrays = self.arrays()
        arrays["codes"] = pack_codes(arrays["codes"].reshape(self.n, -1), self.bits)
        return [constant(arrays[name]) for name in self.form.names]

    def module(self) -> IRModule:
        x = relax.Var("x", relax.TensorType([self.m, self.k], "float32"))
        builder = relax.BlockBuilder()
        with builder.function("main", [x]):
            with builder.dataflow():
                value = builder.emit(grouped_matmul(x, self.operands(), self.form))
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
        return grouped_product(quantize_rows(x, self.group), *self.weights()) * self.factor


# One row, few, many; a short last group, columns that are no whole vector, one tile and several.
CASES = [
    Case(1, 64, 70),
    Case(1, 300, 5, group=16, scales="float32", zeros=True),
    Case(3, 256, 33, group=128, minima="float16"),
    Case(21, 96, 75, zeros=True),
    Case(9, 530, 21, group=256),
    Case(1, 64, 70, bits=8, zeros=True),
    Case(2, 100, 37, bits=8),
    Case(13, 96, 40, bits=8, group=16, minima="float32"),
    Case(10, 512, 33, bits=8, group=256, scales="float32"),
    Case(1, 512, 37, bits=4, scales="int8", minima="int8"),
    Case(5, 256, 37, bits=6, group=16, scales="int8"),
    Case(2, 256, 21, bits=2, group=16, scales="int8", minima="int8"),
    Case(1, 96, 21, bits=3),
    Case(6, 96, 21, bits=5, minima="float16"),
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


def test_packed_weights_do_not_depend_on_rows(tmp_path: Path) -> None:
    """Programs of different numbers of rows, and a table of the same values, share them."""
    constants = []
    for rows in (1, 64):
        case = Case(rows, 96, 75, zeros=True)
        program, _ = build_module(case.module(), load_target("native"), tmp_path / f"{rows}.so")
        constants.append([a.array for a in program.steps[-1].arguments if a.array is not None])
    for one, other in zip(*constants, strict=True):
        np.testing.assert_array_equal(one, other)
    assert [len(each) for each in constants] == [4, 4]


@pytest.mark.parametrize("target", X86_TARGETS)
def test_rows_of_a_table_are_looked_up(target: str, tmp_path: Path) -> None:
    cases = (
        Case(1, 96, 75, zeros=True),
        Case(1, 80, 37, 8, 16),
        Case(1, 256, 37, 6, 16, scales="int8"),
        Case(1, 64, 21, 5),
    )
    for number, case in enumerate(cases):
        codes, scales, points, _ = case.weights()
        indices = np.array([[3, case.n - 1, -2, 0]], np.int64)
        given = relax.Var("x", relax.TensorType(indices.shape, "int64"))
        builder = relax.BlockBuilder()
        with builder.function("main", [given]):
            with builder.dataflow():
                rows = builder.emit(grouped_take(given, case.operands(), case.form, case.k))
                result = builder.emit_output(rows)
            builder.emit_func_output(result)
        machine = load_target(target)
        folder = tmp_path / str(number)
        folder.mkdir()
        built = open_module(builder.get(), machine, folder)
        generic = bool(machine.why_in_floats)
        assert built.templates == ["generic" if generic else "grouped_embedding"]
        middles = points[..., np.newaxis].astype(np.float32)
        values = (codes.astype(np.float32) - middles) * scales[..., np.newaxis].astype(np.float32)
        floats = values.astype(np.float32).reshape(case.n, -1)[:, : case.k]
        np.testing.assert_array_equal(built.run({"x": indices})["y"], floats[indices])


def test_targets_without_integers_compute_in_floats(tmp_path: Path) -> None:
    """4 bits are unpacked to floats; 8 bits run the definition as generic code."""
    for bits, template in ((4, "stored_matmul"), (8, "generic")):
        case = Case(3, 96, 21, bits, scales="float32")
        folder = tmp_path / str(bits)
        folder.mkdir()
        built = open_module(case.module(), load_target("x86-64-v2"), folder)
        assert template in built.templates
        x = case.data()
        found, expected = built.run({"x": x})["y"], case.expected(x)
        noise = np.square(found - expected).sum() / np.square(expected).sum()
        assert noise < (1e-3 if bits == 4 else 1e-12)


def test_arithmetic_without_instructions(tmp_path: Path) -> None:
    target = load_target("x86-64-v3").model_copy(update={"integer_dot": "generic"})
    for case in (Case(2, 64, 21, zeros=True), Case(5, 64, 21, bits=8)):
        built = open_module(case.module(), target, tmp_path)
        x = case.data()
        np.testing.assert_array_equal(built.run({"x": x})["y"], case.expected(x))


ELSEWHERE = (
    Case(9, 96, 37, zeros=True),
    Case(9, 96, 21, bits=8),
    Case(1, 96, 37),
    Case(1, 96, 68, zeros=True),
    Case(1, 96, 70, minima="float32"),
    Case(9, 96, 37, minima="float32"),
)


def network() -> onnx.ModelProto:
    """Products of many rows and of one, and rows of a table, one behind the other."""
    nodes, weights, parts = [], {}, []
    nodes.append(node("ReduceMax", ["x"], ["most"], axes=[0], keepdims=1))
    for number, case in enumerate(ELSEWHERE):
        codes, scales, _, _ = case.weights()
        zeros, floats = case.arrays().get("zeros"), case.arrays().get("minima")
        packed = codes if case.bits == 8 else codes[..., ::2] | codes[..., 1::2] << 4
        names = [f"b{number}", f"s{number}"]
        weights.update(zip(names, (packed, scales.astype(np.float32)), strict=True))
        if zeros is not None:
            names.append(f"z{number}")
            padded = np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))
            weights[names[-1]] = padded[:, ::2] | padded[:, 1::2] << 4
        if floats is not None:
            names.append(f"z{number}")
            weights[names[-1]] = -floats
        inputs = ["most" if case.m == 1 else "x", *names]
        attributes = {"K": case.k, "N": case.n, "bits": case.bits, "block_size": case.group}
        product = {"domain": "com.microsoft", "accuracy_level": 4}
        nodes.append(node("MatMulNBits", inputs, [f"p{number}"], **product, **attributes))
        parts.append(f"p{number}")
    nodes.append(node("ArgMax", ["x"], ["rows"], axis=0, keepdims=0))
    table = [*weights["b1"].shape[:1], -1]
    weights["t"] = weights["b1"].reshape(table)
    gather = {"domain": "com.microsoft", "block_size": 32, "bits": 8}
    nodes.append(node("GatherBlockQuantized", ["t", "rows", "s1"], ["g"], **gather))
    weights["flat"] = np.array([1, -1])
    flat = []
    for name in (*parts, "g"):
        nodes.append(node("Reshape", [name, "flat"], [f"{name}_flat"]))
        flat.append(f"{name}_flat")
    nodes.append(node("Concat", flat, ["y"], axis=1))
    return make_model(nodes, {"x": [9, 96]}, ["y"], weights)


@pytest.mark.parametrize("target", ["rpi4", "rpi5"])
def test_equals_numpy_on_other_processors(target: str, tmp_path: Path) -> None:
    options = CompileOptions(runner=True)
    bundle = compile_model(save(network(), tmp_path), target, options, output=tmp_path / "m.edgec")
    x = np.tile(random(1, 96, seed=5), (9, 1)) + random(9, 96, seed=6)
    np.save(tmp_path / "x.npy", x)
    prefix = emulation(load_target(target), Silent()).command
    files = ["--input", str(tmp_path / "x.npy"), "--output", str(tmp_path / "y.npy")]
    command = [*prefix, str(bundle.path / "run"), *files]
    subprocess.run(command, check=True, capture_output=True, env={}, timeout=60)
    found = np.load(tmp_path / "y.npy").reshape(-1)
    expected = []
    for case in ELSEWHERE:
        rows = x if case.m > 1 else x.max(axis=0, keepdims=True)
        codes, scales, zeros, minima = case.weights()
        scales = scales.astype(np.float32)
        minima = None if minima is None else minima * scales
        expected.append(grouped_product(quantize_rows(rows, 32), codes, scales, zeros, minima))
    codes, scales, _, _ = ELSEWHERE[1].weights()
    values = (codes.astype(np.float32) - 128) * scales[..., np.newaxis].astype(np.float32)
    expected.append(values.reshape(21, -1)[x.argmax(axis=0)])
    np.testing.assert_array_equal(found, np.concatenate([each.reshape(-1) for each in expected]))
    # One code that is off by one is seen.
    codes, scales, zeros, _ = ELSEWHERE[0].weights()
    codes[0, 0, 0] ^= 1
    other = grouped_product(quantize_rows(x, 32), codes, scales.astype(np.float32), zeros)
    assert (found[: other.size] != other.reshape(-1)).any()


def test_a_normalization_quantizes_its_rows(tmp_path: Path) -> None:
    """The codes are those of the normalized floats; who reads these too gets them."""
    case, gamma = Case(2, 80, 37), random(80, seed=7)
    x = relax.Var("x", relax.TensorType([2, 80], "float32"))
    found, templates = {}, {}
    for name in ("one", "two"):
        builder = relax.BlockBuilder()
        with builder.function("main", [x]):
            with builder.dataflow():
                norm = builder.emit(relax.op.nn.rms_norm(x, constant(gamma), axes=[1]))
                if name == "two":
                    # Doubled halves are the same floats, of another kernel.
                    two = constant(np.array(2, np.float32))
                    norm = builder.emit(relax.op.divide(relax.op.multiply(norm, two), two))
                value = grouped_matmul(norm, case.operands(), case.form)
                result = builder.emit_output(value)
            builder.emit_func_output(result)
        folder = tmp_path / name
        folder.mkdir()
        built = open_module(builder.get(), load_target("native"), folder)
        found[name], templates[name] = built.run({"x": case.data()})["y"], built.templates
    assert templates["one"] == ["quantize_normalized", "grouped_product"]
    assert templates["two"] == ["rows", "elementwise", "quantize_rows", "grouped_product"]
    np.testing.assert_array_equal(found["one"], found["two"])
    assert np.abs(found["one"]).max() > 0
