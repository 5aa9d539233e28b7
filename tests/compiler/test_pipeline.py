from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.onnx_graphs import make_model, node, random, save
from tvm import IRModule, relax

import edgec.compiler.pipeline as pipeline
from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.errors import (
    ParityError,
    TensorInputError,
    UnsupportedModelError,
    UsageError,
)
from edgec.compiler.frontend import canonical
from edgec.compiler.frontend.simplify import simplify
from edgec.compiler.ir.relax_helpers import constant, value_of
from edgec.compiler.passes import CANONICALIZE
from edgec.compiler.passes.base import CallRewriter, Pass

SHAPES = {"image": (1, 1, 8, 8)}


def test_runs_and_is_right(digits_bundle: Path, digits: Path) -> None:
    bundle = Bundle.load(digits_bundle)
    image = np.random.default_rng(3).random((1, 1, 8, 8), np.float32)
    from edgec.compiler.parity.oracle import run_original

    expected = run_original(digits, {"image": image})["logits"]
    np.testing.assert_allclose(bundle.run({"image": image})["logits"], expected, atol=1e-4)


def test_classifies_real_digits(digits_bundle: Path) -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    bundle = Bundle.load(digits_bundle)
    images = (data.images[-100:] / 16).astype(np.float32)
    answers = [bundle.run({"image": image[None, None]})["logits"].argmax() for image in images]
    assert np.mean(answers == data.target[-100:]) > 0.95


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"image \[1,1,8,8\] float32 is missing"),
        ({"imagee": random(1, 1, 8, 8)}, "imagee is no input; did you mean image?"),
        ({"image": random(1, 8, 8)}, r"image \[1,8,8\] float32 was given, image \[1,1,8,8\]"),
        ({"image": random(1, 1, 8, 8).astype(np.float64)}, "float64 was given"),
    ],
    ids=["missing", "name", "shape", "dtype"],
)
def test_wrong_inputs(digits_bundle: Path, inputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(TensorInputError, match=message):
        Bundle.load(digits_bundle).run(inputs)


def test_input_in_any_memory_layout(digits_bundle: Path) -> None:
    bundle = Bundle.load(digits_bundle)
    image = random(1, 1, 8, 8)
    strided = np.zeros((1, 1, 16, 8), np.float32)[:, :, ::2]
    strided[...] = image
    unaligned = np.frombuffer(b"\0" * 3 + image.tobytes(), np.float32, offset=3)
    results = [
        bundle.run({"image": variant})["logits"]
        for variant in (image, strided, unaligned.reshape(image.shape))
    ]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_compiling_again_to_the_same_place_runs_the_new_code(tmp_path: Path) -> None:
    x = {"x": random(1, 4)}
    outputs = []
    for operator in ("Relu", "Neg"):
        path = save(make_model([node(operator, ["x"], ["y"])], {"x": [1, 4]}, ["y"]), tmp_path)
        outputs.append(compile_model(path, output=tmp_path / "same.edgec").run(x)["y"])
    np.testing.assert_array_equal(outputs[0], np.maximum(x["x"], 0))
    np.testing.assert_array_equal(outputs[1], -x["x"])


@relax.expr_functor.mutator
class _Damage(CallRewriter):
    def rewrite(self, call: relax.Call) -> relax.Expr | None:
        weight = value_of(call.args[1]) if len(call.args) > 1 else None
        if call.op.name != "relax.nn.conv2d" or weight is None or weight.shape[0] != 32:
            return None
        weight = weight.copy()
        weight[0, 0, 1, 1] += 0.1
        return relax.Call(call.op, [call.args[0], constant(weight)], call.attrs)


@dataclass(frozen=True)
class DamageOneWeight(Pass):
    """The negative control: one weight of the second convolution is off."""

    def apply(self, module: IRModule) -> IRModule:
        return _Damage(module).run()


def test_a_damaged_weight_fails_and_is_located(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canonical, "CANONICALIZE", (*CANONICALIZE, DamageOneWeight()))
    output = tmp_path / "bad.edgec"
    with pytest.raises(
        ParityError,
        match=r"logits: .*first value that is off after canonicalize is norm1 \(.*Batch",
    ):
        compile_model(digits, options=CompileOptions(shapes=SHAPES), output=output)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_simplification_is_located(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every later stage agrees with the damaged graph, so the comparison begins before them."""

    def damage(*arguments: Any) -> onnx.ModelProto:
        model = simplify(*arguments)
        tensor = next(item for item in model.graph.initializer if len(item.dims) == 4)
        weight = numpy_helper.to_array(tensor).copy()
        weight[0] += 0.5
        tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
        return model

    monkeypatch.setattr(canonical, "simplify", damage)
    with pytest.raises(ParityError, match=r"; the simplified graph is off already: logits"):
        compile_model(digits, options=CompileOptions(shapes=SHAPES), output=tmp_path / "bad.edgec")


def test_stages_are_checked_on_request(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = CompileOptions(shapes=SHAPES, check_stages=True)
    compile_model(digits, options=options, output=tmp_path / "good.edgec")
    monkeypatch.setattr(canonical, "CANONICALIZE", (*CANONICALIZE, DamageOneWeight()))
    with pytest.raises(ParityError, match="parity failed after canonicalize"):
        compile_model(digits, options=options, output=tmp_path / "bad.edgec")


def test_parity_off_is_recorded(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canonical, "CANONICALIZE", (*CANONICALIZE, DamageOneWeight()))
    options = CompileOptions(shapes=SHAPES, parity=False)
    bundle = compile_model(digits, options=options, output=tmp_path / "unchecked.edgec")
    assert bundle.manifest.parity.checked_on == "nothing"


def test_dump_writes_every_phase_and_the_times(digits: Path, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    options = CompileOptions(shapes=SHAPES, dump=dump)
    compile_model(digits, options=options, output=tmp_path / "x.edgec")
    names = {path.name for path in dump.iterdir()}
    assert {
        "01-read.onnx",
        "02-specialize.onnx",
        "03-simplify.onnx",
        "04-import.py",
        "05-canonicalize.py",
        "07-pack.py",
        "08-lower.py",
    } <= names
    assert {"09-schedule.py", "times.txt"} <= names
    assert "batch_norm" in (dump / "04-import.py").read_text()
    assert "batch_norm(" not in (dump / "05-canonicalize.py").read_text()
    assert sum(file.stat().st_size for file in dump.glob("*.onnx")) < 20_000
    rows = (dump / "times.txt").read_text().splitlines()
    assert [row.split()[0] for row in rows] == [
        *(p for p in pipeline.PHASES if p not in ("compress", "quantize", "exits", "expect")),
        "total",
    ]


def test_dump_with_weights(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--dump-weights needs --dump"):
        CompileOptions(dump_weights=True)
    dump = tmp_path / "dump"
    options = CompileOptions(shapes=SHAPES, dump=dump, dump_weights=True, parity=False)
    compile_model(digits, options=options, output=tmp_path / "x.edgec")
    image = {"image": np.random.default_rng(0).random((1, 1, 8, 8), np.float32)}
    from edgec.compiler.parity.oracle import run_original

    results = [run_original(file, image)["logits"] for file in (digits, dump / "03-simplify.onnx")]
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-5)
    assert "Metadata omitted" not in (dump / "07-pack.py").read_text()


def test_own_test_inputs(digits: Path, tmp_path: Path) -> None:
    image = np.full((1, 1, 8, 8), 0.5, np.float32)
    options = CompileOptions(shapes=SHAPES, inputs={"image": image})
    bundle = compile_model(digits, options=options, output=tmp_path / "x.edgec")
    np.testing.assert_array_equal(bundle.vectors()[0][0]["image"], image)


@pytest.mark.parametrize("target", ["rpi3", "rpi3-32bit", "rpi5", "riscv64", "x86-64-v2"])
def test_other_targets(digits: Path, tmp_path: Path, target: str) -> None:
    options = CompileOptions(shapes=SHAPES)
    bundle = compile_model(digits, target, options, output=tmp_path / "x.edgec")
    here = target.startswith("x86")
    assert bundle.manifest.parity.checked_on == ("target" if here else "host")
    machine = {"rpi3": 183, "rpi3-32bit": 40, "rpi5": 183, "riscv64": 243, "x86-64-v2": 62}
    elf = bundle.library.read_bytes()
    assert elf[:4] == b"\x7fELF"
    assert int.from_bytes(elf[18:20], "little") == machine[target]


def test_all_unsupported_operators_in_one_message(tmp_path: Path) -> None:
    nodes = [
        node("Gizmo", ["x"], ["a"], domain="acme"),
        node("Gizmo", ["a"], ["b"], domain="acme"),
        node("Relu", ["b"], ["c"]),
        node("Widget", ["c"], ["y"], domain="acme"),
    ]
    path = save(make_model(nodes, {"x": [1, 4]}, ["y"]), tmp_path)
    options = CompileOptions(parity=False)
    with pytest.raises(
        UnsupportedModelError,
        match=r"^3 nodes cannot be compiled: acme::Gizmo \(a, b\): .*; acme::Widget \(y\): ",
    ):
        compile_model(path, options=options, output=tmp_path / "x.edgec")


@pytest.mark.parametrize("opset", [7, 11, 13, 18, 22])
def test_a_convolutional_block_in_every_era(tmp_path: Path, opset: int) -> None:
    """The operators whose definition moved between attributes and inputs over the years."""
    bounds = {"min": 0.0, "max": 6.0} if opset < 11 else {}
    clip_inputs = ["c"] if opset < 11 else ["c", "zero", "six"]
    axes = {"axes": [2]} if opset < 13 else {}
    squeeze_inputs = ["p"] if opset < 13 else ["p", "axis"]
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4, kernel_shape=[3, 3]),
        node("Clip", clip_inputs, ["r"], **bounds),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Squeeze", squeeze_inputs, ["s"], **axes),
        node("Softmax", ["s"], ["y"], axis=1),
    ]
    weights: dict[str, np.ndarray] = {"w": random(8, 3, 3, 3), "b": random(8)}
    if opset >= 11:
        weights |= {"zero": np.float32(0).reshape(()), "six": np.float32(6).reshape(())}
    if opset >= 13:
        weights["axis"] = np.array([2])
    path = save(make_model(nodes, {"x": [1, 3, 9, 9]}, ["y"], weights, opset=opset), tmp_path)
    bundle = compile_model(path, output=tmp_path / "x.edgec")
    assert bundle.manifest.parity.max_error["y"] < 1e-5


def test_nothing_warns_of_infinities(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of weights: a product that overflows, and a variance of 0. Warnings are errors in tests."""
    nodes = [
        node("Mul", ["large", "large"], ["infinite"]),
        node("Min", ["infinite", "one"], ["ones"]),
        node("BatchNormalization", ["x", "one", "zero", "zero", "zero"], ["n"], epsilon=0.0),
        node("Mul", ["n", "ones"], ["y"]),
    ]
    weights = {
        "large": np.float32([1e30]),
        "one": np.float32([1]),
        "zero": np.float32([0]),
    }
    model = save(make_model(nodes, {"x": [1, 1, 4]}, ["y"], weights), tmp_path)
    compile_model(model, options=CompileOptions(parity=False), output=tmp_path / "x.edgec")
    assert capfd.readouterr().err == ""
