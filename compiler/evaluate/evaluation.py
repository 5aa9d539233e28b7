"""Evaluate bundles side by side: accuracy on data, latency, memory, size and energy."""

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.bench.compare import take_turns
from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.bundle.manifest import Manifest
from edgec.compiler.cascade.cascade import is_cascade
from edgec.compiler.cascade.cascade_bundle import CascadeBundle
from edgec.compiler.errors import BadInputError, UsageError
from edgec.compiler.evaluate.data import EvaluationData, open_data
from edgec.compiler.evaluate.metrics import Metric, TopK, class_scores, make_metric
from edgec.compiler.frontend.model_source import read_model
from edgec.compiler.frontend.preprocessing import Preprocess
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.parity.prepared_images import prepared
from edgec.compiler.predict.energy import measure_energy
from edgec.compiler.predict.prediction import Energy, Estimate
from edgec.compiler.runtime.inputs import generate_inputs
from edgec.compiler.runtime.session import why_not_here
from edgec.compiler.runtime.static_session import StaticSession
from edgec.compiler.support.limits import check_positive, check_threads
from edgec.compiler.support.onnx_runtime import open_onnx_session, run_onnx_session
from edgec.compiler.support.progress import Progress, Silent

LatencySource = Literal["measured", "predicted", "unknown"]

# Half of the times lie between these percentiles.
LOW, HIGH = 25, 75
# Batches that models are timed on which end early for some inputs.
_TIMED = 256


@dataclass(frozen=True)
class EvaluationOptions:
    """Evaluation options describe how bundles are evaluated.

    Attributes:
        data: folder or NPZ; None evaluates no accuracy.
        metric: name, or `module:function`.
        preprocess: of images.
        model: ONNX file whose answers stand in for labels; None: those of the first bundle.
        limit: batches that are looked at, at most.
        threads: for each bundle; 0 is one for each core.
        seconds: measuring time of each.
    """

    data: str | Path | None = None
    metric: str = "top1"
    preprocess: Preprocess | None = None
    model: str | Path | None = None
    limit: int | None = None
    threads: int = 1
    seconds: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: says which setting.
        """
        check_threads(self.threads)
        check_positive("--seconds", self.seconds)
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit}: at least 1 batch is needed")
        if self.model is not None and self.data is None:
            raise UsageError("--model stands in for labels of --data, which is not given")


@dataclass(frozen=True)
class Evaluated:
    """An evaluated bundle has these figures.

    Attributes:
        path: the bundle.
        model: name of the model's file.
        target: name of its target.
        quantized: name of the recipe; empty: floats.
        compressed: likewise; empty: all weights.
        accuracy: figures by name, the metric first; empty where none was measured.
        why_no_accuracy: why not.
        latency: of one inference [ms]: median and quartiles where measured.
        latency_source: `measured` here, `predicted` when it was compiled, or `unknown`.
        arena_bytes: activations at their peak, exact.
        library_bytes: of the shared library, exact.
        bundle_bytes: of all files.
        energy: of an inference; None where nothing is known.
    """

    path: str
    model: str
    target: str
    quantized: str
    compressed: str
    arena_bytes: int
    library_bytes: int
    bundle_bytes: int
    accuracy: dict[str, float] = field(default_factory=dict)
    why_no_accuracy: str = ""
    latency: Estimate | None = None
    latency_source: LatencySource = "unknown"
    energy: Energy | None = None


@dataclass(frozen=True)
class Evaluation:
    """An evaluation describes bundles side by side.

    Attributes:
        bundles: in the order given.
        metric: name of the metric; empty where no accuracy was measured.
        larger_is_better: of the metric.
        truth: what answers were compared with.
        samples: how many.
        threads: that latency was measured on.
    """

    bundles: tuple[Evaluated, ...]
    metric: str
    larger_is_better: bool
    truth: str
    samples: int
    threads: int


class _Runs(Protocol):
    def run(self, inputs: Tensors) -> Tensors: ...


def evaluate_bundles(
    bundles: Sequence[Bundle | str | Path],
    options: EvaluationOptions | None = None,
    *,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate bundles of models that do the same, side by side.

    Args:
        bundles: the bundles, or their paths.
        options: data, metric, threads.
        progress: reports what takes long.

    Returns:
        The figures of each. A bundle that cannot run here has the latency that was predicted when
        it was compiled, and no accuracy.

    Raises:
        UsageError: no bundle, or an unknown metric.
        BadInputError: data, labels and outputs do not fit one another.
    """
    options = options or EvaluationOptions()
    if not bundles:
        raise UsageError("at least one bundle is needed")
    opened = [_opened(bundle) for bundle in bundles]
    metric = make_metric(options.metric)
    rows = [_described(bundle) for bundle in opened]
    here = [not why_not_here(bundle.manifest.target) for bundle in opened]
    sessions = {n: b.open(options.threads) for n, b in enumerate(opened) if here[n]}
    truth, samples = "", 0
    if options.data is not None:
        first = opened[0].manifest
        data = open_data(options.data, first.signature.inputs, options.preprocess)
        if data.labels is not None:
            metric.check(data.labels)
        scored, truth, samples = _accuracy(opened, sessions, data, options, progress or Silent())
        rows = [
            replace(row, accuracy=scored[n])
            if n in scored
            else replace(row, why_no_accuracy=f"{row.target} code does not run here")
            for n, row in enumerate(rows)
        ]
    rows = _with_latency(rows, opened, sessions, options, _varying(opened, options))
    name = metric.name if options.data is not None else ""
    return Evaluation(tuple(rows), name, metric.larger_is_better, truth, samples, options.threads)


