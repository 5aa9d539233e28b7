"""Find out what one version of a model costs; called where work is done, see `jobs`.

A prediction goes through the same recipes as a compile, but looks at a few samples only and rounds
to the nearest: shapes, kernels and memory are those of the real version, its values are not.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tvm import IRModule

from edgec.compiler.backend import build, evaluate_here, pack, schedule
from edgec.compiler.calibration.accuracy import Comparison, load_metric
from edgec.compiler.errors import ShapeError, UnsupportedModelError
from edgec.compiler.evaluate.data import EvaluationData, batch_of, open_data
from edgec.compiler.evaluate.metrics import make_metric
from edgec.compiler.fit.limits import Costs
from edgec.compiler.fit.space import DISTILL, Point
from edgec.compiler.frontend.canonical import CanonicalModel, canonical_model
from edgec.compiler.frontend.model_source import read_model
from edgec.compiler.frontend.onnx_facts import index_bounds
from edgec.compiler.frontend.onnx_file import SourceModel
from edgec.compiler.ir.evaluate import Runnable
from edgec.compiler.ir.program import Program
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.jobs.shared_path import SharedPath
from edgec.compiler.lowering.legalize import lower
from edgec.compiler.lowering.recorded_decisions import RecordedDecisions, tuned_records
from edgec.compiler.lowering.schedule import Decide
from edgec.compiler.lowering.tuning_records import Database
from edgec.compiler.options import CompileOptions
from edgec.compiler.parity.prepared_images import prepared
from edgec.compiler.passes.expand_weights import ExpandWeights
from edgec.compiler.predict.predict import predict_program
from edgec.compiler.runtime.inputs import generate_inputs, rounded_to_half
from edgec.compiler.runtime.session import open_session, why_not_here
from edgec.compiler.support.files import scratch_folder
from edgec.compiler.support.onnx_runtime import open_onnx_session, run_onnx_session
from edgec.compiler.support.progress import Silent
from edgec.compiler.transform import open_samples, transform_model
from edgec.targets import Target

# Samples that a prediction looks at.
PREDICTION_BATCHES = 4
# Compressed models that a process keeps, for other quantizations of them.
KEPT_MODELS = 4
# Batches that accuracy is measured on, at most.
MAX_BATCHES = 100_000


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A subject describes what versions are made of, and what they are judged by.

    Attributes:
        model: the ONNX file.
        target: what it is compiled for.
        options: of the model as it is; samples have their source in `samples`.
        samples: files of calibration samples; None: the source in `options` is a function or none.
        data: the source of what accuracy is measured on, the name of a function if it is one; None:
            on the calibration samples.
        drop: the limit of a mixed precision.
        metric: see `FitOptions`.
    """

    model: SharedPath
    target: Target
    options: CompileOptions
    samples: SharedPath | None
    data: SharedPath | str | None
    drop: float | None
    metric: str = ""

    def options_of(self, point: Point) -> CompileOptions:
        """Return the options of a version, with samples as they are found here."""
        options = point.changed(self.options, self.drop)
        if self.samples is None:
            return options
        samples = replace(options.samples, source=str(self.samples.open()))
        return replace(options, samples=samples)


@dataclass(frozen=True)
class _Front:
    """A front holds what all versions of the same shapes begin with.

    Attributes:
        source: the file.
        canonical: the canonical model.
        data: what accuracy is measured on; None if there is nothing.
        expected: what the original gives for it, batch by batch.
        metric: name of the metric; empty: the share of equal answers.
        accuracy: of the original, by the metric.
        compressed: the last models that were compressed, by what was done.
    """

    source: SourceModel
    canonical: CanonicalModel
    data: EvaluationData | None
    expected: tuple[Tensors, ...]
    metric: str
    accuracy: float
    compressed: dict[str, CanonicalModel] = field(default_factory=dict)


# The last one, and what it was made of: versions come one after the other.
_fronts: dict[str, _Front] = {}


def _front(subject: Subject, point: Point) -> _Front:
    key = hashlib.sha256(repr((subject, point.program)).encode()).hexdigest()
    if key not in _fronts:
        _fronts.clear()
        _fronts[key] = _make_front(subject, Point(program=point.program))
    return _fronts[key]


