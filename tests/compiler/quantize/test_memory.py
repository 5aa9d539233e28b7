"""Calibration and repair keep one batch at a time, however many there are."""

import tracemalloc
from collections.abc import Iterator

import pytest
from support.onnx_graphs import make_model, node, random

from edgec.compiler.backend import evaluate_here
from edgec.compiler.calibration.float_model import FloatModel
from edgec.compiler.calibration.moments import measure_moments
from edgec.compiler.calibration.ranges import calibrate, count_values
from edgec.compiler.calibration.samples import Sample, Samples
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.ir.graph import Graph
from edgec.compiler.quantize.plan import QuantizationPlan, plan_quantization
from edgec.compiler.quantize.quantization_recipe import RECIPES

SHAPE = (1, 8, 128, 128)
BATCH_BYTES = 4 * 8 * 128 * 128


@pytest.fixture(scope="module")
def network() -> tuple[QuantizationPlan, FloatModel]:
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        node("Relu", ["a"], ["r"]),
        node("Conv", ["r", "w"], ["c"], pads=[1] * 4),
        node("GlobalAveragePool", ["c"], ["y"]),
    ]
    graph = make_model(nodes, {"x": SHAPE}, ["y"], {"w": random(8, 8, 3, 3, seed=1)})
    canonical = canonical_model(graph)
    plan = plan_quantization(Graph(canonical.module, canonical.value_names), RECIPES["int8"])
    return plan, FloatModel(plan.graph, canonical.signature, plan.tensors, evaluate_here)


def samples(count: int) -> Samples:
    def read() -> Iterator[Sample]:
        for seed in range(count):
            yield {"x": random(*SHAPE, seed=seed)}

    return Samples("made up", count, read)


def peak_bytes(
    network: tuple[QuantizationPlan, FloatModel], count: int, kept: list[Sample] | None
) -> int:
    """Of everything that looks at samples; `kept` holds on to them."""
    plan, model = network
    names = [plan.graph.names[variable] for variable in plan.tensors]
    given = samples(count)
    tracemalloc.start()
    try:
        if kept is not None:
            kept += given
        calibrate(model, names, given, "mse")
        count_values(model, names, given)
        for _ in measure_moments(model, plan.weighted(), given):
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_samples(
    network: tuple[QuantizationPlan, FloatModel],
) -> None:
    few, many = (peak_bytes(network, count, None) for count in (3, 18))
    assert many < few + BATCH_BYTES
    # Whole batches kept are seen.
    assert peak_bytes(network, 18, []) > few + 10 * BATCH_BYTES
