"""Provide the compress phase: the steps of a recipe, and what the model is after each."""

from dataclasses import dataclass, replace

from tvm import IRModule

from edgec.compiler.calibration.accuracy import MAX_MEASURED, Accuracy, measure
from edgec.compiler.calibration.context import ModelContext
from edgec.compiler.compress.costs import Costs, costs_of
from edgec.compiler.compress.latency import latencies_ms
from edgec.compiler.compress.options import CompressOptions
from edgec.compiler.compress.step import CompressionStep, StepContext
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.ir.evaluate import Runnable
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import is_static


@dataclass(frozen=True)
class StepResult:
    """A step result describes the model after a step.

    Attributes:
        step: what was done.
        costs: the costs of the model.
        accuracy: against the original, on samples; None without samples.
        latency_ms: the latency of one inference on this machine; None if not measured.
    """

    step: CompressionStep
    costs: Costs
    accuracy: Accuracy | None
    latency_ms: float | None = None


@dataclass(frozen=True)
class CompressedModel:
    """A compressed model describes what the phase gives.

    Attributes:
        module: the compressed module.
        before: costs of the original.
        steps: the model after each step.
        measured: number of batches that accuracy was measured on.
        latency_before_ms: the latency of the original on this machine; None if not measured.
    """

    module: IRModule
    before: Costs
    steps: tuple[StepResult, ...]
    measured: int
    latency_before_ms: float | None = None


def compress_model(
    module: IRModule, options: CompressOptions, context: ModelContext
) -> CompressedModel:
    """Compress a canonical module.

    Raises:
        UnsupportedModelError: shapes depend on data, or a step finds nothing to change.
    """
    if not is_static(module):
        raise UnsupportedModelError(
            "shapes in this model depend on data; compression needs static ones: "
            "compile without --compress"
        )
    original = Graph(module, context.value_names)
    step_context = StepContext.of(context, original, options.checkpoint)
    samples = context.samples
    measured, batches = samples.limited(MAX_MEASURED) if samples is not None else None, 0
    timed = options.report is not None
    models: list[Runnable] = []
    results: list[StepResult] = []
    if measured is not None or timed:
        models.append(context.evaluate(module, context.signature))
    for step in options.recipe.step:
        module = step.apply(Graph(module, context.value_names), step_context)
        costs = costs_of(Graph(module, context.value_names))
        accuracy = None
        if models:
            models.append(context.evaluate(module, context.signature))
            if measured is not None:
                run = models[0].run, models[-1].run
                accuracy, batches = measure(*run, measured, context.metric)
        results.append(StepResult(step, costs, accuracy))
    before = None
    if timed:
        before, *times = latencies_ms(models, context.inputs)
        pairs = zip(results, times, strict=True)
        results = [replace(result, latency_ms=after) for result, after in pairs]
    return CompressedModel(module, costs_of(original), tuple(results), batches, before)
