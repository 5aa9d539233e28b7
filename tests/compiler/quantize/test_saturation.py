"""The saturation mode of each operator, for the int16 accumulators of AVX2."""

import json
from typing import Any

import numpy as np
import onnx
import pytest
from support.onnx_graphs import make_model, node, random

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.calibration.samples import SampleOptions
from edgec.compiler.numerics.affine import quantize_channels
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.quantize.quantization_recipe import QuantizationRecipe, resolve
from edgec.compiler.quantize.saturation import GAIN_DB, NEEDS_DB, _choice
from edgec.targets import load_target


def alike(outputs: int, inputs: int, seed: int) -> Any:
    """Weights of one sign: what meets in an int16 adds up."""
    return 0.2 + np.abs(random(outputs, inputs, 3, 3, seed=seed)) / 10


def network() -> onnx.ModelProto:
    # One large weight in each int16.
    lone = np.where(np.arange(16) % 8, 0.02, 1).astype(np.float32).reshape(1, 16, 1, 1)
    weights = {
        "alike": alike(16, 16, 1),
        "lone": random(16, 16, 3, 3, seed=2) * lone,
        "shared": alike(16, 16, 3),
        "last": random(16, 16, 1, 1, seed=4),
    }
    pads = {"pads": [1] * 4}
    nodes = [
        node("Conv", ["x", "alike"], ["a"], **pads),
        node("Sigmoid", ["a"], ["b"]),
        node("Conv", ["b", "lone"], ["c"], **pads),
        node("Sigmoid", ["c"], ["d"]),
        node("Conv", ["d", "shared"], ["e"], **pads),
        node("Add", ["e", "d"], ["f"]),
        node("Conv", ["f", "last"], ["y"]),
    ]
    return make_model(nodes, {"x": [1, 16, 12, 12]}, ["y"], weights)


@pytest.fixture(scope="module")
def operators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the report says of each operator, by name."""
    folder = tmp_path_factory.mktemp("sides")
    onnx.save(network(), folder / "network.onnx")
    np.save(folder / "samples.npy", np.random.default_rng(9).random((4, 16, 12, 12), np.float32))
    quantize = QuantizeOptions(recipe=QuantizationRecipe(), report=folder / "report.json")
    samples = SampleOptions(source=str(folder / "samples.npy"))
    options = CompileOptions(quantize=quantize, samples=samples)
    # Against the reference, which knows nothing of int16: what saturates would be noticed.
    bundle = compile_model(folder / "network.onnx", "x86-64-v3", options, output=folder / "n.edgec")
    assert b"integer_conv" in (bundle.path / "model.so").read_bytes()
    report = json.loads((folder / "report.json").read_text())
    return {operator["name"]: operator for operator in report["operators"]}


def test_the_input_gives_up_a_bit_where_weights_would_lose_more(operators: dict[str, Any]) -> None:
    found = operators["b"]
    assert found["gives_up_bits"] == "activations"
    assert found["side_sqnr_db"]["activations"] > found["side_sqnr_db"]["weights"] + GAIN_DB


def test_weights_give_up_bits_where_that_costs_little(operators: dict[str, Any]) -> None:
    assert operators["d"]["gives_up_bits"] == "weights"


def test_a_value_that_others_read_keeps_its_bits(operators: dict[str, Any]) -> None:
    found = next(o for name, o in operators.items() if name in ("e", "f"))
    assert found["side_sqnr_db"]["activations"] > found["side_sqnr_db"]["weights"] + GAIN_DB
    assert found["gives_up_bits"] == "weights"


def test_both_keep_8_bits_where_either_costs_too_much() -> None:
    def choice(weights: float, narrow: float) -> str:
        """Noise of each side alone: 8 bits give 45 dB."""
        full = 10**-4.5
        return _choice(
            {"weights": 10 ** (-weights / 10), "activations": full},
            {"weights": full, "activations": 10 ** (-narrow / 10)},
        ).mode

    assert choice(NEEDS_DB - 1, NEEDS_DB - 2) == "none"
    assert choice(NEEDS_DB + 2, NEEDS_DB - 2) == "weights"
    assert choice(NEEDS_DB - 2, NEEDS_DB + 2) == "activations"
    # Nothing is won where 8 bits are hardly better.
    assert choice(45 - GAIN_DB / 2, 42) == "weights"


@pytest.mark.parametrize(
    ("recipe", "target", "chooses"),
    [
        (QuantizationRecipe(), "x86-64-v3", True),
        (QuantizationRecipe(), "x86-64-v4-vnni", False),
        (QuantizationRecipe(), "rpi5", False),
        (QuantizationRecipe(weight_bits=7), "x86-64-v3", False),
        (QuantizationRecipe(activation_bits=7), "x86-64-v3", False),
        (QuantizationRecipe(activations="dynamic"), "x86-64-v3", False),
    ],
)
def test_who_chooses(recipe: QuantizationRecipe, target: str, chooses: bool) -> None:
    assert resolve(recipe, load_target(target)).chooses == chooses


def test_weights_of_one_sign_lose_bits_to_sums() -> None:
    """What the network above relies on."""
    weight = alike(16, 16, 1).astype(np.float32)
    free, kept = quantize_channels(weight, 0, 127), quantize_channels(weight, 0, 127, 1)
    assert np.all(kept.scales > 2 * free.scales)
