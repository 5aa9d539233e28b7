"""Measure how fast bundles are: latency, where the time goes, and beside other runtimes.

These machines are noisy, so nothing is timed on its own. All runtimes live in one process and
take turns: in each round each one runs a short burst, warm, after a pause in which the threads of
the one before go to sleep. What counts is the median, and between runtimes the median of the
ratios of each round. Other work can be a part of the measurement: processes that do nothing but
keep cores busy, beside all runtimes alike.
"""

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgec.compiler.bench.load import busy_processes
from edgec.compiler.bench.rivals import find_rival, load_rival
from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.bundle.manifest import Manifest, ProgramRecord
from edgec.compiler.errors import BundleError, ToolchainError, UsageError
from edgec.compiler.frontend.embed_preprocessing import embed_preprocessing
from edgec.compiler.frontend.model_source import read_model
from edgec.compiler.frontend.preprocessing import ImageInput
from edgec.compiler.frontend.specialize import specialize
from edgec.compiler.ir.signature import Signature, Tensors
from edgec.compiler.runtime.inputs import generate_inputs
from edgec.compiler.runtime.programs import Programs
from edgec.compiler.runtime.static_session import StaticSession, StepInfo
from edgec.compiler.support.cores import usable_cores
from edgec.compiler.support.files import scratch_folder
from edgec.compiler.support.limits import check_busy, check_positive, check_threads
from edgec.compiler.support.processes import run_program

# Long enough for the threads of another runtime to stop spinning.
PAUSE_SECONDS = 0.005
BURST_SECONDS = 0.02
# Beside other work: long enough that the pause before it earns nobody a turn on the core.
LOADED_BURST_SECONDS = 0.25
# Of one burst.
MOST_RUNS = 10_000
# Loading a bundle and running it once.
START_UP_SECONDS = 600.0


