"""Provide the quantize phase: from a canonical module to one with explicit quantization."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tvm import IRModule

from edgec.compiler.calibration.accuracy import (
    MAX_MEASURED,
    Accuracy,
    Metric,
    measure,
    same_top1,
    score_text,
)
from edgec.compiler.calibration.context import ModelContext
from edgec.compiler.calibration.float_model import FloatModel
from edgec.compiler.calibration.moments import MomentSums, begin_moments
from edgec.compiler.calibration.ranges import calibrate, count_values, read_ranges, write_ranges
from edgec.compiler.calibration.ranges_file import ranges_of_model
from edgec.compiler.calibration.samples import Samples
from edgec.compiler.errors import ParityError, UnsupportedModelError
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import is_static
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.numerics.affine import Floats
from edgec.compiler.numerics.observers import Histogram, Range
from edgec.compiler.passes.expand_weights import ExpandWeights
from edgec.compiler.quantize.encode import Quantization, quantize_numbers
from edgec.compiler.quantize.equalize import equalize
from edgec.compiler.quantize.insert_qdq import InsertQuantization
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.quantize.plan import QuantizationPlan, plan_quantization
from edgec.compiler.quantize.quantization_recipe import ResolvedRecipe, resolve
from edgec.compiler.quantize.rounding.post_training import (
    correct_after_training,
    corrected_groups,
)
from edgec.compiler.quantize.saturation import SaturationChoice, choose_saturation_modes
from edgec.compiler.quantize.sensitivity import (
    Sensitivity,
    SwitchedModel,
    operators_to_keep_float,
)
from edgec.compiler.quantize.smooth import (
    Channels,
    find_divisors,
    measure_channels,
    smooth,
    smoothable,
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
        outputs: the outputs of the module for the context's inputs, by edgec's own kernels; None
            without samples.
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
    resolved = resolve(options.recipe, context.target)
    calibrated = _calibrated(module, resolved, options, context, model_sha256)
    graph, plan, ranges = calibrated.plan.graph, calibrated.plan, calibrated.ranges
    module, float_model = graph.module, calibrated.model
    choices: dict[str, SaturationChoice] = {}
    if resolved.chooses and samples is not None and float_model is not None:
        choices = choose_saturation_modes(plan, resolved, ranges, float_model, samples, progress)
        saturation_modes = {name: choice.mode for name, choice in choices.items()}
        resolved = replace(resolved, saturation_modes=saturation_modes)
    quantization = _numbers(
        graph,
        resolved,
        ranges,
        options,
        float_model,
        samples,
        frozenset(),
        progress,
        calibrated.sums,
    )
    # Read anew each time: memory holds one batch.
    own_metric = context.metric is not same_top1
    most = options.batches_to_measure(signature.outputs, own_metric)
    measured = samples.limited(most) if samples is not None else None
    batches = 0
    outputs: Tensors | None = None
    ranked: tuple[Sensitivity, ...] = ()
    floats: tuple[str, ...] = ()
    if measured is not None and (options.has_bar or options.report is not None):
        kept = list(measured)
        options.check_resolution(len(kept), signature.outputs, own_metric)
        switched = SwitchedModel(quantization, signature, kept, context.metric, context.evaluate)
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
            raise ParityError(f"quantization costs too much: {_reached(accuracy, context.metric)}")
        # The switched model was off by what its readers share; return one more.
        floats = tuple(s.operator.name for s in ranked[: len(floats) + 1])
    if accuracy is not None and accuracy.sqnr_db < FLOOR_DB:
        raise ParityError(
            f"nothing is left of the float model: {_reached(accuracy, context.metric)}, "
            f"at least {FLOOR_DB:g} dB are expected; check the samples and their preprocessing, "
            "or take a finer recipe"
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


def _reached(accuracy: Accuracy, metric: Metric) -> str:
    name = "" if metric is same_top1 else getattr(metric, "__name__", "metric")
    score = score_text(accuracy.score, accuracy.positions, name)
    return f"signal-to-noise ratio {accuracy.sqnr_db:.1f} dB" + (f", {score}" if score else "")


@dataclass(frozen=True)
class _Calibrated:
    """A calibrated model is a plan with what samples say about its values.

    Attributes:
        plan: of the module, whose values may have been smoothed.
        model: the float model on this machine; None without samples.
        ranges: by name, of every value that is quantized.
        sums: moments that have begun in the run for the ranges, if there was one.
    """

    plan: QuantizationPlan
    model: FloatModel | None
    ranges: Mapping[str, Range]
    sums: MomentSums | None


def _calibrated(
    module: IRModule,
    resolved: ResolvedRecipe,
    options: QuantizeOptions,
    context: ModelContext,
    model_sha256: str,
) -> _Calibrated:
    samples, progress = context.samples, context.progress
    graph = Graph(module, context.value_names)
    plan = plan_quantization(graph, resolved.recipe)
    model = None
    if samples is not None:
        read = [variable for operator in plan.weighted() for variable in operator.inputs[:1]]
        seen = [*plan.tensors, *read]
        model = FloatModel(graph, context.signature, seen, context.evaluate)
    cache = options.cache if plan.tensors else None
    cached = cache is not None and cache.exists()
    ranges: dict[str, Range] = {}
    divisors: dict[str, Floats] = {}
    if cache is not None and cached:
        ranges, divisors = read_ranges(cache, model_sha256)
    elif options.ranges is not None and plan.tensors:
        ranges, cached = ranges_of_model(options.ranges, model_sha256), True
        if samples is None:
            progress.warn(
                f"ranges come from {options.ranges.name}, without samples: rounding follows "
                "assumed inputs; smoothing, and the correction of scales and biases, are off"
            )
    groups = smoothable(plan) if options.recipe.smooth else {}
    channels: dict[str, Channels] = {}
    if groups and model is not None and samples is not None and not cached:
        channels = measure_channels(model, [*groups], samples, progress)
        divisors = find_divisors(graph, groups, channels)
    module, quotients = smooth(graph, groups, divisors)
    if quotients:
        graph = Graph(module, context.value_names)
        plan = plan_quantization(graph, resolved.recipe)
        by = {graph.names[v]: (name, divisors[name]) for name, v in quotients.items()}
        model = model and model.with_quotients(graph, by)
        if channels:
            # Whole ranges, for which the divisors were chosen: there are no outliers to clip.
            ranges = {name: channels[of].range(divisor) for name, (of, divisor) in by.items()}
    sums: MomentSums | None = None
    if plan.tensors and not cached:
        assert samples is not None
        assert model is not None
        names = [graph.names[v] for v in plan.tensors if graph.names[v] not in ranges]
        if names:
            if options.repair:
                groups_to_correct = corrected_groups(plan, resolved)
                operators = [operator for group in groups_to_correct for operator in group]
                sums = begin_moments(operators, graph, samples.count)
            also = sums.see if sums is not None else None
            ranges |= calibrate(model, names, samples, options.observer, progress, also)
        if cache is not None:
            write_ranges(cache, ranges, model_sha256, options.observer, divisors)
    return _Calibrated(plan, model, ranges, sums)


def _numbers(
    graph: Graph,
    resolved: ResolvedRecipe,
    ranges: Mapping[str, Range],
    options: QuantizeOptions,
    model: FloatModel | None,
    samples: Samples | None,
    floats: frozenset[str],
    progress: Progress,
    sums: MomentSums | None = None,
) -> Quantization:
    plan = plan_quantization(graph, resolved.recipe, floats)
    quantization = quantize_numbers(plan, resolved, ranges)
    if not options.repair:
        return quantization
    return correct_after_training(quantization, model, samples, options.rounding, progress, sums)


def _accuracy(
    floats: FloatModel | None,
    quantized: IRModule,
    samples: Samples | None,
    context: ModelContext,
) -> tuple[Accuracy | None, int, Tensors | None]:
    """Return the accuracy against the float model, and the number of batches.

    And the outputs for the test inputs. What is measured runs the kernels of the library, which is
    built of the same objects then, where this machine can; elsewhere float kernels that round.
    """
    if floats is None or samples is None:
        return None, 0, None
    if context.evaluate_as_built is not None:
        rounded = context.evaluate_as_built(quantized, context.signature)
    else:
        rounded = context.evaluate(ExpandWeights()(quantized), context.signature)
    accuracy, batches = measure(
        floats.results, rounded.run, samples, context.metric, context.progress
    )
    return accuracy, batches, rounded.run(context.inputs) if context.inputs else None
