"""Graphs that return constants and inputs, and biases behind variables: every recipe takes them."""

from pathlib import Path

import numpy as np
import pytest
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.calibration.samples import SampleOptions, samples_from_tensors
from edgec.compiler.compress.compression_recipe import load_compression
from edgec.compiler.compress.options import CompressOptions
from edgec.compiler.ir.signature import TensorSpec
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.quantize.quantization_recipe import load_recipe

ANCHORS = random(6, 4, seed=9)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Transposed convolutions with biases, in groups or not, and outputs that nothing computes."""
    weights = {
        "w0": random(64, 8, 3, 3, seed=1) / 8,
        "b0": random(64, seed=2),
        "wc": random(16, 64, 3, 3, seed=7) / 16,
        "w1": random(16, 8, 2, 2, seed=3) / 4,
        "b1": random(8, seed=4),
        "w2": random(8, 4, 3, 3, seed=5) / 8,
        "b2": random(8, seed=6),
        "anchors": ANCHORS,
    }
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "wc"], ["d"], pads=[1, 1, 1, 1]),
        node("ConvTranspose", ["d", "w1", "b1"], ["u"], strides=[2, 2]),
        node("ConvTranspose", ["u", "w2", "b2"], ["y"], group=2, pads=[1, 1, 1, 1]),
    ]
    model = make_model(nodes, {"x": [1, 8, 6, 6]}, ["y"], weights)
    # The same names as of an input and an initializer; one of them twice.
    for name, shape in (("x", (1, 8, 6, 6)), ("anchors", (6, 4)), ("y", ())):
        value = model.graph.output.add(name=name)
        value.type.tensor_type.elem_type = 1
        if name == "y":
            value.CopyFrom(model.graph.output[0])
        for extent in shape:
            value.type.tensor_type.shape.dim.add().dim_value = extent
    return save(model, tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def exact(network: Path) -> Bundle:
    return compile_model(network, output=network.parent / "exact.edgec")


def samples() -> SampleOptions:
    data = np.stack([random(8, 6, 6, seed=seed) for seed in range(8)])
    return SampleOptions(
        source=samples_from_tensors({"x": data}, [TensorSpec("x", (1, 8, 6, 6), "float32")])
    )


def check(bundle: Bundle, exact: Bundle, bound: float) -> None:
    data = random(1, 8, 6, 6, seed=42)
    found, expected = bundle.run({"x": data}), exact.run({"x": data})
    assert list(found) == ["y", "x", "anchors"]
    np.testing.assert_array_equal(found["x"], data)
    np.testing.assert_array_equal(found["anchors"], ANCHORS)
    error = np.linalg.norm(found["y"] - expected["y"]) / np.linalg.norm(expected["y"])
    # Neither as if nothing had been changed nor as if the bias were lost.
    assert 0 < error < bound


@pytest.mark.parametrize(
    ("recipe", "bound"),
    [
        ("int8", 0.05),
        ("int8-dynamic", 0.05),
        ("int8-weight-only", 0.02),
        ("int4-weight-only", 0.2),
        ("fp16", 1e-2),
        ("log2", 0.6),
        ("codebook-16", 0.2),
    ],
)
def test_quantize(network: Path, exact: Bundle, tmp_path: Path, recipe: str, bound: float) -> None:
    options = CompileOptions(
        quantize=QuantizeOptions(recipe=load_recipe(recipe)), samples=samples()
    )
    check(compile_model(network, options=options, output=tmp_path / "out.edgec"), exact, bound)


@pytest.mark.parametrize("recipe", ["channels-50", "sparse-50"])
def test_compress(network: Path, exact: Bundle, tmp_path: Path, recipe: str) -> None:
    options = CompileOptions(
        compress=CompressOptions(recipe=load_compression(recipe)), samples=samples()
    )
    check(compile_model(network, options=options, output=tmp_path / "out.edgec"), exact, 1.0)
