"""Channels that are removed: which, how many, and what is left."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.contexts import work_on
from support.digits_model import DigitsModel, digits_model
from support.onnx_graphs import node, random
from support.small_models import SmallModel, small_model
from tvm import IRModule, relax

from edgec.compiler.backend import evaluate_here
from edgec.compiler.compress.channel_groups.dependencies import Dependencies, Group
from edgec.compiler.compress.compression_recipe import CompressionRecipe, load_compression
from edgec.compiler.compress.compression_report import report_fields, write_compression_report
from edgec.compiler.compress.compressor import compress_model
from edgec.compiler.compress.costs import costs_of
from edgec.compiler.compress.options import CompressOptions
from edgec.compiler.compress.step import StepContext
from edgec.compiler.compress.steps.channels import Channels
from edgec.compiler.errors import UnsupportedModelError, UsageError
from edgec.compiler.frontend.canonical import CanonicalModel, canonical_model
from edgec.compiler.ir.anchors import find_operators
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import constant
from edgec.compiler.runtime.inputs import generate_inputs
from edgec.compiler.support.html_report import Subject
from edgec.models import load_model_recipe


@pytest.fixture(scope="module")
def model(digits: Path) -> DigitsModel:
    return digits_model(digits)


@pytest.fixture(scope="module")
def context(model: DigitsModel) -> StepContext:
    graph = Graph(model.module, model.imported.value_names)
    return work_on(graph, model.imported.signature, model.samples)


@pytest.fixture(scope="module")
def blind(context: StepContext) -> StepContext:
    return work_on(context.original, context.signature)


def share_left(module: IRModule, context: StepContext) -> float:
    """Of the multiplications."""
    return costs_of(Graph(module, {})).macs / costs_of(context.original).macs


def channels_left(module: IRModule) -> list[int]:
    """Output channels of each layer."""
    shapes = [o.shape for o in costs_of(Graph(module, {})).operators]
    return [shape[-1] if len(shape) == 2 else shape[0] for shape in shapes]


def test_chosen_and_repaired_channels_beat_random_ones(
    model: DigitsModel, context: StepContext
) -> None:
    chosen = Channels(ratio=0.75, multiple=1, allocate="error").apply(context.original, context)
    chance = Channels(ratio=0.75, multiple=1, score="random").apply(context.original, context)
    assert share_left(chosen, context) == pytest.approx(0.25, abs=0.02)
    assert share_left(chance, context) == pytest.approx(0.25, abs=0.02)
    top1 = model.top1(chosen)
    assert top1 > model.float_top1 - 0.04
    assert top1 > model.top1(chance) + 0.02


def test_effects_decide_and_repair_is_needed(model: DigitsModel, context: StepContext) -> None:
    repaired = Channels(ratio=0.5).apply(context.original, context)
    assert share_left(repaired, context) <= 0.5
    assert model.top1(repaired) > model.float_top1 - 0.02
    plain = Channels(ratio=0.5, repair=False).apply(context.original, context)
    assert model.top1(plain) < 0.8


@pytest.mark.parametrize("score", ["magnitude", "redundancy", "random"])
def test_scores_that_need_no_samples(score: Any, blind: StepContext) -> None:
    module = Channels(ratio=0.4, score=score).apply(blind.original, blind)
    assert 0.3 < share_left(module, blind) <= 0.6
    lanes = blind.target.float_lanes
    assert all(count % lanes == 0 for count in channels_left(module)[:-1])


def test_a_budget_of_weights(blind: StepContext) -> None:
    module = Channels(ratio=0.5, budget="weights", multiple=2).apply(blind.original, blind)
    left, before = costs_of(Graph(module, {})).weights, costs_of(blind.original).weights
    assert left / before == pytest.approx(0.5, abs=0.03)


def test_a_budget_of_time(blind: StepContext) -> None:
    module = Channels(ratio=0.1, budget="latency").apply(blind.original, blind)
    assert share_left(module, blind) < 1


def test_uniform_takes_as_much_from_each_layer(blind: StepContext) -> None:
    module = Channels(ratio=0.5, allocate="uniform", multiple=1).apply(blind.original, blind)
    before = channels_left(blind.original.module)
    shares = [a / b for a, b in zip(channels_left(module)[:-1], before[:-1], strict=True)]
    assert np.ptp(shares) < 0.06


def test_skipped_layers_keep_their_channels(blind: StepContext) -> None:
    names = [o.name for o in costs_of(blind.original).operators]
    step = Channels(ratio=0.3, skip=(names[1],), multiple=1)
    left = channels_left(step.apply(blind.original, blind))
    before = channels_left(blind.original.module)
    assert left[:2] == before[:2]
    assert left[2] < before[2]


def test_too_much_is_refused(blind: StepContext) -> None:
    with pytest.raises(UnsupportedModelError, match=r"99% asked for, but only \d+% can go"):
        Channels(ratio=0.99).apply(blind.original, blind)


def test_a_model_without_free_channels_is_refused(blind: StepContext) -> None:
    single = small_model([node("Conv", ["x", "w"], ["y"])], {"w": random(8, 3, 1, 1)}, (1, 3, 4, 4))
    with pytest.raises(UnsupportedModelError, match="no channels that could be removed"):
        Channels(ratio=0.1).apply(single.graph, single.blind)


def test_scores_of_activations_need_samples() -> None:
    recipe = CompressionRecipe(name="test", step=(Channels(ratio=0.5, score="activation"),))
    with pytest.raises(UsageError, match="--calibration"):
        CompressOptions(recipe=recipe).check_samples(given=False)


def twins() -> SmallModel:
    """Channel 5 does what channel 2 does; channel 3 is the sum of 0 and 1."""
    first = random(8, 3, 1, 1)
    first[5] = first[2]
    first[3] = first[0] + first[1]
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Conv", ["a", "v"], ["y"], pads=[1, 1, 1, 1])]
    return small_model(nodes, {"w": first, "v": random(4, 8, 3, 3, seed=1)}, (8, 3, 6, 6))


def test_repair_loses_nothing_where_nothing_is_lost() -> None:
    """Of eight channels over three inputs five are superfluous."""
    model = twins()
    step = Channels(ratio=0.6, multiple=1, allocate="error")
    module = step.apply(model.graph, model.context)
    assert channels_left(module) == [3, 4]
    # The damping of the moments is what is left.
    assert model.accuracy(module).sqnr_db > 30
    blind = Channels(ratio=0.6, multiple=1).apply(model.graph, model.blind)
    assert model.accuracy(blind).sqnr_db < 10


def test_redundancy_finds_twins() -> None:
    model = twins()
    step = Channels(ratio=0.1, multiple=1, score="redundancy")
    module = step.apply(model.graph, model.blind)
    assert channels_left(module) == [7, 4]
    first, *_ = (o.weight.array for o in find_operators(Graph(module, {})) if o.weight is not None)
    assert len(np.unique(first, axis=0)) == 7


def test_the_report_names_layers_and_times(model: DigitsModel, tmp_path: Path) -> None:
    options = CompressOptions(recipe=load_compression("channels-40"), report=tmp_path / "a.json")
    result = compress_model(model.module, options, replace(model.context(), samples=None))
    fields = report_fields(result)
    (step,) = fields["steps"]
    assert step["macs"] <= 0.6 * fields["before"]["macs"]
    assert step["settings"]["kind"] == "channels"
    assert step["latency_ms"] > 0
    assert fields["before"]["latency_ms"] > 0
    names = [layer["name"] for layer in fields["before"]["layers"]]
    assert names == [layer["name"] for layer in step["layers"]]
    write_compression_report(tmp_path / "a.html", result, Subject("digits.onnx", "native"))
    page = (tmp_path / "a.html").read_text()
    assert "<h1>Compression of digits.onnx for native</h1>" in page
    assert all(name in page for name in names)


# Every model


def imported(path: Path, shapes: Any, freeze: Any) -> tuple[CanonicalModel, Graph]:
    model = canonical_model(path, shapes, freeze)
    return model, Graph(model.module, model.value_names)


def recipe_graph(name: str, folder: Path) -> tuple[CanonicalModel, Graph]:
    recipe = load_model_recipe(name)
    path = recipe.write(folder / "model.onnx")
    frozen = {key: np.array(value) for key, value in recipe.freeze.items()}
    return imported(path, dict(recipe.shapes), frozen)


def some_of_each(dependencies: Dependencies) -> list[Group]:
    """A third of each family, spread over it."""
    coupled_channels: dict[Any, list[Group]] = {}
    for group in dependencies.groups:
        coupled_channels.setdefault(group.coupled, []).append(group)
    return [group for coupled in coupled_channels.values() for group in coupled[1::3]]


def masked(dependencies: Dependencies, groups: list[Group]) -> IRModule:
    """The module of the old shapes with zeros where groups are read."""
    kept = dependencies.kept(groups)
    reads = {
        s.weight: s.read for s in dependencies.linear_operators if s.weight and s.read is not None
    }

    def zeroed(place: Any) -> Any:
        array, axis = dependencies.array(place).copy(), reads[place]
        np.moveaxis(array, axis, 0)[~kept[dependencies.constants[place][axis]]] = 0
        return constant(array)

    def rewrite(builder: Any, variable: Any, value: Any, _current: Any) -> Any:
        if value is None:
            return variable
        if (variable, -1) in reads:
            value = zeroed((variable, -1))
        elif isinstance(value, relax.Call):
            fields = [
                zeroed((variable, i)) if (variable, i) in reads else field
                for i, field in enumerate(value.args)
            ]
            value = relax.Call(value.op, fields, value.attrs)
        return builder.emit(value, variable.name)

    return dependencies.graph.rebuilt(rewrite)


def check_parity(model: CanonicalModel, graph: Graph) -> None:
    """Smaller shapes compute what zeros do; zeros for other channels do not."""
    dependencies = Dependencies(graph)
    groups = some_of_each(dependencies)
    assert groups
    signature = model.signature
    inputs = generate_inputs(signature.inputs, 0, {})
    smaller = evaluate_here(dependencies.without(groups), signature).run(inputs)
    expected = evaluate_here(masked(dependencies, groups), signature).run(inputs)
    others = evaluate_here(masked(dependencies, groups[1:]), signature).run(inputs)
    for name, array in expected.items():
        if array.dtype == np.float32:
            scale = float(np.abs(array).max())
            # Float32 through some tens of layers.
            np.testing.assert_allclose(smaller[name], array, rtol=0, atol=1e-4 * scale)
    assert any(np.abs(others[n] - a).max() > 0 for n, a in expected.items())


def test_digits_compute_what_zeros_do(digits: Path) -> None:
    check_parity(*imported(digits, {"image": (1, 1, 8, 8)}, {}))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pp-ocr-cls", "pp-ocr-rec", "yolov8n-320", "minilm-l6"])
def test_models_compute_what_zeros_do(name: str, tmp_path: Path) -> None:
    check_parity(*recipe_graph(name, tmp_path))


LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


@pytest.mark.parametrize("name", ["light_squeezenet", "light_shufflenet"])
def test_light_models_shrink(name: str) -> None:
    check_shapes(*imported(LIGHT / f"{name}.onnx", {}, {}))


# One of each kind of network; the others differ from these in size alone.
KINDS = ("pp-ocr-cls", "pp-ocr-det", "pp-ocr-rec", "efficientnet-lite0", "minilm-l6", "yolov8n-320")


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_model_shrinks(name: str, tmp_path: Path) -> None:
    check_shapes(*recipe_graph(name, tmp_path))


def check_shapes(model: CanonicalModel, graph: Graph) -> None:
    """A fifth of the multiplications goes; shapes are inferred anew, and the outputs' stay."""
    module = Channels(ratio=0.2, multiple=1).apply(graph, work_on(graph, model.signature))
    relax.analysis.well_formed(module)
    assert str(module["main"].ret_ty) == str(graph.module["main"].ret_ty)
    assert share_left(module, work_on(graph, model.signature)) <= 0.8
