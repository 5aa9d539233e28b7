"""An instruction set that only this file knows: what it multiplies, and that mistakes show."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from support.integer_graphs import Array, Code, ConvCase, open_module
from support.kernel_runs import LoadedKernels
from tvm import tirx

from edgec.compiler import CompileOptions, compile_model, verify_bundle
from edgec.compiler.calibration.samples import SampleOptions
from edgec.compiler.errors import ParityError
from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.isa import ISAS, Dot, Generic, Isa, isa_of
from edgec.compiler.kernels.isa.dot import one_by_one
from edgec.compiler.kernels.isa.x86 import X86
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.quantize.quantization_recipe import RECIPES
from edgec.compiler.runtime.session import why_not_here
from edgec.targets import Target, load_target
from edgec.targets.isa import INSTRUCTION_SETS

# Runs here, but is not described by any file: vectors of 8 lanes without instructions for integers.
TOY = Target(
    name="toy",
    description="a toy",
    triple="x86_64-linux-gnu",
    cpu="x86-64-v3",
    vector_bits=256,
    vector_registers=16,
    clock_ghz=1,
    integer_dot="generic",
    cores=2,
    l1d_kib=32,
    l2_kib=256,
    memory_mib=1024,
)
pytestmark = pytest.mark.skipif(bool(why_not_here(TOY)), reason=why_not_here(TOY))

CASES = {
    "3x3": ConvCase(
        [1, 20, 9, 11], [37, 20, 3, 3], attributes={"padding": (1, 1, 1, 1)}, relu=True
    ),
    "8 bits, extreme": ConvCase([1, 64, 5, 5], [16, 64, 3, 3], largest=127, extreme=True),
    "hard swish": ConvCase(
        [1, 40, 9, 11],
        [37, 40, 3, 3],
        attributes={"padding": (1, 1, 1, 1)},
        result=Code("uint8", 0.03, 20),
        swish=True,
    ),
    "SiLU": ConvCase([1, 20, 5, 6], [9, 20, 1, 1], result=Code("uint8", 0.03, 10), silu=True),
    "depthwise": ConvCase(
        [1, 20, 9, 8], [20, 1, 3, 3], groups=20, attributes={"padding": (1, 1, 1, 1)}
    ),
    "transposed": ConvCase(
        [2, 20, 7, 6],
        [20, 19, 4, 4],
        attributes={"strides": (2, 2), "padding": (1, 1, 1, 1)},
        transposed=True,
    ),
}
KERNELS = {"depthwise": "integer_depthwise", "transposed": "integer_conv_transpose"}


def register(monkeypatch: pytest.MonkeyPatch, isa: Callable[[Target], Isa], dtype: str) -> None:
    """Make an instruction set that of the toy alone, and its quantized activations of a dtype."""
    others = ISAS["x86_64"]
    monkeypatch.setitem(ISAS, "x86_64", lambda t: (isa if t.name == TOY.name else others)(t))
    known = INSTRUCTION_SETS["x86_64"]
    monkeypatch.setitem(INSTRUCTION_SETS, "x86_64", replace(known, activation_dtype=dtype))


class Toy(Generic):
    """No instruction of its own."""


class Forgetful(Generic):
    """Leaves out the last three products of each group."""

    def dot(self) -> Dot | None:
        right = super().dot()
        assert right is not None
        mask = tirx.const(0xFF, "int32")

        def add(acc: Any, x: tuple[Any, ...], w: Any) -> Any:
            first = tirx.Broadcast(mask, int(acc.ty.dtype.lanes))
            return right.add(acc, [x], [w & first])

        return replace(right, add=one_by_one(add))


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("name", CASES)
def test_equals_integers(
    name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, Toy, dtype)
    case = CASES[name] if dtype == "uint8" else CASES[name].signed()
    # Eight lanes, or four.
    target = TOY.model_copy(update={"vector_bits": 256 if dtype == "uint8" else 128})
    built = open_module(case.module(), target, tmp_path)
    assert [t for t in built.templates if t != "pack"] == [KERNELS.get(name, "integer_conv")]
    expected = case.expected()
    np.testing.assert_array_equal(built.run({"x": case.arrays()[0]})["y"], expected)


def test_without_its_instructions_a_target_stays_in_floats() -> None:
    floats = TOY.model_copy(update={"integer_dot": "none"})
    assert isa_of(floats).dot() is None
    assert floats.why_in_floats == "no instruction of the target multiplies int8"
    scalar = TOY.model_copy(update={"vector_bits": 0})
    assert isa_of(scalar).dot() is None
    assert "generic of x86_64 with vectors of 32 bits" in scalar.why_in_floats
    assert isa_of(TOY).dot() is not None
    assert TOY.why_in_floats == ""


@pytest.mark.parametrize("name", ["x86-64-v2", "riscv64", "rpi3-32bit"])
def test_targets_that_stay_in_floats_say_so(name: str) -> None:
    target = load_target(name)
    assert target.why_in_floats
    assert isa_of(target).dot() is None


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_int8_digits(
    dtype: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It compiles at once, is exact, and what multiplies wrongly is refused."""
    samples = tmp_path / "digits.npy"
    np.save(samples, (load_digits().images[:40] / 16).astype(np.float32)[:, None])
    options = CompileOptions(
        shapes={"image": (1, 1, 8, 8)},
        samples=SampleOptions(source=str(samples)),
        quantize=QuantizeOptions(recipe=RECIPES["int8"]),
    )
    register(monkeypatch, Toy, dtype)
    bundle = compile_model(digits, TOY, options, output=tmp_path / "right.edgec")
    steps = {step.template for step in bundle.open().steps()}
    assert {"integer_conv", "integer_matmul"} <= steps
    assert not {"conv", "matmul"} & steps
    assert verify_bundle(bundle, model=digits).passed
    register(monkeypatch, Forgetful, dtype)
    with pytest.raises(ParityError):
        compile_model(digits, TOY, options, output=tmp_path / "wrong.edgec")