def _make_front(subject: Subject, plain: Point) -> _Front:
    options = subject.options_of(plain)
    source = read_model(
        subject.model.open(),
        options.limits,
        options.context,
        cache=options.cache,
        lora=options.adapters,
    )
    canonical = canonical_model(
        source, options.shapes, options.freeze, options.limits, images=options.images
    )
    data = _data(subject, options, canonical)
    base = subject.options.program_shapes[0].name
    if plain.program != base:
        # What is judged is the whole way: a smaller input may cost accuracy as well.
        expected = _make_front(subject, replace(plain, program=base)).expected
    else:
        expected = _expected(source, canonical, data)
    labelled = data is not None and data.labels is not None
    # A function of labels is called with labels, if there are any.
    metric = subject.metric or (options.samples.metric or "top1" if labelled else "")
    accuracy = math.nan
    if metric and data is not None:
        accuracy = _accuracy(metric, data, expected, expected)
    return _Front(source, canonical, data, expected, metric, accuracy)


def _data(
    subject: Subject, options: CompileOptions, canonical: CanonicalModel
) -> EvaluationData | None:
    """Return what accuracy is measured on, with labels if it has some."""
    specs, chosen = canonical.signature.inputs, options.samples
    if isinstance(subject.data, SharedPath):
        return open_data(subject.data.open(), specs, chosen.preprocess)
    if subject.data is not None:
        chosen = replace(chosen, source=subject.data, limit=MAX_BATCHES)
    samples = chosen.open(specs)
    if samples is None:
        return None
    return EvaluationData(samples.source, samples, None, batch_of(specs))


def _accuracy(
    name: str, data: EvaluationData, expected: Iterable[Tensors], actual: Iterable[Tensors]
) -> float:
    """Return how good outputs are by a metric, 1 is best.

    Args:
        name: of the metric.
        data: what they are for; its labels are what is true.
        expected: what the original gives; without labels, this is.
        actual: the outputs, batch by batch.
    """
    metric = make_metric(name)
    if data.labels is not None:
        metric.check(data.labels)
    for (_, labels), outputs, wanted in zip(data.batches(), actual, expected, strict=True):
        metric.add(outputs, metric.truth_of(wanted) if labels is None else labels)
    found = next(iter(metric.result().values()))
    return found if metric.larger_is_better else 1 - found


def _expected(
    source: SourceModel, canonical: CanonicalModel, data: EvaluationData | None
) -> tuple[Tensors, ...]:
    """Return what the original gives for samples."""
    if data is None:
        return ()
    original = source.original
    session = open_onnx_session(
        str(original) if isinstance(original, Path) else original.SerializeToString()
    )
    return tuple(
        run_onnx_session(session, {**prepared(sample, canonical.embedded), **canonical.frozen})
        for sample in data.samples
    )


def predict(subject: Subject, point: Point) -> dict[str, Any]:
    """Return predicted costs of a point, as fields; its drop is not known.

    Raises:
        EdgecError: it cannot be compiled.
    """
    program, _ = _program(subject, point, quick=True)
    return _costs(program, subject.target, subject.options, math.nan, None).fields()


def evaluate(subject: Subject, point: Point) -> dict[str, Any]:
    """Return the costs of a point as fields: latency is predicted, the others are exact.

    Raises:
        EdgecError: it cannot be compiled.
    """
    program, module = _program(subject, point, quick=False)
    front, target = _front(subject, point), subject.target
    signature = front.canonical.signature
    with scratch_folder() as scratch:
        library = scratch / "model.so"
        executor, _ = build([program], target, library)
        size = library.stat().st_size
        model: Runnable
        if why_not_here(target):
            model = evaluate_here(ExpandWeights()(module), signature)
        else:
            model = open_session(library, target, signature, executor)
        drop = _drop(model, front, subject)
        return _costs(program, target, subject.options, drop, size).fields()


