"""True accuracy of every recipe on the digits classifier's test images."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from support.digits_model import BATCH, DigitsModel, digits_model
from tvm import IRModule

from edgec.compiler.backend import evaluate_here
from edgec.compiler.calibration.accuracy import Metric, load_metric, same_top1
from edgec.compiler.errors import ParityError
from edgec.compiler.ir.relax_helpers import shape_of
from edgec.compiler.passes.expand_weights import ExpandWeights
from edgec.compiler.quantize.insert_qdq import InsertQuantization
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.quantize.quantization_recipe import RECIPES, QuantizationRecipe
from edgec.compiler.quantize.quantizer import QuantizedModel, quantize_model


@dataclass(frozen=True)
class Digits:
    """Quantizes the model."""

    base: DigitsModel

    def top1(self, module: IRModule) -> float:
        return self.base.top1(module)

    def quantized(
        self,
        recipe: QuantizationRecipe,
        target: str = "native",
        metric: Metric = same_top1,
        **more: object,
    ) -> QuantizedModel:
        options = QuantizeOptions(recipe=recipe, **more)  # type: ignore[arg-type]
        context = self.base.context(target=target, metric=metric)
        return quantize_model(self.base.module, options, context, "")


@pytest.fixture(scope="module")
def model(digits: Path) -> Digits:
    return Digits(digits_model(digits))


@pytest.mark.parametrize(
    ("name", "target", "points"),
    [
        ("int8", "native", 0.5),
        ("int8", "x86-64-v3", 0.5),
        ("int8-dynamic", "native", 0.5),
        ("int8-weight-only", "native", 0.5),
        ("int4-weight-only", "native", 1.0),
        ("log2", "native", 2.0),
        ("bf16", "native", 0.3),
        ("codebook-16", "native", 1.0),
        ("codebook-256", "native", 0.3),
    ],
)
def test_top1_stays_near_that_of_the_floats(
    model: Digits, name: str, target: str, points: float
) -> None:
    assert model.base.float_top1 > 0.98
    quantized = model.quantized(RECIPES[name], target)
    assert model.top1(ExpandWeights()(quantized.module)) >= model.base.float_top1 - points / 100


def test_a_broken_scale_costs_accuracy(model: Digits) -> None:
    quantization = model.quantized(RECIPES["int8"]).quantization
    variable = quantization.plan.tensors[2]
    scale = quantization.scales[variable]
    broken = replace(
        quantization,
        scales={**quantization.scales, variable: replace(scale, scale=scale.scale / 50)},
    )
    damaged = InsertQuantization(broken)(quantization.plan.graph.module)
    assert model.top1(ExpandWeights()(damaged)) < model.base.float_top1 - 0.05


def test_stored_weights_give_what_expanded_ones_give(model: Digits) -> None:
    for name in ("int8", "int4-weight-only", "codebook-16", "codebook-256"):
        module = model.quantized(RECIPES[name]).module
        inputs = {"image": model.base.test[:BATCH]}
        results = [
            evaluate_here(m, model.base.imported.signature).run(inputs)["logits"]
            for m in (module, ExpandWeights()(module))
        ]
        kernels, floats = results
        noise_db = 20 * np.log10(np.linalg.norm(floats - kernels) / np.linalg.norm(floats))
        # Integer kernels round in 16 bits: a value almost between two quantized values may go to
        # either. Stored weights are the same numbers.
        assert noise_db < (-40 if name == "int8" else -110)
        np.testing.assert_array_equal(kernels.argmax(axis=1), floats.argmax(axis=1))


def test_repairs_raise_the_noise_ratio(model: Digits) -> None:
    plain = model.quantized(RECIPES["int4-weight-only"], repair=False)
    repaired = model.quantized(RECIPES["int4-weight-only"])
    assert plain.accuracy is not None
    assert repaired.accuracy is not None
    assert repaired.accuracy.sqnr_db > plain.accuracy.sqnr_db + 4


def test_what_has_lost_everything_is_refused(model: Digits) -> None:
    with pytest.raises(ParityError, match="nothing is left of the float model"):
        model.quantized(RECIPES["log2"], repair=False)


def test_operators_return_to_float_until_the_bar_holds(model: Digits) -> None:
    free = model.quantized(RECIPES["log2"])
    barred = model.quantized(RECIPES["log2"], min_sqnr_db=18.0)
    assert free.accuracy is not None
    assert barred.accuracy is not None
    assert free.accuracy.sqnr_db < 18 <= barred.accuracy.sqnr_db
    worst = [s.operator.name for s in barred.sensitivity]
    assert list(barred.kept_float) == worst[: len(barred.kept_float)]
    assert 0 < len(barred.kept_float) < len(worst)
    ratios = [s.accuracy.sqnr_db for s in barred.sensitivity]
    assert ratios == sorted(ratios)


def test_values_of_a_full_model_are_codes_to_the_end(model: Digits) -> None:
    full = RECIPES["int8"].model_copy(update={"extent": "full"})
    plan = model.quantized(full).quantization.plan
    partial = model.quantized(RECIPES["int8"]).quantization.plan
    names = [plan.graph.names[v] for v in plan.tensors]
    assert names == [*(partial.graph.names[v] for v in partial.tensors), "logits"]
    assert shape_of(plan.tensors[0]) == (BATCH, 1, 8, 8)


@pytest.mark.parametrize("observer", ["min-max", "entropy"])
def test_every_observer_finds_ranges_that_work(model: Digits, observer: str) -> None:
    accuracy = model.quantized(RECIPES["int8"], observer=observer).accuracy
    assert accuracy is not None
    assert accuracy.sqnr_db > 25


def test_a_user_metric_is_asked(model: Digits) -> None:
    quantized = model.quantized(RECIPES["int8"], metric=load_metric(f"{__name__}:always_half"))
    assert quantized.accuracy is not None
    assert quantized.accuracy.score == 0.5


def always_half(expected: dict[str, np.ndarray], actual: dict[str, np.ndarray]) -> float:
    assert expected.keys() == actual.keys() == {"logits"}
    return 0.5
