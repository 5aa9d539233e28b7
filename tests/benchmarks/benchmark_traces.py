"""Measure cuts that are chosen at run time, over links whose rate changes.

    python tests/benchmarks/benchmark_traces.py [MODEL.onnx]

A board and a server share a model, by default a ResNet-50 of the package onnx. The times of all
operators are measured on this machine, which is the server; the board is taken to be SLOWER times
as slow. Links are simulated: of 20 traces of 320 s ten are like mobile networks and ten like Wi-Fi,

    mobile   a Markov chain over rates, nearer ones likelier, a step a second, and Gaussian noise
             (the synthetic traces of Pensieve, Mao et al., SIGCOMM 2017, section 4.1)
    Wi-Fi    two states, good and bad (Gilbert 1960, Elliott 1963)

What crosses a cut is rounded to int8 (`--cut-encoding int8`), the image is float32 as the model
takes it. A request comes every PERIOD seconds and may take parts of several seconds of the trace.
Plans are made for the first half of the trace; requests are those of the other half. One that takes
LATE times its estimate is computed by the board as well, as `PlanSet` does. For each trace are
printed p50 and p95 of a request, and the excess over

    fixed    the best of exhaustive search over all cuts, each used for all requests of the trace
    oracle   the best cut of each request, chosen by who knows the link as it will be

and the time of a choice.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from edgec.compiler.backend import build, pack, schedule
from edgec.compiler.distribute.plan_choice import PlanChooser, PlanCost
from edgec.compiler.distribute.plan_session import WAKING_SECONDS
from edgec.compiler.distribute.plan_set import LATE
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.ir.program import Program
from edgec.compiler.lowering.legalize import lower
from edgec.compiler.runtime.inputs import generate_inputs
from edgec.compiler.runtime.static_session import StaticSession
from edgec.compiler.split.cut_graph import Before, CutGraph
from edgec.compiler.split.link import Link, Network
from edgec.compiler.split.minimum_cuts import minimum_cuts
from edgec.compiler.split.model_values import ModelValues
from edgec.compiler.split.planner import Problem, Step
from edgec.compiler.split.trace_plans import KeptSteps, cost_of, plans_over
from edgec.compiler.support.files import scratch_folder
from edgec.targets import load_target

SLOWER, SECONDS, PERIOD = 8.0, 320, 0.5
RESNET = Path(onnx.__file__).parent / "backend/test/data/light/light_resnet50.onnx"


def mobile_trace(seed: int) -> list[Link]:
    """Return a mobile network, a second after the other: 0.5 to 60 Mbit/s, 8 to 30 ms one way."""
    random = np.random.default_rng(seed)
    rates = np.geomspace(0.5, 60, 10)
    state = int(random.integers(len(rates)))
    spread = random.uniform(0.05, 0.5)
    links = []
    for _ in range(SECONDS):
        if random.random() < 0.3:
            away = int(random.geometric(0.6)) * (1 if random.random() < 0.5 else -1)
            state = int(np.clip(state + away, 0, len(rates) - 1))
        rate = max(0.1, rates[state] * (1 + random.normal(0, spread / 2)))
        links.append(Link(rate * 1e6, float(random.uniform(15, 60) / 2)))
    return links


def wifi_trace(seed: int) -> list[Link]:
    """Return a second after the other of a Wi-Fi: good for 10 s and bad for 3 s in the mean."""
    random = np.random.default_rng(1000 + seed)
    good, bad = float(random.uniform(30, 120)), float(random.uniform(0.5, 6))
    state, links = True, []
    for _ in range(SECONDS):
        if random.random() < (0.1 if state else 0.33):
            state = not state
        rate = (good if state else bad) * float(random.lognormal(0, 0.15))
        links.append(
            Link(rate * 1e6, float(random.uniform(1, 4) if state else random.uniform(4, 20)))
        )
    return links


@dataclass(frozen=True)
class Trace:
    """A trace is links, one for each second, and then from the beginning again."""

    links: list[Link]

    def transfer_s(self, size_bytes: float, now: float) -> float:
        """Return how long bytes take that are sent at some time [s]."""
        left, at = size_bytes * 8.0, now
        while True:
            link = self.links[int(at) % len(self.links)]
            until = int(at) + 1 - at
            if left <= link.bits_per_second * until:
                break
            left -= link.bits_per_second * until
            at += until
        return at + left / link.bits_per_second - now + link.delay_ms / 1e3

    def request_s(self, way: KeptSteps, board_s: float, now: float) -> float:
        """Return how long a request takes that is made at some time [s].

        All bytes are sent when the board has computed its part; the answer is a transfer of none.
        """
        if not way.transfers:
            return way.compute_ms / 1e3
        sent = self.transfer_s(way.sent_bytes, now + board_s)
        delay = self.links[int(now + board_s + sent) % len(self.links)].delay_ms / 1e3
        return way.compute_ms / 1e3 + sent + delay * (way.transfers - 1)


def measured_problem(model: Path) -> tuple[Problem, list[int]]:
    """Return the model between its cuts on board and server, by times measured here, and bytes."""
    canonical = canonical_model(model)
    target = load_target("native")
    module, signature = canonical.module, canonical.signature
    graph = CutGraph(ModelValues(module, canonical.value_names, signature, ()), [target])
    program = schedule(
        lower(pack(module, target, canonical.value_names), target), module, target, signature
    )
    assert isinstance(program, Program)
    with scratch_folder() as scratch:
        library = scratch / "model.so"
        build([program], target, library)
        session = StaticSession(library, {"": signature}, 1)
        prepared = session.prepare(generate_inputs(signature.inputs, 0, {}))
        times = np.median([session.run_timed(prepared) for _ in range(15)], axis=0) / 1e6
    places = {graph.name(place): place for place in graph.operators}
    ms: dict[int, float] = {}
    place = graph.operators[0]
    for step, step_ms in zip(program.steps, times, strict=True):
        place = places.get(step.label, place)
        ms[place] = ms.get(place, 0.0) + float(step_ms)
    cuts = [Before(), *minimum_cuts(graph), Before(graph.operators)]
    before = np.array([sum(ms.get(place, 0.0) for place in cut) for cut in cuts])
    sizes = [graph.values.size_of(signature.inputs[0].name)]
    sizes += [graph.cut_bytes(cut) // 4 + 4 for cut in cuts[1:-1]]
    sizes += [graph.values.size_of(signature.outputs[0].name)]
    count = len(cuts)
    problem = Problem(
        ms=np.stack([before * SLOWER, before]),
        weights=np.zeros((2, count)),
        activations=np.zeros((count, count)),
        send_ms=np.zeros(count),
        source=0,
        memory=np.full(2, 1e12),
    )
    print(
        f"{model.name}: {before[-1]:.1f} ms on the server, {before[-1] * SLOWER:.1f} ms on the "
        f"board, {count - 2} cuts"
    )
    return problem, sizes


def all_ways(problem: Problem, sizes: list[int]) -> list[KeptSteps]:
    """Return every cut between board and server, and each alone."""
    crossing = np.array(sizes, float)
    ways = [(Step(0, 0, problem.last),), (Step(1, 0, problem.last),)]
    ways += [(Step(0, 0, cut), Step(1, cut, problem.last)) for cut in range(1, problem.last)]
    return [cost_of(problem, crossing, way) for way in ways]


def board_s(problem: Problem, way: KeptSteps) -> float:
    """Return the time of the board's part, before anything is sent [s]."""
    first = way.steps[0]
    return (
        float(problem.compute_ms()[first.device, first.begin, first.end])
        / 1e3
        * (first.device == 0)
    )


