"""Convolutions with packed weights: what the quantized graph gives by TVM's own code."""

from pathlib import Path

import pytest
from support.onnx_graphs import make_model, node, random, save
from support.tampered import Tampered

from edgec.compiler import CompileOptions, compile_model, verify_bundle
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.quantize.quantization_recipe import RECIPES

WEIGHTS = {
    "a": random(18, 3, 3, 3) / 4,
    "b": random(18, 1, 3, 3, seed=1) / 2,
    "c": random(37, 18, 1, 1, seed=2) / 4,
    "d": random(20, 37, 3, 3, seed=3) / 16,
    "e": random(20, 10, 3, 3, seed=4) / 8,
    "f": random(20, 12, 2, 2, seed=5) / 4,
    "bias": random(37, seed=6),
}


@pytest.mark.parametrize("target", ["native", "x86-64-v2", "rpi4"])
@pytest.mark.parametrize("name", ["int8-weight-only", "int4-weight-only", "log2", "fp16", "bf16"])
def test_every_kind_of_convolution(name: str, target: str, tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "a"], ["v"], pads=[1] * 4, strides=[2, 2]),
        node("Conv", ["v", "b"], ["w"], pads=[1] * 4, group=18),
        node("Conv", ["w", "c", "bias"], ["p"]),
        node("Relu", ["p"], ["q"]),
        node("Conv", ["q", "d"], ["r"], pads=[1] * 4),
        node("Conv", ["r", "e"], ["s"], group=2),
        node("ConvTranspose", ["s", "f"], ["y"], strides=[2, 2]),
    ]
    path = save(make_model(nodes, {"x": (1, 3, 19, 17)}, ["y"], WEIGHTS), tmp_path)
    quantize = QuantizeOptions(recipe=RECIPES[name], repair=False)
    bundle = compile_model(path, target, CompileOptions(quantize=quantize), output=tmp_path / "b")
    library = (bundle.path / "model.so").read_bytes()
    assert library.count(b"generic") == 0
    record = bundle.manifest.quantization
    assert record is not None
    # It is the rounded weights that are computed with.
    assert record.sqnr_db["y"] < 80
    assert bundle.manifest.parity.checked_on in ("target", "host")
    if bundle.manifest.parity.checked_on == "target":
        assert verify_bundle(bundle).passed
        louder = Tampered(lambda x: {k: v * 1.001 for k, v in bundle.run(x).items()})
        assert not verify_bundle(bundle, session=louder).passed
