"""Evaluate bundles side by side: accuracy on data, latency, memory, size and energy."""

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.bench.compare import take_turns
from edgec.compiler.boards.qemu import find_board
from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.bundle.manifest import Manifest
from edgec.compiler.cascade.cascade_bundle import CascadeBundle
from edgec.compiler.errors import BadInputError, UsageError
from edgec.compiler.evaluate.data import EvaluationData, open_data
from edgec.compiler.evaluate.metrics import Metric, make_metric
from edgec.compiler.evaluate.scoring import (
    HIGH,
    LOW,
    Examination,
    Scored,
    measure_on_board,
    open_bundle,
    score,
)
from edgec.compiler.frontend.preprocessing import Preprocess
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.jobs.pool import JobOptions, Pool, open_pool
from edgec.compiler.predict.energy import measure_energy
from edgec.compiler.predict.prediction import Energy, Estimate
from edgec.compiler.runtime.inputs import generate_inputs
from edgec.compiler.runtime.session import why_not_here
from edgec.compiler.runtime.static_session import StaticSession
from edgec.compiler.support.limits import check_positive, check_threads
from edgec.compiler.support.progress import Progress, Silent

LatencySource = Literal["measured", "predicted", "unknown"]

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
        jobs: where accuracy is measured; None: in this process.
        board: name of the board that runs the bundles; empty: this machine.
    """

    data: str | Path | None = None
    metric: str = "top1"
    preprocess: Preprocess | None = None
    model: str | Path | None = None
    limit: int | None = None
    threads: int = 1
    seconds: float = 2.0
    jobs: JobOptions | None = None
    board: str = ""

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
        compressed: likewise, and how many exits; empty: all of the model for every input.
        accuracy: figures by name, the metric first; empty where none was measured.
        why_no_accuracy: why not.
        latency: of one inference [ms]: median and quartiles where measured.
        latency_source: `measured` here or on the board, `predicted` when it was compiled, or
            `unknown`.
        arena_bytes: activations at their peak, exact.
        library_bytes: of the shared library, exact.
        bundle_bytes: of all files.
        latency_is_mean: whether it is the mean over inputs, of a model that ends early for some.
        energy: of an inference; None where nothing is known.
        instructions: of an inference, counted where QEMU plays a board; 0: not counted.
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
    latency_is_mean: bool = False
    energy: Energy | None = None
    instructions: int = 0


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
        board: that measured; empty: this machine.
    """

    bundles: tuple[Evaluated, ...]
    metric: str
    larger_is_better: bool
    truth: str
    samples: int
    threads: int
    board: str = ""


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
        BoardError: the board cannot be reached, or failed.
        ClusterError: the cluster cannot be reached.
    """
    options = options or EvaluationOptions()
    if not bundles:
        raise UsageError("at least one bundle is needed")
    opened = [open_bundle(bundle) for bundle in bundles]
    metric = make_metric(options.metric)
    if options.board and not (options.jobs and options.jobs.cluster):
        find_board(options.board)
    for bundle in opened:
        if options.board and isinstance(bundle, CascadeBundle):
            raise UsageError(f"{bundle.path} is a cascade: leave --board, it runs here")
    rows = [_described(bundle) for bundle in opened]
    truth, samples = "", 0
    with open_pool(options.jobs or JobOptions()) as pool:
        if options.data is not None:
            scored, truth = _scored(opened, options, metric, pool, progress or Silent())
            samples = max((item.samples for item in scored), default=0)
            rows = [
                replace(row, accuracy=item.accuracy, why_no_accuracy=item.why_not)
                for row, item in zip(rows, scored, strict=True)
            ]
        if options.board:
            rows = _with_board(rows, opened, options, pool)
    if not options.board:
        rows = _with_latency(rows, opened, options, _varying(opened, options))
    name = metric.name if options.data is not None else ""
    return Evaluation(
        tuple(rows),
        name,
        metric.larger_is_better,
        truth,
        samples,
        options.threads,
        options.board,
    )


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
        compressed=", ".join(_shortenings(manifest)),
        arena_bytes=execution.arena_bytes,
        library_bytes=library,
        bundle_bytes=sum(record.size_bytes for record in files.values()),
        latency=latency,
        latency_source=source,
        energy=energy,
    )


def _shortenings(manifest: Manifest) -> list[str]:
    """Return what leaves out work: a recipe of compression, early exits."""
    recipe = [] if manifest.compression is None else [str(manifest.compression.recipe["name"])]
    return recipe + ([] if manifest.exits is None else [f"{len(manifest.exits.exits)} exits"])


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


def _scored(
    bundles: Sequence[Bundle | CascadeBundle],
    options: EvaluationOptions,
    metric: Metric,
    pool: Pool,
    progress: Progress,
) -> tuple[list[Scored], str]:
    """Return the accuracy of each, and what was taken for true."""
    assert options.data is not None
    data = open_data(options.data, bundles[0].manifest.signature.inputs, options.preprocess)
    if data.labels is not None:
        metric.check(data.labels)
    _check_truth(bundles, data, options)
    examination = Examination(
        data=pool.share(Path(options.data)),
        source=data.source,
        metric=options.metric,
        preprocess=options.preprocess,
        limit=options.limit,
        threads=options.threads,
        model=None if options.model is None else pool.share(Path(options.model)),
        bundle=None if _has_truth(data, options) else pool.share(bundles[0].path),
        board=options.board,
    )
    shared = [pool.share(bundle.path) for bundle in bundles]
    if options.jobs is None:
        found = [score(examination, bundle, progress) for bundle in shared]
    else:
        executor = pool.executor(options.board)
        futures = [executor.submit(score, examination, bundle) for bundle in shared]
        with progress.parts("accuracy", len(futures)) as advance:
            found = []
            for future in futures:
                found.append(future.result())
                advance()
    if data.labels is not None:
        return found, f"labels of {data.source}"
    return found, f"answers of {options.model or bundles[0].path}"


def _has_truth(data: EvaluationData, options: EvaluationOptions) -> bool:
    return data.labels is not None or options.model is not None


def _check_truth(
    bundles: Sequence[Bundle | CascadeBundle], data: EvaluationData, options: EvaluationOptions
) -> None:
    """Refuse data without anything to compare answers with, and with too much of it."""
    if data.labels is not None:
        if options.model is not None:
            raise UsageError(f"--model stands in for labels, but {data.source} has some")
    elif options.model is None:
        if not options.board and why_not_here(bundles[0].manifest.target):
            raise BadInputError(
                f"{data.source} has no labels, and {bundles[0].path}, whose answers would stand in "
                "for them, does not run here; give --model ORIGINAL.onnx"
            )
        if len(bundles) == 1:
            raise UsageError(
                f"{data.source} has no labels to evaluate one bundle by; give --model ORIGINAL.onnx"
            )


def _with_board(
    rows: Sequence[Evaluated],
    bundles: Sequence[Bundle | CascadeBundle],
    options: EvaluationOptions,
    pool: Pool,
) -> list[Evaluated]:
    """Return rows with what a board measures, one bundle after the other."""
    found = []
    for row, bundle in zip(rows, bundles, strict=True):
        given = (pool.share(bundle.path), options.board, options.threads, options.seconds)
        if options.jobs is None:
            speed = measure_on_board(*given)
        else:
            speed = pool.executor(options.board).submit(measure_on_board, *given).result()
        row = replace(row, instructions=speed.instructions)
        if speed.latency is not None:
            row = replace(row, latency=speed.latency, latency_source="measured")
        found.append(row)
    return found


def _with_latency(
    rows: Sequence[Evaluated],
    bundles: Sequence[Bundle | CascadeBundle],
    options: EvaluationOptions,
    given: Sequence[Tensors],
) -> list[Evaluated]:
    """Return rows with the latency of those that run here, measured in turns.

    Of models that end early for some inputs it is the mean over the data, if there are any.
    """
    runners: dict[int, Callable[[], Any]] = {}
    for number, bundle in enumerate(bundles):
        manifest = bundle.manifest
        if why_not_here(manifest.target):
            continue
        session = bundle.open(options.threads)
        bounds = manifest.settings.index_bounds
        if given and ends_early(bundle):
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
            latency_is_mean=isinstance(runner, _Cycling),
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