def _drop(model: Runnable, front: _Front, subject: Subject) -> float:
    """Return the accuracy that is lost, or the share of answers that differ from the original's."""
    if front.data is None:
        return math.nan
    if front.metric:
        actual = map(model.run, front.data.samples)
        return max(
            0.0, front.accuracy - _accuracy(front.metric, front.data, front.expected, actual)
        )
    comparison = Comparison(load_metric(subject.options.samples.metric))
    for sample, expected in zip(front.data.samples, front.expected, strict=True):
        actual_outputs = model.run(sample)
        for name, array in expected.items():
            if actual_outputs[name].shape != array.shape:
                raise ShapeError(
                    f"output {name} is {list(actual_outputs[name].shape)} for this input size and "
                    f"{list(array.shape)} for the first; fit compares sizes of equal outputs only"
                )
        comparison.add(expected, actual_outputs)
    return max(0.0, 1 - comparison.result().score)


def _program(subject: Subject, point: Point, *, quick: bool) -> tuple[Program, IRModule]:
    """Return the scheduled program of a point, and its module before it was packed."""
    options, front, target = subject.options_of(point), _front(subject, point), subject.target
    decide = RecordedDecisions(
        tuned_records(
            target, options.records, options.records_threads, options.ready_records, Silent()
        )
    )
    if quick:
        options = _quick(options)
    canonical = _changed(
        _compressed(front, subject, point, options, decide, quick=quick),
        front,
        replace(options, compress=None),
        target,
        decide,
    )
    module = canonical.module
    lowered = lower(pack(module, target, canonical.value_names), target)
    program = schedule(lowered, module, target, canonical.signature, decide)
    if not isinstance(program, Program):
        raise UnsupportedModelError(
            "shapes in this model depend on data, so its versions cannot be compared; freeze the "
            "input that they depend on (--freeze)"
        )
    return program, module


def _quick(options: CompileOptions) -> CompileOptions:
    """Return options of the same shapes, that correct no values."""
    samples = replace(options.samples, limit=min(options.samples.limit, PREDICTION_BATCHES))
    compress, quantize = options.compression, options.quantization
    if compress is not None:
        steps = []
        for step in compress.recipe.step:
            wanted = {"repair": False, "score": "magnitude", "allocate": "error"}
            known = {n: v for n, v in wanted.items() if n in type(step).model_fields}
            steps.append(step.model_copy(update=known))
        # Training changes no shapes.
        kept = tuple(step for step in steps if step.kind != DISTILL)
        recipe = compress.recipe.model_copy(update={"step": kept})
        compress = replace(compress, recipe=recipe)
    if quantize is not None:
        quantize = replace(quantize, repair=False, max_drop=None)
    return replace(options, samples=samples, compress=compress, quantize=quantize)


def _compressed(
    front: _Front,
    subject: Subject,
    point: Point,
    options: CompileOptions,
    decide: Decide,
    *,
    quick: bool,
) -> CanonicalModel:
    """Return a point's model before it is quantized; the last ones are kept."""
    if options.compression is None:
        return front.canonical
    key = f"{point.compress} {quick}"
    if key not in front.compressed:
        while len(front.compressed) >= KEPT_MODELS:
            del front.compressed[next(iter(front.compressed))]
        alone = replace(options, quantize=None)
        if quick and not any(step.needs_samples for step in options.compression.recipe.step):
            # Nothing is measured then, so nothing is compiled for it.
            alone = replace(alone, samples=replace(alone.samples, source=None))
        front.compressed[key] = _changed(front.canonical, front, alone, subject.target, decide)
    return front.compressed[key]


def _changed(
    canonical: CanonicalModel,
    front: _Front,
    options: CompileOptions,
    target: Target,
    decide: Decide,
) -> CanonicalModel:
    """Return what compression and quantization make of a model, as a compile does it."""
    samples = open_samples(options, canonical.graph, canonical.signature)
    if samples is not None:
        inputs = rounded_to_half(next(iter(samples)))
    else:
        bounds = index_bounds(canonical.graph.graph)
        inputs = generate_inputs(canonical.signature.inputs, options.seed, bounds)
    sha256 = front.source.sha256
    changed = transform_model(
        canonical, target, options, samples, inputs, sha256, Silent(), decide=decide
    )
    return replace(canonical, module=changed.module)


def _costs(
    program: Program, target: Target, options: CompileOptions, drop: float, size: int | None
) -> Costs:
    """Return costs by the prediction of a program, with what is known exactly."""
    database = Database.read(options.records) if options.records is not None else None
    found = predict_program(program, target, database, library_bytes=size)
    return Costs(
        found.latency.value, drop, found.library_bytes, found.arena_bytes, found.latency.low
    )
