"""Measure a split model: latency, throughput, what stages and links do meanwhile."""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgec.compiler.bench.compare import Latency
from edgec.compiler.distribute.plan_session import PlanSession
from edgec.compiler.distribute.stages import StageTimes
from edgec.compiler.errors import BoardError
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.runtime.inputs import generate_inputs
from edgec.compiler.support.limits import check_positive

ROUNDS = 5
# A request of a plan is never waited for longer.
ANSWER_SECONDS = 600.0


@dataclass(frozen=True)
class StageBench:
    """A stage bench describes one stage.

    Attributes:
        device: who computes it.
        bundle: what.
        compute_ms: median of a run.
        busy: share of the time of the throughput test that it computed.
    """

    device: str
    bundle: str
    compute_ms: float
    busy: float


@dataclass(frozen=True)
class LinkBench:
    """A link bench describes what travels between two devices for one request.

    Attributes:
        source: a device, or `host`.
        target: likewise.
        values: names of what is sent.
        size_bytes: of them together.
    """

    source: str
    target: str
    values: tuple[str, ...]
    size_bytes: int


@dataclass(frozen=True)
class PlanBench:
    """A plan bench describes how fast a split model is.

    Attributes:
        latency: of one request at a time, through all stages.
        whole: of the whole model on this machine, measured in turns; None without one.
        per_second: requests with several under way.
        stages: in order.
        links: what travels.
        outside_ms: median part of the latency in which no stage computes: sending, waking up.
        hops: links that a request passes one after the other.
        times: what stages did during the throughput test, on the monotonic clock.
        spans: number, submission and answer of its requests [ns].
    """

    latency: Latency
    whole: Latency | None
    per_second: float
    stages: tuple[StageBench, ...]
    links: tuple[LinkBench, ...]
    outside_ms: float
    hops: int
    times: tuple[StageTimes, ...]
    spans: tuple[tuple[int, int, int], ...]

    @property
    def speedup(self) -> float | None:
        """Return throughput against the whole model, one request after the other."""
        return None if self.whole is None else self.per_second * self.whole.median_ms / 1e3


def bench_plan(
    session: PlanSession,
    inputs: Tensors | None = None,
    *,
    program: str | None = None,
    seconds: float = 3.0,
) -> PlanBench:
    """Measure.

    Args:
        session: with the stages.
        inputs: by name; generated ones otherwise.
        program: whose inputs are generated; None is the first.
        seconds: measuring time: half of it with one request at a time and, in turns, the whole
            model; half with as many under way as the stages take.

    Raises:
        UsageError: the time is not positive, or there is no such program.
        BoardError: a stage was lost.
    """
    check_positive("--seconds", seconds)
    if inputs is None:
        planned = session.plan.program(program)
        inputs = generate_inputs(planned.signature.inputs, 0, session.index_bounds)
    for _ in range(2):
        session.reset()
        session.run(inputs, program)
    own: list[float] = []
    rounds: list[float] = []
    whole: list[float] = []
    whole_rounds: list[float] = []
    first = _request_count(session)
    local = None if session.whole is None else session.whole.open(session.threads)
    share = seconds / 2 / ROUNDS / (1 if local is None else 2)
    for _ in range(ROUNDS):
        own += _times(lambda: session.run(inputs, program), share, rounds)
        if local is not None:
            whole += _times(lambda: local.run(inputs, program), share, whole_rounds)
    one_at_a_time = _requests_since(session, first)
    first = _request_count(session)
    per_second = _throughput(session, inputs, program, seconds / 2)
    if session.linked is None or session.losses:
        raise BoardError(f"the stages did not last: {session.losses[0]}")
    times, spans = _requests_since(session, first)
    return PlanBench(
        Latency(str(session.folder), tuple(own), tuple(rounds)),
        None
        if local is None
        else Latency(str(session.plan.whole), tuple(whole), tuple(whole_rounds)),
        per_second,
        _stages(session, times, spans),
        links_of(session, program),
        _outside_ms(*one_at_a_time),
        _hops(session),
        tuple(times),
        tuple(spans),
    )