def _noted(
    chooser: PlanChooser,
    kept: list[KeptSteps],
    under_way: list[tuple[float, int, float]],
    now: float,
) -> list[tuple[float, int, float]]:
    """Note what was answered by now, and what is late; return what was not answered."""
    for ended, number, taken in sorted(under_way):
        compute, waited = kept[number].compute_ms / 1e3, now - (ended - taken)
        if ended <= now:
            chooser.note(number, compute, taken - compute, now=ended)
        elif waited > LATE * chooser.estimate(number) + WAKING_SECONDS:
            chooser.note_loss(number, waited, now=now)
    return [request for request in under_way if request[0] > now]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default=RESNET)
    problem, sizes = measured_problem(parser.parse_args().model)
    ways = all_ways(problem, sizes)
    first = [board_s(problem, way) for way in ways]
    alone_s = ways[0].compute_ms / 1e3
    print("trace      plans     p50 ms   fixed  oracle     p95 ms   fixed  oracle")
    excesses: list[tuple[float, float, float, float]] = []
    choices: list[float] = []
    for number in range(20):
        kind, make = ("mobile", mobile_trace) if number < 10 else ("wifi", wifi_trace)
        trace = Trace(make(number))
        half = SECONDS // 2
        network = Network(tuple(trace.links[:half]))
        kept = plans_over(problem, sizes, network)
        chooser = PlanChooser(
            [
                PlanCost(str(n), k.compute_ms / 1e3, int(k.sent_bytes), int(k.transfers))
                for n, k in enumerate(kept)
            ],
            network=network,
        )
        spent: list[float] = []
        under_way: list[tuple[float, int, float]] = []
        moments = np.arange(half, SECONDS, PERIOD)
        for now in map(float, moments):
            under_way = _noted(chooser, kept, under_way, now)
            began = time.perf_counter()
            chosen = chooser.choose()
            choices.append(time.perf_counter() - began)
            here = not kept[chosen].transfers
            patience = LATE * chooser.estimate(chosen) + WAKING_SECONDS
            probed = chooser.probe(now) if here else None
            for sent in (chosen, *([] if probed is None else [probed])):
                taken = trace.request_s(kept[sent], board_s(problem, kept[sent]), now)
                under_way.append((now + taken, sent, taken))
            taken = under_way[-1 if probed is None else -2][2]
            spent.append(taken if here or taken < patience else min(taken, patience + alone_s))
        every = np.array(
            [
                [trace.request_s(w, b, float(now)) for now in moments]
                for w, b in zip(ways, first, strict=True)
            ]
        )
        row = []
        for percent in (50, 95):
            own = np.percentile(spent, percent)
            fixed = np.percentile(every, percent, axis=1).min()
            oracle = np.percentile(every.min(axis=0), percent)
            row += [own / fixed - 1, own / oracle - 1]
            if percent == 50:
                line = f"{kind:7s}{number:3d}  {len(kept):5d}  {1e3 * own:9.1f}"
            else:
                line += f"  {1e3 * own:9.1f}"
            line += f"  {row[-2]:6.1%}  {row[-1]:6.1%}"
        print(line)
        excesses.append(tuple(row))  # type: ignore[arg-type]
    names = ("p50 fixed", "p50 oracle", "p95 fixed", "p95 oracle")
    for name, column in zip(names, zip(*excesses, strict=True), strict=True):
        within = sum(value <= 0.05 for value in column)
        print(
            f"{name:10s}: {within} of 20 within 5 %, worst {max(column):.1%}, "
            f"mean {statistics.mean(column):.1%}"
        )
    median, late = 1e6 * statistics.median(choices), 1e6 * float(np.percentile(choices, 99))
    print(f"a choice: median {median:.1f} µs, p99 {late:.1f} µs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
