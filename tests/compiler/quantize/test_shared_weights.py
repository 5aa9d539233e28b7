"""Weights that several operators share are stored once, as integers too."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from support.contexts import model_context
from support.onnx_graphs import make_model, node, random

from edgec.compiler.backend import pack
from edgec.compiler.calibration.samples import samples_from_tensors
from edgec.compiler.codegen.build import write_sources
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.program import Program
from edgec.compiler.lowering.legalize import lower
from edgec.compiler.lowering.schedule import schedule_program
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.quantize.plan import plan_quantization
from edgec.compiler.quantize.quantization_recipe import RECIPES
from edgec.compiler.quantize.quantizer import quantize_model
from edgec.compiler.quantize.shared_weights import shared_weights

SIZE = 64
WEIGHTS = {"w": random(SIZE, SIZE, seed=1), "v": random(SIZE, SIZE, seed=2)}
X = np.abs(random(4, 2, SIZE, seed=3))


def layers(first: str, second: str) -> list[Any]:
    """Two products, whose inputs are of another kind."""
    return [
        node("MatMul", ["x", first], ["a"]),
        node("Sigmoid", ["a"], ["b"]),
        node("MatMul", ["b", second], ["y"]),
    ]


def stored_bytes(nodes: Sequence[Any], recipe: str, folder: Path) -> int:
    """Size of the constants that a bundle's library holds."""
    model = canonical_model(make_model(nodes, {"x": [2, SIZE]}, ["y"], WEIGHTS))
    samples = samples_from_tensors({"x": X.reshape(-1, SIZE)}, model.signature.inputs)
    context = model_context(model.signature, samples, target="x86-64-v4-vnni")
    options = QuantizeOptions(recipe=recipe)
    quantized = quantize_model(model.module, options, context, "sha")
    target = context.target
    program = schedule_program(
        lower(pack(quantized.module, target), target), target, model.signature
    )
    assert isinstance(program, Program)
    write_sources([program], target, folder)
    return (folder / "weights.bin").stat().st_size


def test_a_shared_weight_is_stored_once(tmp_path: Path) -> None:
    shared = stored_bytes(layers("w", "w"), "int8", tmp_path)
    assert SIZE * SIZE <= shared < 1.6 * SIZE * SIZE
    # Another weight of the same size is another store.
    assert stored_bytes(layers("w", "v"), "int8", tmp_path) > shared + 0.9 * SIZE * SIZE


def test_groups_have_equal_values_and_equal_treatment() -> None:
    other = WEIGHTS["w"].copy()
    other[-1, -1] += 1
    weights = {**WEIGHTS, "copy": WEIGHTS["w"].copy(), "other": other, "bias": random(SIZE)}
    values = ("x", "p0", "p1", "p2", "p3", "p4")
    names = ("w", "copy", "other", "v", "w")
    nodes = [
        node("MatMul", [read, name], [given])
        for read, name, given in zip(values[:-1], names, values[1:], strict=True)
    ]
    nodes.append(node("Add", ["p4", "bias"], ["y"]))
    model = canonical_model(make_model(nodes, {"x": [2, SIZE]}, ["y"], weights))
    plan = plan_quantization(Graph(model.module, model.value_names), RECIPES["int8"])
    groups = shared_weights(plan.graph, plan.weighted())
    assert [[operator.name for operator in group] for group in groups] == [
        ["p0", "p1"],
        ["p2"],
        ["p3"],
        ["y"],
    ]
