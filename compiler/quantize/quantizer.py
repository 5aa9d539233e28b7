"""Provide the quantize phase: from a canonical module to one with explicit quantization."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tvm import IRModule

from edgec.compiler.calibration.accuracy import MAX_MEASURED, Accuracy, measure
from edgec.compiler.calibration.context import ModelContext
from edgec.compiler.calibration.float_model import FloatModel
from edgec.compiler.calibration.ranges import calibrate, count_values, read_ranges, write_ranges
from edgec.compiler.calibration.samples import Samples
from edgec.compiler.errors import ParityError, UnsupportedModelError
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import is_static
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.numerics.observers import Histogram, Range
from edgec.compiler.passes.expand_weights import ExpandWeights
from edgec.compiler.quantize.encode import Quantization, quantize_numbers
from edgec.compiler.quantize.equalize import equalize
from edgec.compiler.quantize.insert_qdq import InsertQuantization
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.quantize.plan import QuantizationPlan, plan_quantization
from edgec.compiler.quantize.quantization_recipe import ResolvedRecipe, resolve
from edgec.compiler.quantize.rounding.post_training import correct_after_training
from edgec.compiler.quantize.saturation import SaturationChoice, choose_saturation_modes
from edgec.compiler.quantize.sensitivity import (
    Sensitivity,
    SwitchedModel,
    operators_to_keep_float,
)
from edgec.compiler.support.progress import Progress

# Below this a quantized model answers something else than the float one.
FLOOR_DB = 3.0


@dataclass(frozen=True)
class QuantizedModel:
    """A quantized model describes what the phase gives.

    Attributes:
        module: with explicit quantize and dequantize operators.
        quantization: its numbers.
        accuracy: against the float model, on samples; None without samples.
        measured: number of batches that it was measured on.
        sensitivity: the sensitivity of each operator, the worst first; empty if it was not
            measured.
        kept_float: names of operators that returned to float.
        choices: the saturation mode of each operator, by name, where the target needs one.
        histograms: the histograms of the float values that is quantized, by name, if a report is
            wanted.
        outputs: the outputs of the module for the context's inputs, by float kernels; None without
            samples.
    """

    module: IRModule
    quantization: Quantization
    accuracy: Accuracy | None
    measured: int
    sensitivity: tuple[Sensitivity, ...]
    kept_float: tuple[str, ...]
    choices: Mapping[str, SaturationChoice]
    histograms: Mapping[str, Histogram]
    outputs: Tensors | None = None


def quantize_model(
    module: IRModule, options: QuantizeOptions, context: ModelContext, model_sha256: str
) -> QuantizedModel:
    """Quantize a canonical module.

    Args:
        module: the canonical module.
        options: what is quantized.
        context: the model's interface, its data, and what evaluates it.
        model_sha256: digest of the ONNX file, which cached ranges belong to.

    Raises:
        UnsupportedModelError: shapes depend on data.
        CalibrationError: samples or cached ranges do not fit.
        ParityError: the bar is not reached, or what is left has nothing of the float model.
    """
    if not is_static(module):
        raise UnsupportedModelError(
            "shapes in this model depend on data; quantization needs static ones: "
            "compile without --quantize"
        )
    signature, samples, progress = context.signature, context.samples, context.progress
    if options.recipe.equalize:
        module = equalize(Graph(module, context.value_names))
    graph = Graph(module, context.value_names)
    resolved = resolve(options.recipe, context.target)
    plan = plan_quantization(graph, resolved.recipe)
    float_model = None
    if samples is not None:
        read = [operator.inputs[0] for operator in plan.weighted()]
        float_model = FloatModel(graph, signature, [*plan.tensors, *read], context.evaluate)
    ranges = _ranges(plan, float_model, options, samples, model_sha256, progress)
    choices: dict[str, SaturationChoice] = {}
    if resolved.chooses and samples is not None and float_model is not None:
        choices = choose_saturation_modes(plan, resolved, ranges, float_model, samples, progress)
        saturation_modes = {name: choice.mode for name, choice in choices.items()}
        resolved = replace(resolved, saturation_modes=saturation_modes)
    quantization = _numbers(
        graph, resolved, ranges, options, float_model, samples, frozenset(), progress
    )
    # Read anew each time: memory holds one batch.
    measured = samples.limited(MAX_MEASURED) if samples is not None else None
    batches = 0
    outputs: Tensors | None = None
    ranked: tuple[Sensitivity, ...] = ()
    floats: tuple[str, ...] = ()
    if measured is not None and (options.has_bar or options.report is not None):
        switched = SwitchedModel(
            quantization, signature, list(measured), context.metric, context.evaluate
        )
        ranked = tuple(switched.rank(progress))
        if options.has_bar:
            bars = (options.max_drop, options.min_sqnr_db)
            count = operators_to_keep_float(switched, ranked, *bars)
            floats = tuple(s.operator.name for s in ranked[:count])
    while True:
        if floats:
            quantization = _numbers(
                graph, resolved, ranges, options, float_model, samples, frozenset(floats), progress
            )
        result = InsertQuantization(quantization)(module)
        accuracy, batches, outputs = _accuracy(float_model, result, measured, context)
        if accuracy is None or accuracy.reaches(options.max_drop, options.min_sqnr_db):
            break
        if len(floats) == len(ranked):
            raise ParityError(f"quantization costs too much: {_reached(accuracy)}")
        # The switched model was off by what its readers share; return one more.
        floats = tuple(s.operator.name for s in ranked[: len(floats) + 1])
    if accuracy is not None and accuracy.sqnr_db < FLOOR_DB:
        raise ParityError(
            f"nothing is left of the float model: {_reached(accuracy)}, at least {FLOOR_DB:g} dB "
            "are expected; check the samples and their preprocessing, or take a finer recipe"
        )
    histograms: Mapping[str, Histogram] = {}
    if options.report is not None and float_model is not None and samples is not None:
        names = [graph.names[variable] for variable in quantization.plan.tensors]
        histograms = count_values(float_model, names, samples.limited(MAX_MEASURED), progress)
    return QuantizedModel(
        result,
        quantization,
        accuracy,
        batches,
        ranked,
        floats,
        choices,
        histograms,
        outputs,
    )


def _reached(accuracy: Accuracy) -> str:
    return f"signal-to-noise ratio {accuracy.sqnr_db:.1f} dB, metric {accuracy.score:.4f}"


def _ranges(
    plan: QuantizationPlan,
    model: FloatModel | None,
    options: QuantizeOptions,
    samples: Samples | None,
    model_sha256: str,
    progress: Progress,
) -> dict[str, Range]:
    if not plan.tensors:
        return {}
    cache = options.cache
    if cache is not None and cache.exists():
        return read_ranges(cache, model_sha256)
    assert samples is not None
    assert model is not None
    names = [plan.graph.names[variable] for variable in plan.tensors]
    ranges = calibrate(model, names, samples, options.observer, progress)
    if cache is not None:
        write_ranges(cache, ranges, model_sha256, options.observer)
    return ranges


def _numbers(
    graph: Graph,
    resolved: ResolvedRecipe,
    ranges: Mapping[str, Range],
    options: QuantizeOptions,
    model: FloatModel | None,
    samples: Samples | None,
    floats: frozenset[str],
    progress: Progress,
) -> Quantization:
    plan = plan_quantization(graph, resolved.recipe, floats)
    quantization = quantize_numbers(plan, resolved, ranges)
    if not options.repair:
        return quantization
    return correct_after_training(quantization, model, samples, options.rounding, progress)


def _accuracy(
    floats: FloatModel | None,
    quantized: IRModule,
    samples: Samples | None,
    context: ModelContext,
) -> tuple[Accuracy | None, int, Tensors | None]:
    """Return the accuracy against the float model, and the number of batches.

    And the outputs for the test inputs.
    """
    if floats is None or samples is None:
        return None, 0, None
    rounded = context.evaluate(ExpandWeights()(quantized), context.signature)
    accuracy, batches = measure(
        floats.results, rounded.run, samples, context.metric, context.progress
    )
    return accuracy, batches, rounded.run(context.inputs) if context.inputs else None
