"""Measure split models: pipelines, hops, and what happens when stages or links are lost.

python tests/benchmarks/benchmark_plan.py pipeline MODEL.plan [--rounds N]
python tests/benchmarks/benchmark_plan.py latency MODEL.plan [--rounds N]
python tests/benchmarks/benchmark_plan.py limit MODEL.plan --kib N
python tests/benchmarks/benchmark_plan.py hop MODEL.plan [--key FILE]
python tests/benchmarks/benchmark_plan.py kill MODEL.plan [--times N]
python tests/benchmarks/benchmark_plan.py deadline MODEL.plan [--requests N]
python tests/benchmarks/benchmark_plan.py choice

`pipeline` wants a plan of two stages and the whole model, and two calm cores: each stage is pinned
to one, and so is the whole model, in turns. `latency` is for plans whose devices share stages: all
stages of a device are pinned to one core. `limit` runs each stage under `ulimit -v`, and tries the
whole model under the same.
"""

import argparse
import os
import random
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.distribute.plan_choice import PlanChooser, PlanCost
from edgec.compiler.distribute.plan_session import PlanSession
from edgec.compiler.distribute.stage_places import StageOptions
from edgec.compiler.distribute.stage_process import AttachedStage, StageProcess
from edgec.compiler.errors import EdgecError
from edgec.compiler.runtime.inputs import generate_inputs
from edgec.compiler.split.plan import Plan

TIMES = 6
KINDS = ("pipeline", "latency", "limit", "hop", "kill", "deadline", "choice")


def inputs_of(session: PlanSession, seed: int = 0) -> dict[str, np.ndarray]:
    """Return generated inputs of a plan's first program."""
    specs = session.plan.programs[0].signature.inputs
    return generate_inputs(specs, seed, session.index_bounds)


def pipeline(folder: Path, rounds: int) -> None:
    """Print throughput of two pinned stages beside the whole model on one core, in turns."""
    names = ("a.edgec", "b.edgec")
    options = StageOptions(cores={name: frozenset((core,)) for core, name in enumerate(names)})
    ratios, one, two = [], [], []
    whole_cpu, requests = 0.0, 0
    with PlanSession(folder, options=options, timeout=20) as session:
        assert session.whole is not None
        inputs, local = inputs_of(session), session.whole.open(1)
        local.run(inputs)
        for number in range(rounds):
            os.sched_setaffinity(0, {number % 2})
            began, cpu = time.perf_counter(), time.thread_time()
            for _ in range(8):
                local.run(inputs)
            one.append(8 / (time.perf_counter() - began))
            whole_cpu, requests = whole_cpu + time.thread_time() - cpu, requests + 8
            os.sched_setaffinity(0, {0, 1})
            under_way = deque(session.submit(inputs) for _ in range(6))
            for _ in range(4):
                under_way.popleft().result()
                under_way.append(session.submit(inputs))
            began = time.perf_counter()
            for _ in range(16):
                under_way.popleft().result()
                under_way.append(session.submit(inputs))
            two.append(16 / (time.perf_counter() - began))
            while under_way:
                under_way.popleft().result()
            ratios.append(two[-1] / one[-1])
        assert session.linked is not None
        answered = session.answers["plan"]
        stage_cpu = [cpu_seconds(pid) / answered for pid in session.pids.values()]
    print(
        f"per second: one core {statistics.median(one):.2f}, two stages "
        f"{statistics.median(two):.2f}; "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    alone = whole_cpu / requests
    shares = ", ".join(f"{seconds * 1e3:.1f} ms" for seconds in stage_cpu)
    print(
        f"CPU time of a request: whole {alone * 1e3:.1f} ms, stages {shares}; two cores of their "
        f"own would give a ratio of {alone / max(stage_cpu):.2f}"
    )


def latency(folder: Path, rounds: int) -> None:
    """Print the time of a request over devices of a core each beside that of one core, in turns."""
    devices = Plan.load(folder).devices
    cores = {name: frozenset((number % 2,)) for number, name in enumerate(devices)}
    ratios, one, two, alone = [], [], [], []
    with PlanSession(folder, options=StageOptions(cores=cores), timeout=20) as session:
        assert session.whole is not None
        inputs, local = inputs_of(session), session.whole.open(1)
        local.run(inputs)
        session.run(inputs)
        for number in range(rounds):
            os.sched_setaffinity(0, {number % 2})
            began = time.thread_time()
            one.append(median_seconds(lambda: local.run(inputs)))
            alone.append((time.thread_time() - began) / TIMES)
            os.sched_setaffinity(0, {0, 1})
            two.append(median_seconds(lambda: session.run(inputs)))
            ratios.append(two[-1] / one[-1])
        answered = session.answers["plan"]
        used = dict.fromkeys(devices, 0.0)
        for bundle, pid in session.pids.items():
            used[session.plan.bundles[bundle]] += cpu_seconds(pid) / answered
    print(
        f"ms: one core {statistics.median(one) * 1e3:.1f}, {len(devices)} devices "
        f"{statistics.median(two) * 1e3:.1f}; ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}), of the best {min(two) / min(one):.2f}"
    )
    cpu = statistics.median(alone)
    shares = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in used.items())
    print(
        f"CPU time of a request: whole {cpu * 1e3:.1f} ms, {shares}; cores of their own could "
        f"give {max(used.values()) / cpu:.2f}"
    )