def _words(*shape: int) -> Array:
    """Ends, what is next to them, and random numbers of int16."""
    random = np.random.default_rng(3).integers(-(2**15) + 1, 2**15, shape, np.int16)
    random.reshape(-1)[:8] = [2**15 - 1, -(2**15) + 1, 0, -1, 1, 2**14, -(2**14), 2**15 - 2]
    return random


def _sums(*shape: int) -> Array:
    """Ends of int16 and int32, and random numbers between."""
    random = np.random.default_rng(4).integers(-(2**18), 2**18, shape, np.int32)
    random.reshape(-1)[:6] = [2**15 - 1, 2**15, -(2**15), -(2**15) - 1, 2**31 - 1, -(2**31)]
    return random


def _run(
    isa: Isa, folder: Path, inputs: Sequence[Array], write: Callable[[Isa, list[Any]], Any]
) -> Array:
    """Bytes that an operation gives of vectors, one from each input."""
    e = Emitter(load_target("x86-64-v3"))
    buffers = [e.buffer(f"x{i}", a.size, str(a.dtype)) for i, a in enumerate(inputs)]
    count = len(inputs[0])
    with e.tasks() as task:
        values = [
            e.let("x", e.load(buffer, task * array.shape[1], array.shape[1]))
            for buffer, array in zip(buffers, inputs, strict=True)
        ]
        result = write(isa, values)
        lanes, dtype = int(result.ty.dtype.lanes), str(result.ty.dtype.with_lanes(1))
        output = e.buffer("y", count * lanes, dtype)
        e.store(output, task * lanes, result)
    folder.mkdir()
    run = LoadedKernels({"operation": Kernel(e.function("operation"), count)}, "x86-64-v3", folder)
    size = count * lanes * np.dtype(dtype).itemsize // 4
    raw = [array.reshape(-1).view(np.float32) for array in inputs]
    return run("operation", *raw, size=size).view(dtype)


OPERATIONS: dict[str, tuple[Sequence[Array], Callable[[Isa, list[Any]], Any]]] = {
    "narrow_pair": ([_sums(16, 8), _sums(16, 8)[::-1]], lambda isa, x: isa.narrow_pair(x)),
    "multiply_high_rounded": (
        [_words(16, 16), _words(16, 16)[::-1]],
        lambda isa, x: isa.multiply_high_rounded(*x),
    ),
    "narrow one": (
        [_sums(16, 8) & 255],
        lambda isa, x: isa.narrow(x, "uint8"),
    ),
    "narrow four": (
        [(_sums(16, 8) >> shift) & 255 for shift in range(4)],
        lambda isa, x: isa.narrow(x, "uint8"),
    ),
    "narrow_rounded one": (
        [_words(16, 16) >> 3],
        lambda isa, x: isa.narrow_rounded(x, 4, "uint8", [0, 4]),
    ),
    "narrow_rounded, no fraction": (
        [_words(16, 16), _words(16, 16) >> 7],
        lambda isa, x: isa.narrow_rounded(x, 0, "uint8", [0, 4, 1, 5, 2, 6, 3, 7]),
    ),
    "narrow_rounded, in order": (
        [_words(16, 16), _words(16, 16) >> 2],
        lambda isa, x: isa.narrow_rounded(x, 7, "uint8", [0, 1, 4, 5, 2, 3, 6, 7]),
    ),
    "dot": (
        [_sums(16, 8) >> 4, _words(16, 16).view(np.int32), _words(16, 16)[::-1].view(np.int32)],
        lambda isa, x: _wide(isa).add(x[0], [x[1]], [x[2]]),
    ),
}


def _wide(isa: Isa) -> Dot:
    """What multiplies any weights."""
    dot = isa.dot()
    assert dot is not None
    return dot.exact_fallback or dot


@pytest.mark.parametrize("name", OPERATIONS)
def test_gives_what_instructions_give(name: str, tmp_path: Path) -> None:
    inputs, write = OPERATIONS[name]
    inputs = [np.ascontiguousarray(array) for array in inputs]
    machine = load_target("x86-64-v3")
    found = _run(Generic(TOY), tmp_path / "generic", inputs, write)
    expected = _run(X86(machine), tmp_path / "x86", inputs, write)
    assert len(np.unique(expected)) > 20
    np.testing.assert_array_equal(found, expected)
