"""Tables of embeddings: int8 rows under recipes of integers, dequantized where they are read."""

import json
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from support.contexts import model_context
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import Bundle, CompileOptions, QuantizeOptions, SampleOptions, compile_model
from edgec.compiler.calibration.samples import samples_from_tensors
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.ir.graph import Graph
from edgec.compiler.numerics.affine import ChannelWeight, sqnr_db
from edgec.compiler.parity.oracle import run_original
from edgec.compiler.quantize.encode import HalfWeight, quantize_numbers
from edgec.compiler.quantize.plan import plan_quantization
from edgec.compiler.quantize.quantization_recipe import (
    RECIPES,
    Override,
    QuantizationRecipe,
    resolve,
)
from edgec.compiler.quantize.quantizer import quantize_model
from edgec.targets import load_target

ROWS, WIDTH = 1024, 64
WEIGHTS = {
    "words": random(ROWS, WIDTH, seed=1) * np.linspace(0.1, 9, ROWS, dtype=np.float32)[:, None],
    "types": random(4, WIDTH, seed=2),
    "w": random(WIDTH, 8, seed=3),
}
NODES = [
    node("Gather", ["words", "ids"], ["word"]),
    node("Gather", ["types", "kinds"], ["type"]),
    node("Add", ["word", "type"], ["sum"]),
    node("MatMul", ["sum", "w"], ["y"]),
]
MODEL = make_model(
    NODES,
    {"ids": [1, 5], "kinds": [1, 5]},
    ["y"],
    WEIGHTS,
    dtypes={"ids": TensorProto.INT64, "kinds": TensorProto.INT64},
)
IDS = np.random.default_rng(0).integers(0, ROWS, (8, 5))
SAMPLES = {"ids": IDS, "kinds": IDS % 4}
INPUTS = {name: array[:1] for name, array in SAMPLES.items()}
TABLE_BYTES = ROWS * WIDTH


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, dict[str, Any]]:
    """An int8 bundle, verified against the quantized graph, and its report."""
    folder = tmp_path_factory.mktemp("embeddings")
    np.savez(folder / "samples.npz", **SAMPLES)
    options = CompileOptions(
        quantize=QuantizeOptions(recipe="int8", report=folder / "report.json"),
        samples=SampleOptions(source=str(folder / "samples.npz")),
        inputs=INPUTS,
    )
    bundle = compile_model(save(MODEL, folder), options=options, output=folder / "m.edgec")
    return bundle, json.loads((folder / "report.json").read_text())


def test_a_table_is_stored_as_int8(made: tuple[Bundle, dict[str, Any]]) -> None:
    bundle, _ = made
    size = bundle.manifest.files["model.so"].size_bytes
    # As floats it alone would have four bytes for each value.
    assert TABLE_BYTES < size < 3 * TABLE_BYTES
    exact = run_original(MODEL, INPUTS)["y"]
    assert 25 < sqnr_db(exact, bundle.run(INPUTS)["y"]) < 60
    other = bundle.run({"ids": (IDS[:1] + 1) % ROWS, "kinds": IDS[:1] % 4})["y"]
    assert sqnr_db(exact, other) < 5


def test_the_reports_say_so(made: tuple[Bundle, dict[str, Any]]) -> None:
    bundle, report = made
    record = bundle.manifest.quantization
    assert record is not None
    why = "rows of its int8 table become floats as they are read"
    assert record.float_fallbacks["word"] == f"embedding: {why}"
    # Too small to be worth it.
    assert record.float_fallbacks["type"] == "take: it has no integer kernel"
    (row,) = [o for o in report["operators"] if o["kind"] == "embedding"]
    assert (row["name"], row["keep"]) == ("word", "weight-only")
    assert row["weight_sqnr_db"] > 35
    assert row["alone_sqnr_db"] > 30


@pytest.mark.parametrize(
    ("recipe", "format"),
    [
        (RECIPES["int8-dynamic"], ChannelWeight),
        (RECIPES["int8-weight-only"], ChannelWeight),
        (RECIPES["int4-weight-only"], ChannelWeight),
        (RECIPES["fp16"], HalfWeight),
        (QuantizationRecipe(override=(Override(operator="embedding", keep="float"),)), None),
        (QuantizationRecipe(override=(Override(match="word", keep="float"),)), None),
    ],
)
def test_recipes(recipe: QuantizationRecipe, format: type | None) -> None:
    model = canonical_model(MODEL)
    plan = plan_quantization(Graph(model.module, model.value_names), recipe)
    ranges = {plan.graph.names[v]: (-1.0, 1.0) for v in plan.tensors}
    numbers = quantize_numbers(plan, resolve(recipe, load_target("x86-64-v3")), ranges)
    weight = numbers.weights.get("word")
    assert weight is None if format is None else isinstance(weight, format)
    if isinstance(weight, ChannelWeight):
        # A scale for each row, and all 8 bits of each.
        assert weight.scales.shape == (ROWS,)
        assert np.all(np.abs(weight.quantized).max(axis=1) == 127)


def test_a_table_returns_to_float_to_reach_a_bar() -> None:
    model = canonical_model(MODEL)
    samples = samples_from_tensors(SAMPLES, model.signature.inputs)
    context = model_context(model.signature, samples, value_names=model.value_names)
    options = QuantizeOptions(recipe="int8-weight-only", repair=False, min_sqnr_db=80)
    quantized = quantize_model(model.module, options, context, "sha")
    assert "word" in quantized.kept_float
    assert quantized.accuracy is not None
    assert quantized.accuracy.sqnr_db >= 80
