"""Activations whose scales each run computes, in products of quantized values."""

from pathlib import Path

import numpy as np
import pytest
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.numerics.affine import quantize_channels
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.quantize.quantization_recipe import RECIPES
from edgec.compiler.runtime.session import why_not_here
from edgec.targets import load_target

NAMES = ("x86-64-v4-vnni", "x86-64-v3")
TARGETS = [name for name in NAMES if not why_not_here(load_target(name))]
WEIGHT = random(64, 37, seed=1)
BIAS = random(37, seed=2)


@pytest.fixture(scope="module", params=TARGETS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("dynamic")
    nodes = [node("MatMul", ["x", "w"], ["p"]), node("Add", ["p", "b"], ["y"])]
    model = make_model(nodes, {"x": (21, 64)}, ["y"], {"w": WEIGHT, "b": BIAS})
    quantize = QuantizeOptions(recipe=RECIPES["int8-dynamic"], repair=False)
    options = CompileOptions(quantize=quantize)
    return compile_model(save(model, folder), request.param, options, output=folder / "y.edgec")


def expected(x: np.ndarray, target: str) -> np.ndarray:
    """Quantized values of both sides, in NumPy."""
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = (high - low) / 255 or 1
    zero = np.rint(-low / scale)
    quantized = np.clip(np.rint(x / scale) + zero, 0, 255) - zero
    # Sums of what meets in an int16 are bounded where there is no VNNI.
    weight = quantize_channels(WEIGHT, 1, 127, None if "vnni" in target else 0)
    return scale * quantized @ (weight.quantized * weight.scales.astype(np.float64)) + BIAS


@pytest.mark.parametrize(("factor", "shift"), [(1, 0), (30, 0), (1, 5), (1, -9), (0, 0)])
def test_equals_numpy(bundle: Bundle, factor: float, shift: float) -> None:
    assert b"integer_matmul" in (bundle.path / "model.so").read_bytes()
    x = (random(21, 64, seed=7) * np.float32(factor) + np.float32(shift)).astype(np.float32)
    found = bundle.run({"x": x})["y"]
    wanted = expected(x.astype(np.float64), bundle.manifest.target.name)
    # A value between two quantized values may go to either: that moves a few results by a step.
    off = np.abs(found - wanted) / max(1e-6, np.abs(wanted).max())
    assert np.median(off) < 1e-5
    assert off.max() < 0.01
    floats = x @ WEIGHT + BIAS
    if factor:
        assert np.median(np.abs(found - floats)) > 10 * np.median(np.abs(found - wanted))


def test_the_range_is_found_wherever_its_ends_are(tmp_path: Path) -> None:
    """Every position of the smallest and the largest value, whole vectors and rest."""
    size = 5003
    nodes = [
        node("ReduceMin", ["x"], ["low"], keepdims=0),
        node("ReduceMax", ["x"], ["high"], keepdims=0),
    ]
    path = save(make_model(nodes, {"x": (size,)}, ["low", "high"], {}), tmp_path)
    bundle = compile_model(path, "x86-64-v3", output=tmp_path / "y.edgec")
    assert b"extreme" in (bundle.path / "model.so").read_bytes()
    session = bundle.open()
    for place in range(0, size, 7):
        x = random(size, seed=3)
        x[place], x[-1 - place] = -9, 8
        found = session.run({"x": x})
        assert (float(found["low"]), float(found["high"])) == (x.min(), x.max())
