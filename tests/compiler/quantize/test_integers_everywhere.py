"""One quantized network, the same bits on every target: the proof that nothing saturates."""

import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.onnx_graphs import make_model, node, random

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.boards.artifacts import emulation
from edgec.compiler.calibration.samples import SampleOptions
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.quantize.quantization_recipe import QuantizationRecipe
from edgec.compiler.runtime.session import why_not_here
from edgec.compiler.support.progress import Silent
from edgec.targets import load_target

HERE = [
    name
    for name in ("x86-64-v3", "x86-64-v4", "x86-64-v4-vnni")
    if not why_not_here(load_target(name))
]


def network() -> onnx.ModelProto:
    """Every operator that is computed on quantized values, with zero points that are not 0."""
    weights = {
        "w0": random(18, 3, 3, 3, seed=1),
        "b0": random(18, seed=2),
        "w1": random(18, 1, 5, 5, seed=3),
        "b1": random(18, seed=4),
        "w2": random(18, 18, 1, 1, seed=5) / 4,
        "b2": random(18, seed=6),
        "w3": random(12, 54, 3, 3, seed=7) / 8,
        "w4": random(12, 10, seed=8) / 4,
        "b4": random(10, seed=9),
        "w5": random(12, 6, 3, 3, seed=10) / 4,
        "w6": random(12, 12, 3, 3, seed=12) / 4,
        "scales": np.float32([1, 1, 2, 2]),
    }
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], strides=[2, 2], pads=[1] * 4),
        node("LeakyRelu", ["c0"], ["a0"], alpha=0.1),
        node("Conv", ["a0", "w1", "b1"], ["c1"], group=18, pads=[2] * 4),
        node("Relu", ["c1"], ["a1"]),
        node("Conv", ["a1", "w2", "b2"], ["c2"]),
        node("Add", ["c2", "a0"], ["s"]),
        node("GlobalAveragePool", ["s"], ["g0"]),
        node("Conv", ["g0", "w2"], ["g1"]),
        node("HardSigmoid", ["g1"], ["gate"]),
        node("Mul", ["s", "gate"], ["gated"]),
        node("MaxPool", ["gated"], ["m"], kernel_shape=[3, 3], pads=[1] * 4),
        node("Sigmoid", ["m"], ["sm"]),
        node("Concat", ["m", "s", "sm"], ["k"], axis=1),
        node("Resize", ["k", "", "scales"], ["r"]),
        node("Conv", ["r", "w3"], ["c3"], pads=[1] * 4),
        node("HardSwish", ["c3"], ["h3"]),
        node("Conv", ["h3", "w5"], ["c5"], group=2, pads=[2] * 4, dilations=[2, 2]),
        node("ConvTranspose", ["c5", "w6"], ["c6"], strides=[2, 2], pads=[1] * 4),
        node("AveragePool", ["c6"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["p"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "w4", "b4"], ["y"]),
    ]
    return make_model(nodes, {"x": [1, 3, 21, 19]}, ["y"], weights)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The model and its samples."""
    folder = tmp_path_factory.mktemp("source")
    onnx.save(network(), folder / "network.onnx")
    np.save(folder / "samples.npy", random(8, 3, 21, 19, seed=11))
    return folder / "network.onnx", folder / "samples.npy"


def compiled(source: tuple[Path, Path], target: str, folder: Path) -> Bundle:
    # Weights of 7 bits everywhere, so that all targets have the same quantized values.
    quantize = QuantizeOptions(recipe=QuantizationRecipe(weight_bits=7))
    options = CompileOptions(
        quantize=quantize, samples=SampleOptions(source=str(source[1])), runner=True
    )
    return compile_model(source[0], target, options, output=folder / f"{target}.edgec")


@pytest.fixture(scope="module")
def expected(
    source: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    """By the first target, after checks that the comparison is worth something."""
    bundle = compiled(source, HERE[-1], tmp_path_factory.mktemp("expected"))
    assert (record := bundle.manifest.quantization) is not None
    assert 15 < record.sqnr_db["y"] < 60
    found = {}
    for seed in range(3):
        x = random(1, 3, 21, 19, seed=20 + seed)
        found[str(seed)] = bundle.run({"x": x})["y"]
    assert not np.array_equal(found["0"], found["1"])
    return found


@pytest.mark.parametrize("target", [*HERE[:-1], "rpi4", "rpi5"])
def test_the_same_bits(
    target: str, source: tuple[Path, Path], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    bundle = compiled(source, target, tmp_path)
    library = (bundle.path / "model.so").read_bytes()
    assert b"integer_conv_transpose" in library
    assert b"integer_elementwise" in library
    assert b"integer_matmul" in library
    assert b"lookup" in library
    machine = load_target(target)
    prefix = () if target in HERE else emulation(machine, Silent()).command
    for seed, wanted in expected.items():
        np.save(tmp_path / "x.npy", random(1, 3, 21, 19, seed=20 + int(seed)))
        files = ["--input", str(tmp_path / "x.npy"), "--output", str(tmp_path / "y.npy")]
        command = [*prefix, str(bundle.path / "run"), *files]
        subprocess.run(command, check=True, capture_output=True, env={}, timeout=60)
        np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), wanted)


def products() -> onnx.ModelProto:
    """Two matrix products; of the second a row and some columns are beyond whole tiles."""
    weights = {"w0": random(24, 48, seed=1) / 4, "w1": random(48, 21, seed=2) / 4}
    nodes = [
        node("MatMul", ["x", "w0"], ["a"]),
        node("Relu", ["a"], ["b"]),
        node("MatMul", ["b", "w1"], ["y"]),
    ]
    return make_model(nodes, {"x": [13, 24]}, ["y"], weights)


def test_products_of_two_rows_and_columns(tmp_path: Path) -> None:
    """`smmla` under QEMU, bit for bit what vpmaddubsw or vpdpbusd gives."""
    source = (tmp_path / "products.onnx", tmp_path / "samples.npy")
    onnx.save(products(), source[0])
    np.save(source[1], random(52, 24, seed=3))
    x = random(13, 24, seed=4)
    np.save(tmp_path / "x.npy", x)
    wanted = compiled(source, HERE[-1], tmp_path).run({"x": x})["y"]
    assert len(np.unique(wanted)) > 50
    bundle = compiled(source, "armv8.6-i8mm", tmp_path)
    prefix = emulation(load_target("armv8.6-i8mm"), Silent()).command
    files = ["--input", str(tmp_path / "x.npy"), "--output", str(tmp_path / "y.npy")]
    command = [*prefix, str(bundle.path / "run"), *files]
    subprocess.run(command, check=True, capture_output=True, env={}, timeout=60)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), wanted)