def median_seconds(run: Callable[[], object]) -> float:
    """Return how long a run takes, the median of so many [s]."""
    found = []
    for _ in range(TIMES):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def limit(folder: Path, kib: int) -> None:
    """Run stages, and try the whole model, in so much address space each [KiB]."""
    plan = Plan.load(folder)
    with ExitStack() as stack:

        def started(bundle: str) -> AttachedStage:
            path = (folder / bundle).resolve()
            words = f"{path}/run --serve 127.0.0.1:0 --attached --bundle {path} --slots 2"
            command = ["bash", "-c", f"ulimit -v {kib}; exec {words}"]
            return stack.enter_context(AttachedStage(bundle, command))

        try:
            started(f"{plan.whole}")
        except EdgecError as error:
            print(f"whole: {error}")
        else:
            print("whole: fits")
        addresses = {bundle: started(bundle).address for bundle in plan.bundles}
        session = stack.enter_context(PlanSession(folder, addresses, timeout=20))
        assert session.whole is not None
        inputs = inputs_of(session)
        found, expected = session.run(inputs), session.whole.open(1).run(inputs)
        for name, array in expected.items():
            print(f"{name}: off by {np.abs(found[name] - array).max():.1e}", dict(session.answers))


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process took so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def hop(folder: Path, key: Path | None) -> None:
    """Print the time from the end of a stage's run to the arrival at the next."""
    with PlanSession(folder, options=StageOptions(key_file=key), timeout=20) as session:
        inputs = inputs_of(session)
        for _ in range(1000):
            session.run(inputs)
        assert session.linked is not None
        times = {(t.request, t.stage): t for t in session.linked.records()[0]}
    stages = max(stage for _, stage in times)
    for stage in range(stages):
        hops = sorted(
            (times[r, stage + 1].arrived - times[r, stage].ended) / 1e3
            for r in range(100, 1000)
            if (r, stage) in times and (r, stage + 1) in times
        )
        low, middle = hops[len(hops) // 10], hops[len(hops) // 2]
        print(f"stage {stage} to {stage + 1}: median {middle:.0f} us, p10 {low:.0f} us")


def kill(folder: Path, times: int) -> None:
    """Kill or stop stages at random moments; every answer must be right, and no process stay."""
    pids = []
    for number in range(times):
        with PlanSession(folder, timeout=1.0) as session:
            assert session.whole is not None
            inputs = inputs_of(session, number)
            expected = session.whole.run(inputs)
            pids += session.pids.values()
            victim = list(session.pids.values())[number % len(session.pids)]
            what = signal.SIGSTOP if number % 3 == 2 else signal.SIGKILL
            threading.Timer(random.random() * 0.05, os.kill, (victim, what)).start()
            began = time.monotonic()
            longest = 0.0
            while time.monotonic() - began < 0.5 or not session.losses:
                asked = time.monotonic()
                found = session.run(inputs)
                longest = max(longest, time.monotonic() - asked)
                assert all(np.array_equal(found[name], expected[name]) for name in expected)
            pids += session.pids.values()
        print(f"{number}: {dict(session.answers)}, longest {longest:.2f} s: {session.losses[0]}")
    time.sleep(0.5)
    left = [pid for pid in set(pids) if Path(f"/proc/{pid}").exists()]
    print(f"{times} times: no wrong answer; processes left: {left}")


def deadline(folder: Path, requests: int) -> None:
    """Stop the last stage for random times; every request has its answer in time."""
    limit, late = 0.25, 0
    with StageProcess(Bundle.load(folder / "b.edgec")) as served:
        stop = threading.Event()

        def interrupt() -> None:
            while not stop.wait(random.random() * 0.5):
                os.kill(served.pid, signal.SIGSTOP)
                stop.wait(random.random() * 2.0)
                os.kill(served.pid, signal.SIGCONT)

        with PlanSession(folder, {"b": served.address}) as session:
            assert session.whole is not None
            inputs = inputs_of(session)
            expected = session.whole.run(inputs)
            session.run(inputs, deadline=limit)
            thread = threading.Thread(target=interrupt)
            thread.start()
            longest = 0.0
            for _ in range(requests):
                asked = time.monotonic()
                found = session.run(inputs, deadline=limit)
                taken = time.monotonic() - asked
                late += taken > limit
                longest = max(longest, taken)
                assert all(np.array_equal(found[name], expected[name]) for name in expected)
                time.sleep(0.005)
            stop.set()
            thread.join()
            answers = dict(session.answers)
    print(
        f"{requests - late} of {requests} within {limit * 1e3:.0f} ms, longest "
        f"{longest * 1e3:.0f} ms; answered by {answers}"
    )


def choice() -> None:
    """Print how long a choice among eight plans takes."""
    chooser = PlanChooser([PlanCost(str(n), 0.01 * n, 10_000 * (8 - n), 2) for n in range(8)])
    chooser.note(1, 0.01, 0.002)
    times = []
    for _ in range(10_000):
        began = time.perf_counter_ns()
        chooser.choose()
        times.append(time.perf_counter_ns() - began)
    print(f"a choice among eight plans: median {statistics.median(times) / 1e3:.1f} us")


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=KINDS)
    parser.add_argument("plan", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--kib", type=int, default=50_000)
    parser.add_argument("--key", type=Path)
    given = parser.parse_args()
    if given.what == "choice":
        choice()
    elif given.what == "pipeline":
        pipeline(given.plan, given.rounds)
    elif given.what == "latency":
        latency(given.plan, given.rounds)
    elif given.what == "limit":
        limit(given.plan, given.kib)
    elif given.what == "hop":
        hop(given.plan, given.key)
    elif given.what == "kill":
        kill(given.plan, given.times)
    else:
        deadline(given.plan, given.requests)


if __name__ == "__main__":
    main()