def _opened(bundle: Bundle | str | Path) -> Bundle | CascadeBundle:
    if not isinstance(bundle, Bundle) and is_cascade(bundle):
        return CascadeBundle(Path(bundle))
    return Bundle.of(bundle)


def _described(bundle: Bundle | CascadeBundle) -> Evaluated:
    if isinstance(bundle, CascadeBundle):
        return _described_cascade(bundle)
    manifest = bundle.manifest
    files = manifest.files
    library = next((r.size_bytes for name, r in files.items() if name.startswith("model.so")), 0)
    execution, quantization = manifest.execution, manifest.quantization
    predicted = execution.predicted
    latency = None
    source: LatencySource = "unknown"
    energy = None
    if predicted is not None:
        latency = Estimate(predicted.latency_ms, predicted.low_ms, predicted.high_ms)
        source = "predicted"
        energy = Energy(predicted.energy_mj, "model")
    return Evaluated(
        path=str(bundle.path),
        model=manifest.model.name,
        target=manifest.target.name,
        quantized=str(quantization.recipe["name"]) if quantization is not None else "",
        compressed=str(manifest.compression.recipe["name"]) if manifest.compression else "",
        arena_bytes=execution.arena_bytes,
        library_bytes=library,
        bundle_bytes=sum(record.size_bytes for record in files.values()),
        latency=latency,
        latency_source=source,
        energy=energy,
    )


def _described_cascade(cascade: CascadeBundle) -> Evaluated:
    """Return the figures of both models: the sum of their sizes, and times of both together."""
    small, large = _described(cascade.small), _described(cascade.large)
    share = cascade.cascade.escalated
    latency = energy = None
    if small.latency is not None and large.latency is not None:
        pairs = zip(astuple(small.latency), astuple(large.latency), strict=True)
        latency = Estimate(*(one + share * other for one, other in pairs))
    if small.energy is not None and large.energy is not None:
        energy = Energy(small.energy.millijoules + share * large.energy.millijoules, "model")
    return replace(
        large,
        path=str(cascade.path),
        model=f"{small.model}, {large.model}",
        arena_bytes=small.arena_bytes + large.arena_bytes,
        library_bytes=small.library_bytes + large.library_bytes,
        bundle_bytes=small.bundle_bytes + large.bundle_bytes,
        latency=latency,
        energy=energy,
    )


def _accuracy(
    bundles: Sequence[Bundle | CascadeBundle],
    sessions: dict[int, Any],
    data: EvaluationData,
    options: EvaluationOptions,
    progress: Progress,
) -> tuple[dict[int, dict[str, float]], str, int]:
    """Return the accuracy of those that run here, what was taken for true, and the samples."""
    metrics = {number: make_metric(options.metric) for number in sessions}
    reference, truth_name = _reference(bundles, sessions, data, options)
    count = 0
    with progress.parts("accuracy", data.samples.count) as advance:
        for inputs, labels in data.batches(options.limit):
            count += data.batch
            outputs = {n: _run(sessions[n], bundles[n].manifest, inputs) for n in sessions}
            for number, metric in metrics.items():
                truth: Any = labels
                if labels is None:
                    answers = reference(inputs) if reference is not None else outputs[0]
                    truth = metric.truth_of(answers)
                _check_counts(metric, outputs[number], truth)
                metric.add(outputs[number], truth)
            advance()
    if not count:
        raise BadInputError(f"--data {data.source} holds no whole batch of {data.batch} samples")
    return {n: metric.result() for n, metric in metrics.items()}, truth_name, count


def _reference(
    bundles: Sequence[Bundle | CascadeBundle],
    sessions: dict[int, Any],
    data: EvaluationData,
    options: EvaluationOptions,
) -> tuple[Callable[[Tensors], Tensors] | None, str]:
    """Return what gives the answers that stand in for labels, and what the truth is called."""
    if data.labels is not None:
        if options.model is not None:
            raise UsageError(f"--model stands in for labels, but {data.source} has some")
        return None, f"labels of {data.source}"
    if options.model is None:
        if 0 not in sessions:
            raise BadInputError(
                f"{data.source} has no labels, and {bundles[0].path}, whose answers would stand in "
                "for them, does not run here; give --model ORIGINAL.onnx"
            )
        if len(bundles) == 1:
            raise UsageError(
                f"{data.source} has no labels to evaluate one bundle by; give --model ORIGINAL.onnx"
            )
        return None, f"answers of {bundles[0].path}"
    return _original(Path(options.model), bundles[0].manifest), f"answers of {options.model}"