def _times(run: Callable[[], object], seconds: float, rounds: list[float]) -> list[float]:
    """Return times of calls in so many seconds, at least one [ms]; their median joins `rounds`."""
    until = time.monotonic() + seconds
    times: list[float] = []
    while not times or time.monotonic() < until:
        began = time.perf_counter()
        run()
        times.append((time.perf_counter() - began) * 1e3)
    rounds.append(statistics.median(times))
    return times


def _throughput(
    session: PlanSession, inputs: Tensors, program: str | None, seconds: float
) -> float:
    """Return answers per second with several requests under way, the first ones left out."""
    depth = 2 * (len(session.bundles) + 2)
    under_way = deque(session.submit(inputs, program) for _ in range(depth))
    for _ in range(depth):
        under_way.popleft().result(ANSWER_SECONDS)
        under_way.append(session.submit(inputs, program))
    began, count = time.monotonic(), 0
    while count < depth or time.monotonic() - began < seconds:
        under_way.popleft().result(ANSWER_SECONDS)
        under_way.append(session.submit(inputs, program))
        count += 1
    elapsed = time.monotonic() - began
    for future in under_way:
        future.result(ANSWER_SECONDS)
    return count / elapsed


def _request_count(session: PlanSession) -> int:
    linked = session.linked
    return 0 if linked is None else linked.request_count


def _requests_since(
    session: PlanSession, first: int
) -> tuple[list[StageTimes], list[tuple[int, int, int]]]:
    linked = session.linked
    if linked is None:
        return [], []
    times, spans = linked.records()
    return [t for t in times if t.request >= first], [s for s in spans if s[0] >= first]


def _stages(
    session: PlanSession, times: list[StageTimes], spans: list[tuple[int, int, int]]
) -> tuple[StageBench, ...]:
    found = []
    window = max(s[2] for s in spans) - min(s[1] for s in spans)
    for number, (bundle, device) in enumerate(session.plan.bundles.items()):
        runs = [t.ended - t.began for t in times if t.stage == number]
        found.append(
            StageBench(device, bundle, statistics.median(runs) / 1e6, sum(runs) / max(window, 1))
        )
    return tuple(found)


def links_of(session: PlanSession, program: str | None = None) -> tuple[LinkBench, ...]:
    """Return what travels between devices for one request of a program."""
    links: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for value in session.plan.program(program).values:
        size = math.prod(value.shape) * np.dtype(value.dtype).itemsize
        for target in value.to:
            links.setdefault((value.source, target), []).append((value.name, size))
    return tuple(
        LinkBench(source, target, tuple(n for n, _ in values), sum(size for _, size in values))
        for (source, target), values in links.items()
    )


def _outside_ms(times: list[StageTimes], spans: list[tuple[int, int, int]]) -> float:
    """Return the median time of a request in which no stage computes [ms]."""
    runs: dict[int, list[tuple[int, int]]] = {}
    for t in times:
        runs.setdefault(t.request, []).append((t.began, t.ended))
    outside = []
    for number, submitted, answered in spans:
        inside, end = 0, 0
        for began, ended in sorted(runs.get(number, [])):
            inside += max(0, ended - max(began, end))
            end = max(end, ended)
        outside.append((answered - submitted - inside) / 1e6)
    return statistics.median(outside)


def _hops(session: PlanSession) -> int:
    """Return the length of the longest way from the host to the host."""
    program = session.plan.programs[0]
    depth: dict[str, int] = {tensor.name: 0 for tensor in program.inputs}
    for stage in program.stages:
        for name in stage.outputs:
            depth[name] = 1 + max(depth[given] for given in stage.inputs)
    return 1 + max(depth[tensor.name] for tensor in program.outputs)
