"""Low-rank factors: what they compute, what they save, and what data add."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.contexts import work_on
from support.digits_model import DigitsModel, digits_model
from support.relax_runs import run_module
from tvm import IRModule, relax

from edgec.compiler.compress.compression_recipe import CompressionRecipe, load_compression
from edgec.compiler.compress.compressor import CompressedModel, compress_model
from edgec.compiler.compress.options import CompressOptions
from edgec.compiler.compress.steps.low_rank import LowRank
from edgec.compiler.errors import RecipeError, UnsupportedModelError
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import constant, op_name
from edgec.compiler.ir.signature import Signature, TensorSpec
from edgec.targets import load_target

RANDOM = np.random.default_rng(5)


@pytest.fixture(scope="module")
def model(digits: Path) -> DigitsModel:
    return digits_model(digits)


def compressed(model: DigitsModel, step: LowRank, samples: bool = True) -> CompressedModel:
    options = CompressOptions(recipe=CompressionRecipe(name="test", step=(step,)))
    context = model.context(target="x86-64-v3")
    if not samples:
        context = replace(context, samples=None)
    return compress_model(model.module, options, context)


def test_half_of_the_weights_cost_little(model: DigitsModel) -> None:
    result = compressed(model, LowRank(ratio=0.5))
    (step,) = result.steps
    assert step.costs.weights <= 0.5 * result.before.weights
    assert step.costs.macs < 0.8 * result.before.macs
    assert model.top1(result.module) >= model.float_top1 - 0.01
    ranks = [o.shape[0] for o in step.costs.operators if o.name.endswith("_factor")]
    assert ranks
    assert all(rank % load_target("x86-64-v3").float_lanes == 0 for rank in ranks)


def test_samples_tell_what_matters(model: DigitsModel) -> None:
    step = LowRank(ratio=0.6)
    blind = compressed(model, step, samples=False).module
    assert model.top1(compressed(model, step).module) > model.top1(blind)


def test_too_much_is_refused(model: DigitsModel) -> None:
    with pytest.raises(UnsupportedModelError, match=r"can save \d+% of the weights at most, 99%"):
        compressed(model, LowRank(ratio=0.99))
    with pytest.raises(UnsupportedModelError, match="no convolution or matrix product"):
        compressed(model, LowRank(ratio=0.5, skip=("*",)))


def low_rank(*shape: int, rank: int, spatial: bool = False) -> np.ndarray:
    """Random weights of a rank, as the scheme in question sees them."""
    if len(shape) == 2 or not spatial:
        flat = (shape[0], int(np.prod(shape[1:])))
        array = RANDOM.standard_normal((flat[0], rank)) @ RANDOM.standard_normal((rank, flat[1]))
        return array.reshape(shape).astype(np.float32)
    out, channels, height, width = shape
    array = RANDOM.standard_normal((channels * height, rank))
    array = array @ RANDOM.standard_normal((rank, out * width))
    return array.reshape(channels, height, out, width).transpose(2, 0, 1, 3).astype(np.float32)


def factored(data: relax.Var, call: relax.Call, step: LowRank) -> tuple[IRModule, IRModule]:
    """A module of one operator, before and after."""
    builder = relax.BlockBuilder()
    with builder.function("main", [data]):
        with builder.dataflow():
            result = builder.emit_output(call)
        builder.emit_func_output(result)
    graph = Graph(builder.get(), {})
    shapes = [tuple(int(n) for n in v.ty.shape.values) for v in (data, result)]
    signature = Signature(
        (TensorSpec("x", shapes[0], "float32"),), (TensorSpec("y", shapes[1], "float32"),)
    )
    return graph.module, step.apply(graph, work_on(graph, signature, target="x86-64-v3"))


@pytest.mark.parametrize("scheme", ["channel", "spatial"])
def test_convolutions_of_that_rank_stay_exact(scheme: str) -> None:
    """With strides, dilation and unequal padding; a smaller rank is the control."""
    data = relax.Var("x", relax.TensorType((2, 32, 17, 12), "float32"))
    array = low_rank(48, 32, 3, 3, rank=16, spatial=scheme == "spatial")
    call = relax.op.nn.conv2d(data, constant(array), (2, 1), (1, 0, 2, 1), (1, 2))
    for energy, exact in ((0.9999999, True), (0.5, False)):
        step = LowRank(energy=energy, scheme=scheme)  # type: ignore[arg-type]
        before, after = factored(data, call, step)
        calls = [value for _, value in Graph(after, {}).bindings if op_name(value)]
        assert len(calls) == 2
        results = [run_module(module) for module in (before, after)]
        scale = np.abs(results[0]).max()
        assert np.allclose(*results, atol=1e-4 * scale) == exact


def test_matrix_products_of_that_rank_stay_exact() -> None:
    data = relax.Var("x", relax.TensorType((2, 5, 64), "float32"))
    call = relax.op.matmul(data, constant(low_rank(64, 80, rank=8)))
    before, after = factored(data, call, LowRank(energy=0.999999))
    results = [run_module(module) for module in (before, after)]
    assert np.allclose(*results, atol=1e-4 * np.abs(results[0]).max())
    assert len([v for _, v in Graph(after, {}).bindings if op_name(v)]) == 2


def test_how_much_is_said_once() -> None:
    assert load_compression("low-rank-40").step[0] == LowRank(ratio=0.4)
    with pytest.raises(RecipeError, match="did you mean low-rank-N"):
        load_compression("low-rank")
    with pytest.raises(ValueError, match="either ratio or energy"):
        LowRank(ratio=0.5, energy=0.9)