@dataclass(frozen=True)
class Latency:
    """Times of single runs [ms].

    Attributes:
        name: a bundle's path or a runtime's name and version.
        times_ms: each run, in the order measured.
        rounds_ms: median of each round.
    """

    name: str
    times_ms: tuple[float, ...]
    rounds_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Median of all runs."""
        return statistics.median(self.times_ms)

    def summary(self) -> dict[str, float]:
        """Return minimum, mean, median and percentiles [ms], and runs per second."""
        times = np.array(self.times_ms)
        return {
            "min_ms": float(times.min()),
            "mean_ms": float(times.mean()),
            "median_ms": self.median_ms,
            "p90_ms": float(np.percentile(times, 90)),
            "p99_ms": float(np.percentile(times, 99)),
            "per_second": 1e3 / self.median_ms,
        }


@dataclass(frozen=True)
class StepTime:
    """A step time describes one kernel call of a bundle.

    Attributes:
        label: the operators it computes.
        template: its kernel template, or `generic`.
        median_us: time [microseconds].
        gflops: speed.
        peak_share: the peak share of what the target's cores can do together.
    """

    label: str
    template: str
    median_us: float
    gflops: float
    peak_share: float


@dataclass(frozen=True)
class BenchReport:
    """A bench report describes what a benchmark found.

    Attributes:
        threads: threads of every runtime.
        busy: processes that kept cores busy meanwhile.
        bundles: one latency for each bundle.
        rivals: one for each other runtime that ran.
        cannot: why others cannot run the model, by name and version.
        ratios: how many times as fast as a rival the first bundle is, by rival.
        steps: profile of the first bundle, in the order of execution; empty for the virtual
            machine.
        load_ms: from the file to the first result, by bundle.
        memory_mib: memory that loading and running made resident, in a process that does only
            that, by bundle.
    """

    threads: int
    bundles: tuple[Latency, ...]
    busy: int = 0
    rivals: tuple[Latency, ...] = ()
    cannot: dict[str, str] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    steps: tuple[StepTime, ...] = ()
    load_ms: dict[str, float] = field(default_factory=dict)
    memory_mib: dict[str, float] = field(default_factory=dict)


def bench_bundles(
    bundles: Sequence[Bundle | str | Path],
    *,
    threads: int = 1,
    seconds: float = 3.0,
    busy: int = 0,
    against: Sequence[str] = (),
    model: str | Path | None = None,
    inputs: Tensors | None = None,
    program: str | None = None,
) -> BenchReport:
    """Measure bundles, and other runtimes on the ONNX file that they come from.

    A runtime that cannot load or run the model is named in the report; the others are measured.

    Args:
        bundles: all of the same model, or their paths.
        threads: for each runtime; 0 is one for each core.
        seconds: measuring time for each runtime.
        busy: processes that keep cores busy while latencies and the profile are measured.
        against: names in `edgec.compiler.bench.rivals.RIVALS`.
        model: the ONNX file; needed for rivals.
        inputs: input tensors; generated ones otherwise.
        program: the program whose inputs are generated; None is the first.

    Raises:
        UsageError: rivals without a model, or bundles of different models.
        ToolchainError: a rival's package is missing.
    """
    check_threads(threads)
    check_busy(busy)
    check_positive("--seconds", seconds)
    opened = [Bundle.of(bundle) for bundle in bundles]
    _check(opened, against, model)
    manifest = opened[0].manifest
    if inputs is None:
        specs = manifest.signature_of(program).inputs
        inputs = generate_inputs(specs, 0, manifest.settings.index_bounds)
    number, _ = Programs(manifest.signatures).fitting(inputs)
    measured = manifest.programs[number]
    signature, given = _for_rivals(manifest, measured, inputs)
    sessions = [bundle.open(threads) for bundle in opened]
    actual = threads or usable_cores()
    runners = [_runner(session, inputs) for session in sessions]
    names = [str(bundle.path) for bundle in opened]
    cannot = {}
    rivals = [find_rival(name) for name in against]
    versions = [rival.version() for rival in rivals]
    with scratch_folder() as scratch:
        static = scratch / "static.onnx"
        if model is not None and against:
            _save_static(Path(model), opened[0], measured, static)
        for rival, version in zip(rivals, versions, strict=True):
            folder = scratch / rival.name
            folder.mkdir()
            name = f"{rival.name} {version}"
            try:
                runners.append(load_rival(rival, static, given, signature, actual, folder))
                names.append(name)
            except ToolchainError as error:
                cannot[name] = str(error)
        with busy_processes(busy):
            burst = LOADED_BURST_SECONDS if busy else BURST_SECONDS
            latencies = take_turns(names, runners, seconds, burst)
            steps = _profile(sessions[0], inputs, opened[0], actual, min(seconds, 1.0))
    count = len(opened)
    ratios = {
        rival.name: statistics.median(
            theirs / ours
            for theirs, ours in zip(rival.rounds_ms, latencies[0].rounds_ms, strict=True)
        )
        for rival in latencies[count:]
    }
    starts = [_start_up(bundle, actual) for bundle in opened]
    return BenchReport(
        threads=actual,
        busy=busy,
        bundles=tuple(latencies[:count]),
        rivals=tuple(latencies[count:]),
        cannot=cannot,
        ratios=ratios,
        steps=steps,
        load_ms={name: start[0] for name, start in zip(names, starts, strict=False)},
        memory_mib={name: start[1] for name, start in zip(names, starts, strict=False)},
    )


def _check(bundles: Sequence[Bundle], against: Sequence[str], model: str | Path | None) -> None:
    if not bundles:
        raise UsageError("at least one bundle is needed")
    if against and model is None:
        raise UsageError("--against needs --model, the ONNX file that the others run")
    sources = {bundle.manifest.model.sha256 for bundle in bundles}
    if len(sources) > 1:
        raise UsageError("the bundles are of different models; bench them one at a time")
    for name in against:
        find_rival(name)


def _runner(session: Any, inputs: Tensors) -> Callable[[], None]:
    if isinstance(session, StaticSession):
        prepared = session.prepare(inputs)
        return lambda: session.run_prepared(prepared)
    return lambda: session.run(inputs)


def _for_rivals(
    manifest: Manifest, program: ProgramRecord, inputs: Tensors
) -> tuple[Signature, Tensors]:
    """Return what runtimes without state take and give: states are inputs, zeros here."""
    specs = tuple(record.spec_of(program) for record in manifest.states)
    zeros = {s.name: np.zeros([extent or 0 for extent in s.shape], s.dtype) for s in specs}
    signature = program.signature
    return Signature((*signature.inputs, *specs), signature.outputs), {**inputs, **zeros}


def _save_static(model: Path, bundle: Bundle, program: ProgramRecord, path: Path) -> None:
    """Write the ONNX file with a program's shapes, frozen inputs and preprocessing.

    So all compute the same on the same inputs.
    """
    manifest = bundle.manifest
    source = read_model(model, context=manifest.settings.context, cache=manifest.settings.cache)
    if source.sha256 != manifest.model.sha256:
        raise BundleError(f"{bundle.path} was compiled from another file than {model}")
    settings = manifest.settings
    embedded = settings.embedded
    # The shapes are those of the original's inputs.
    shapes = {**settings.shapes, **program.shapes}
    proto = specialize(source.proto, shapes, settings.frozen_values).proto
    if embedded is not None:
        proto, _ = embed_preprocessing(
            proto, ImageInput(preprocess=embedded.preprocess, size=embedded.size)
        )
    onnx.save(proto, path)


def take_turns(
    names: Sequence[str],
    runners: Sequence[Callable[[], None]],
    seconds: float,
    burst_seconds: float = BURST_SECONDS,
) -> list[Latency]:
    """Return the times of several callables, measured in alternation.

    Args:
        names: the names of the callables.
        runners: what to time.
        seconds: measuring time for each.
        burst_seconds: how long one runs before it is the next one's turn.
    """
    bursts = []
    for runner in runners:
        runner()
        start = time.perf_counter()
        runner()
        once = time.perf_counter() - start
        bursts.append(max(1, min(MOST_RUNS, int(burst_seconds / max(once, 1e-7)))))
    times: list[list[float]] = [[] for _ in runners]
    rounds: list[list[float]] = [[] for _ in runners]
    collecting = gc.isenabled()
    gc.disable()
    try:
        deadline = time.perf_counter() + seconds * len(runners)
        while time.perf_counter() < deadline or len(rounds[0]) < 5:
            for number, runner in enumerate(runners):
                time.sleep(PAUSE_SECONDS)
                runner()
                burst = [_time_ms(runner) for _ in range(bursts[number])]
                times[number] += burst
                rounds[number].append(statistics.median(burst))
    finally:
        if collecting:
            gc.enable()
    return [
        Latency(name, tuple(all_times), tuple(medians))
        for name, all_times, medians in zip(names, times, rounds, strict=True)
    ]


def _time_ms(runner: Callable[[], None]) -> float:
    start = time.perf_counter()
    runner()
    return (time.perf_counter() - start) * 1e3


def _profile(
    session: Any, inputs: Tensors, bundle: Bundle, threads: int, seconds: float
) -> tuple[StepTime, ...]:
    if not isinstance(session, StaticSession):
        return ()
    prepared = session.prepare(inputs)
    session.run_timed(prepared)
    samples: list[NDArray[np.uint64]] = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(samples) < 5:
        samples.append(session.run_timed(prepared))
    steps = session.steps(prepared.program)
    return step_times(steps, samples, bundle.manifest.target.peak_gflops * threads)


def step_times(
    steps: Sequence[StepInfo], samples: Sequence[NDArray[np.uint64]], peak_gflops: float
) -> tuple[StepTime, ...]:
    """Return the profile of a model.

    Args:
        steps: its kernel calls.
        samples: the times of each run, the nanoseconds of each step.
        peak_gflops: the peak rate of all cores that computed.
    """
    medians = np.median(np.stack(samples), axis=0) if steps else np.zeros(0)
    return tuple(
        StepTime(
            step.label,
            step.template,
            float(ns) / 1e3,
            step.flops / max(float(ns), 1),
            step.flops / max(float(ns), 1) / peak_gflops,
        )
        for step, ns in zip(steps, medians, strict=True)
    )


def _start_up(bundle: Bundle, threads: int) -> tuple[float, float]:
    """Return time from the library to the first result [ms].

    And memory that it made resident [MiB].
    """
    # -P: files of the current folder must not hide modules.
    command = [sys.executable, "-P", "-m", "edgec.compiler.bench.start_up"]
    failure = f"{bundle.path}: its start cannot be measured"
    output = run_program([*command, str(bundle.path), str(threads)], failure, START_UP_SECONDS)
    milliseconds, mib = json.loads(output)
    return milliseconds, mib
