"""Say where a model is best cut over devices, what each cut costs, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgec.compiler.errors import UsageError, did_you_mean
from edgec.compiler.frontend.model_source import read_model
from edgec.compiler.language.language_model import DEFAULT_CHUNK, chunk_programs
from edgec.compiler.lowering.tuning_records import Database
from edgec.compiler.options import CompileOptions
from edgec.compiler.pipeline import in_chunks
from edgec.compiler.program_compiler import ProgramCompiler
from edgec.compiler.split.cut_graph import Before, CutGraph
from edgec.compiler.split.devices import Device, StageRequest, strictest
from edgec.compiler.split.link import Network
from edgec.compiler.split.minimum_cuts import minimum_cuts
from edgec.compiler.split.model_values import ModelValues
from edgec.compiler.split.operator_costs import activation_bytes, operator_costs
from edgec.compiler.split.planner import Objective, Problem, Step, evaluate, solve
from edgec.compiler.split.segment_costs import Parallel, SharedStage
from edgec.compiler.split.share_planner import plan_shared
from edgec.compiler.split.trace_plans import plans_over
from edgec.compiler.support.phases import untold
from edgec.compiler.support.progress import Progress, Silent

# Of more cuts those of the fewest bytes are planned with, from all over the model.
_MAX_CUTS = 100
# Of a board's memory a model may take so much; the system has the rest.
_MODEL_SHARE = 0.8


@dataclass(frozen=True)
class CutRow:
    """A cut row describes a place where a model can be cut.

    Attributes:
        behind: the values that cross, by name.
        size_bytes: of these.
        send_ms: of sending them, the mean over the network [ms].
        ms_before: of all before, by device [ms].
        ms_behind: of all behind [ms].
        weights_before: bytes of weights, by device.
        weights_behind: likewise.
        activations_before: bytes of values in memory at once, at most.
        activations_behind: likewise.
    """

    behind: tuple[str, ...]
    size_bytes: int
    send_ms: float
    ms_before: dict[str, float]
    ms_behind: dict[str, float]
    weights_before: dict[str, int]
    weights_behind: dict[str, int]
    activations_before: int
    activations_behind: int


@dataclass(frozen=True)
class ChosenStage:
    """A chosen stage is what one device computes of the best plan.

    Attributes:
        device: its name.
        until: names that `--split` takes for its end; empty for the last stage.
        ms: of computing it [ms].
        memory_bytes: of weights and values.
        sent_bytes: of what it hands over.
        send_ms: of sending that [ms].
    """

    device: str
    until: tuple[str, ...]
    ms: float
    memory_bytes: int
    sent_bytes: int
    send_ms: float


@dataclass(frozen=True)
class KeptPlan:
    """A kept plan is one of those that matter over a network whose links change.

    Attributes:
        stages: what each device computes; sending is told of the mean link.
        share: of the links that were seen over which it is the fastest.
    """

    stages: tuple[ChosenStage, ...]
    share: float

    @property
    def requests(self) -> tuple[StageRequest, ...]:
        """Return the plan as `split_model` takes it."""
        return _requests(self.stages)


def _requests(stages: Sequence[ChosenStage]) -> tuple[StageRequest, ...]:
    return tuple(StageRequest(device=s.device, until=s.until) for s in stages)


@dataclass(frozen=True)
class SplitReport:
    """A split report describes the cuts of a model, and the best plan.

    Attributes:
        model: its name.
        objective: what was best.
        cost: of the plan: ms of a request, ms between two results, or share of a memory.
        alone: the same by device if it computes everything; None where it has not the memory.
        cuts: in order.
        stages: the plan.
        left_out: devices that compute nothing.
        recorded: share of the times that were measured, by device; the rest is estimated.
        slow_ms: latency of the plan where the network is as slow as in 5 of 100 cases [ms].
        shared: what devices compute together, if that is better: then this is the plan, `stages`
            the best without, and `cost_apart` what that would cost.
        cost_apart: as `cost`.
        plans: those that matter where latency is wanted and there are several links; the one that
            is best on its own first.
    """

    model: str
    objective: Objective
    cost: float
    alone: dict[str, float | None]
    cuts: tuple[CutRow, ...]
    stages: tuple[ChosenStage, ...]
    left_out: tuple[str, ...]
    recorded: dict[str, float]
    slow_ms: float
    shared: tuple[SharedStage, ...] = ()
    cost_apart: float = 0.0
    plans: tuple[KeptPlan, ...] = ()

    @property
    def requests(self) -> tuple[StageRequest, ...]:
        """Return the plan as `split_model` takes it."""
        if self.shared:
            return tuple(stage.request for stage in self.shared)
        return _requests(self.stages)

    def explain(self) -> str:
        """Return in some lines what was chosen, and why."""
        if self.shared:
            lines = [*map(str, self.shared), self._what(self.cost)]
            lines[-1] += f"; without shared stages {self._what(self.cost_apart)}"
        else:
            lines = [f"{_in_words(self.stages)}: {self._what(self.cost)}"]
        unit = "of its memory" if self.objective == "memory" else "ms"
        alone = [
            f"{name} does not fit"
            if cost is None
            else f"{name} {cost:.1%} {unit}"
            if unit != "ms"
            else f"{name} {cost:.1f} ms"
            for name, cost in self.alone.items()
        ]
        lines.append(f"alone: {', '.join(alone)}")
        if self.left_out and not self.shared:
            lines[-1] += f"; with {', '.join(self.left_out)} as well it would be no better"
        if len(self.plans) > 1:
            lines.append("plans that matter over this network, to be chosen among at run time:")
            lines += [f"  {p.share:.0%} of the links: {_in_words(p.stages)}" for p in self.plans]
        return "\n".join(lines)

    def _what(self, cost: float) -> str:
        return {
            "latency": f"{cost:.1f} ms a request",
            "throughput": f"a result every {cost:.1f} ms",
            "memory": f"{cost:.1%} of the fullest memory",
        }[self.objective]


def _in_words(stages: Sequence[ChosenStage]) -> str:
    parts = []
    for stage in stages:
        sent = f", sends {stage.sent_bytes:,} bytes ({stage.send_ms:.1f} ms)"
        parts.append(f"{stage.device} {stage.ms:.1f} ms{sent if stage.until else ''}")
    return "; then ".join(parts)


def plan_split(
    model: str | Path,
    devices: Sequence[Device],
    network: Network,
    options: CompileOptions | None = None,
    *,
    objective: Objective = "latency",
    parallel: Parallel | None = None,
    source: str | None = None,
    memory: Mapping[str, int] | None = None,
    database: Database | None = None,
    progress: Progress | None = None,
) -> SplitReport:
    """Find where a model is best cut over devices.

    Args:
        model: the ONNX file, or a language model: its last program is planned for.
        devices: those that there are; the plan may leave some out.
        network: what connects each with each.
        options: as for a compile.
        objective: what is to be best.
        parallel: what devices may share stages along; None: each computes its own.
        source: the device where inputs are and results are wanted; by default the first.
        memory: bytes that a device has for the model, by name; by default 80 % of its target's.
        database: tuning records with measured times.
        progress: reports what takes long.

    Raises:
        EdgecError: see `edgec.compiler.errors`.
    """
    names = [device.name for device in devices]
    source = source or names[0]
    for name in (source, *(memory or {})):
        if name not in names:
            near = did_you_mean(name, names)
            raise UsageError(f"no device is named {name!r}{near} (devices: {', '.join(names)})")
    graph = _graph(Path(model), devices, options or CompileOptions(), progress or Silent())
    cuts = [Before(), *_thinned(graph, minimum_cuts(graph)), Before(graph.operators)]
    costs = {}
    for device in devices:
        if device.target not in costs:
            costs[device.target.name] = operator_costs(graph, device.target, database)
    each = [costs[device.target.name] for device in devices]
    signature = graph.values.signature
    kept = {n for state in graph.values.states for n in (state.input, state.output)}
    ends = [
        sum(graph.values.size_of(spec.name) for spec in specs if spec.name not in kept)
        for specs in (signature.inputs, signature.outputs)
    ]
    sizes = [ends[0], *(graph.cut_bytes(cut) for cut in cuts[1:-1]), ends[1]]
    limits = memory or {}
    problem = Problem(
        ms=np.stack([cost.ms_before(cuts) for cost in each]),
        weights=np.stack([cost.weights_before(cuts) for cost in each]),
        activations=activation_bytes(graph, cuts),
        send_ms=np.array([network.mean_ms(size) for size in sizes]),
        source=names.index(source),
        memory=np.array(
            [limits.get(d.name, d.target.memory_mib * 2**20 * _MODEL_SHARE) for d in devices],
            float,
        ),
    )
    steps = solve(problem, objective)
    apart = evaluate(problem, steps, objective)
    shared: list[SharedStage] = []
    cost = apart
    if parallel is not None:
        size = {name: int(most) for name, most in zip(names, problem.memory, strict=True)}
        best = plan_shared(graph, devices, parallel, network, objective, size, database)
        together = _shared_cost(best, problem, objective)
        if together < apart and any(stage.request.along for stage in best):
            shared, cost = best, together
    slow = replace(problem, send_ms=np.array([network.percentile_ms(s, 95) for s in sizes]))
    used = {step.device for step in steps}
    several = objective == "latency" and len(set(network.links)) > 1
    matter = plans_over(problem, sizes, network) if several else []

    def stages(of: Sequence[Step]) -> tuple[ChosenStage, ...]:
        return tuple(_stage(graph, problem, names, cuts, sizes, step) for step in of)

    return SplitReport(
        model=Path(model).stem,
        objective=objective,
        cost=cost,
        alone={name: _alone(problem, n, objective) for n, name in enumerate(names)},
        cuts=tuple(_row(graph, problem, names, cuts, sizes, n) for n in range(1, problem.last)),
        stages=stages(steps),
        left_out=tuple(name for n, name in enumerate(names) if n not in used),
        recorded={name: cost.recorded for name, cost in zip(names, each, strict=True)},
        slow_ms=evaluate(slow, steps, "latency"),
        shared=tuple(shared),
        cost_apart=apart,
        plans=tuple(KeptPlan(stages(one.steps), one.share) for one in matter),
    )


def _graph(
    path: Path, devices: Sequence[Device], options: CompileOptions, progress: Progress
) -> CutGraph:
    source = read_model(
        path, options.limits, options.context, cache=options.cache, lora=options.adapters
    )
    if in_chunks(path, options):
        programs = chunk_programs(options.prefill_chunk or DEFAULT_CHUNK, verified=0)
        options = replace(options, programs=programs)
    target = strictest([device.target for device in devices])
    compiler = ProgramCompiler(target, options, progress, untold, path.name)
    program = compiler.changed(options.program_shapes[-1], [source])
    expected = program.expected
    values = ModelValues(
        program.module, program.canonical.value_names, expected.signature, expected.states
    )
    targets = {device.target.name: device.target for device in devices}
    return CutGraph(values, list(targets.values()))


def _shared_cost(stages: Sequence[SharedStage], problem: Problem, objective: Objective) -> float:
    """Return what shared stages cost, as `evaluate` does for others."""
    if objective == "latency":
        return sum(stage.ms + stage.fetch_ms for stage in stages)
    needed = sum(np.add(stage.weight_bytes, stage.value_bytes) for stage in stages)
    return float((needed / problem.memory).max())


def _thinned(graph: CutGraph, cuts: Sequence[Before]) -> list[Before]:
    """Return so many cuts as can be planned with: of each group of neighbours the smallest."""
    size = -(-len(cuts) // _MAX_CUTS)
    groups = [cuts[n : n + size] for n in range(0, len(cuts), max(1, size))]
    return [min(group, key=graph.cut_bytes) for group in groups]


def _alone(problem: Problem, device: int, objective: Objective) -> float | None:
    step = Step(device, 0, problem.last)
    fits = problem.allowed()[device, 0, problem.last]
    return evaluate(problem, [step], objective) if fits else None


def _row(
    graph: CutGraph,
    problem: Problem,
    names: Sequence[str],
    cuts: Sequence[Before],
    sizes: Sequence[int],
    number: int,
) -> CutRow:
    ms, weights = problem.ms, problem.weights
    each = list(enumerate(names))
    return CutRow(
        behind=tuple(graph.name(place) for place in graph.crossing(cuts[number])),
        size_bytes=sizes[number],
        send_ms=float(problem.send_ms[number]),
        ms_before={name: float(ms[n, number]) for n, name in each},
        ms_behind={name: float(ms[n, -1] - ms[n, number]) for n, name in each},
        weights_before={name: int(weights[n, number]) for n, name in each},
        weights_behind={name: int(weights[n, -1] - weights[n, number]) for n, name in each},
        activations_before=int(problem.activations[0, number]),
        activations_behind=int(problem.activations[number, -1]),
    )


def _stage(
    graph: CutGraph,
    problem: Problem,
    names: Sequence[str],
    cuts: Sequence[Before],
    sizes: Sequence[int],
    step: Step,
) -> ChosenStage:
    inner = step.end < problem.last
    place = (step.device, step.begin, step.end)
    return ChosenStage(
        device=names[step.device],
        until=graph.cut_names(cuts[step.end]) if inner else (),
        ms=float(problem.compute_ms()[place]),
        memory_bytes=int(problem.step_bytes()[place]),
        sent_bytes=sizes[step.end],
        send_ms=float(problem.send_ms[step.end]),
    )