def _original(model: Path, manifest: Manifest) -> Callable[[Tensors], Tensors]:
    """Return what runs the original ONNX file on the inputs of a bundle."""
    source = read_model(model, context=manifest.settings.context, cache=manifest.settings.cache)
    if source.sha256 != manifest.model.sha256:
        raise BadInputError(f"--model {model} is another file than the bundles were compiled from")
    try:
        session = open_onnx_session(str(model))
    except Exception as error:
        # ONNX Runtime's exceptions have no common base but this one.
        raise BadInputError(f"--model {model}: ONNX Runtime cannot load it: {error}") from None
    settings = manifest.settings
    frozen = settings.frozen_values

    def run(inputs: Tensors) -> Tensors:
        return run_onnx_session(session, {**prepared(inputs, settings.embedded), **frozen})

    return run


def _check_counts(metric: Metric, outputs: Tensors, truth: Any) -> None:
    """Refuse outputs that hold another number of answers than there are labels."""
    if not isinstance(metric, TopK):
        return
    scores = class_scores(outputs)
    if len(scores) != len(np.asarray(truth).reshape(-1)):
        raise BadInputError(
            f"--metric {metric.name}: the model gives {len(scores)} answers where "
            f"{len(truth)} are labelled; give --metric cer, map, or module:function"
        )


def _run(session: _Runs, manifest: Manifest, inputs: Tensors) -> Tensors:
    specs = manifest.signature.inputs
    wrong = [s for s in specs if s.name not in inputs or tuple(inputs[s.name].shape) != s.shape]
    if wrong:
        raise BadInputError(
            f"the bundles take different inputs: {wrong[0]} of {manifest.model.name} for "
            f"{manifest.target.name} does not fit the data"
        )
    return session.run(inputs)


def _with_latency(
    rows: Sequence[Evaluated],
    bundles: Sequence[Bundle | CascadeBundle],
    sessions: dict[int, Any],
    options: EvaluationOptions,
    given: Sequence[Tensors],
) -> list[Evaluated]:
    """Return rows with the latency of those that run here, measured in turns.

    Of models that end early for some inputs it is the mean over the data, if there are any.
    """
    runners: dict[int, Callable[[], Any]] = {}
    for number, session in sessions.items():
        manifest = bundles[number].manifest
        bounds = manifest.settings.index_bounds
        if given and ends_early(bundles[number]):
            runners[number] = _Cycling(session, given)
            continue
        runners[number] = _runner(session, generate_inputs(manifest.signature.inputs, 0, bounds))
    if not runners:
        return list(rows)
    names = [rows[number].path for number in runners]
    found = take_turns(names, list(runners.values()), options.seconds)
    measured = dict(zip(runners, found, strict=True))
    result = list(rows)
    for number, latency in measured.items():
        low, high = np.percentile(latency.times_ms, [LOW, HIGH])
        runner = runners[number]
        middle = runner.mean_ms if isinstance(runner, _Cycling) else latency.median_ms
        result[number] = replace(
            rows[number],
            latency=Estimate(middle, float(low), float(high)),
            latency_source="measured",
            energy=measure_energy(runners[number], time.perf_counter) or rows[number].energy,
        )
    return result


def ends_early(bundle: Bundle | CascadeBundle) -> bool:
    """Return whether the time of an inference depends on its inputs."""
    return isinstance(bundle, CascadeBundle) or bundle.manifest.exits is not None


def _varying(
    bundles: Sequence[Bundle | CascadeBundle], options: EvaluationOptions
) -> list[Tensors]:
    """Return inputs of the data for models whose time depends on them; empty without any."""
    if options.data is None or not any(map(ends_early, bundles)):
        return []
    specs = bundles[0].manifest.signature.inputs
    data = open_data(options.data, specs, options.preprocess)
    return [inputs for inputs, _ in data.batches(min(options.limit or _TIMED, _TIMED))]


class _Cycling:
    """Runs one of several inputs after the other, and keeps the times of each."""

    def __init__(self, session: Any, given: Sequence[Tensors]) -> None:
        self._runners = [_runner(session, dict(inputs)) for inputs in given]
        self._times: list[list[float]] = [[] for _ in given]
        self._next = 0

    def __call__(self) -> None:
        number, self._next = self._next, (self._next + 1) % len(self._runners)
        began = time.perf_counter()
        self._runners[number]()
        self._times[number].append(1e3 * (time.perf_counter() - began))

    @property
    def mean_ms(self) -> float:
        """Return the mean over inputs of the median of each [ms]."""
        return float(np.mean([np.median(times) for times in self._times if times]))


def _runner(session: Any, inputs: dict[str, NDArray[Any]]) -> Callable[[], Any]:
    if isinstance(session, StaticSession):
        prepared = session.prepare(inputs)
        return lambda: session.run_prepared(prepared)
    return lambda: session.run(inputs)
