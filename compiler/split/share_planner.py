"""Choose which segments devices compute together, and how they share each.

A way goes from cut to cut; the next segment is computed by one device or by all of them, along
rows, channels or sums.

    latency   the smallest sum of the times of the slowest parts and of fetching what they lack, by
              dynamic programming over the cut that was reached and how the last segment was shared
    memory    the smallest share of its memory that the fullest device needs for all its parts: of
              the ways to a cut those are kept than which none is better for every device, up to
              so many
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgec.compiler.errors import UnsupportedModelError, UsageError
from edgec.compiler.lowering.tuning_records import Database
from edgec.compiler.split.cut_graph import CutGraph
from edgec.compiler.split.devices import Device
from edgec.compiler.split.link import Link, Network
from edgec.compiler.split.operator_costs import operator_costs
from edgec.compiler.split.planner import Objective
from edgec.compiler.split.segment_costs import Parallel, SegmentCosts, SharedStage
from edgec.compiler.split.segments import Segment

# A compile shares as if links took no time; `edgec split` is told what there is.
NO_TIME = Network((Link(1e12, 0.0),))
# A host speaks with so many stages (`distribute.routes`).
_MOST_STAGES = 64
# What a stage takes beside its operators; that is doubled until there are few enough stages.
_STAGE_MS = 0.05
_MOST_TRIES = 12
# So many ways to a cut are kept, and those of almost equal memory are one.
_MOST_WAYS = 64
_STEPS = 256

# The cut that was reached, and how the segment before it was shared.
_State = tuple[int, Segment | None]


def plan_shared(
    graph: CutGraph,
    devices: Sequence[Device],
    parallel: Parallel,
    network: Network = NO_TIME,
    objective: Objective = "latency",
    memory: Mapping[str, int] | None = None,
    database: Database | None = None,
) -> list[SharedStage]:
    """Return the best segments of a graph.

    Args:
        graph: the graph.
        devices: who computes; inputs are at the first one.
        parallel: what segments may be shared along.
        network: what connects devices.
        objective: `latency` or `memory`.
        memory: bytes that a device has for the model, by name; by default its target's.
        database: tuning records beside those that come with edgec.

    Raises:
        UsageError: the objective is `throughput`.
        UnsupportedModelError: no way has so few stages as a host speaks with.
    """
    if objective == "throughput":
        raise UsageError(
            "--parallel is for one request, and --objective throughput for many: leave one out"
        )
    known = {}
    for device in devices:
        if device.target.name not in known:
            known[device.target.name] = operator_costs(graph, device.target, database)
    costs = SegmentCosts(
        graph,
        [device.name for device in devices],
        [known[device.target.name] for device in devices],
        network,
        parallel,
        max(device.target.float_lanes for device in devices),
    )
    if objective == "memory":
        limits = memory or {}
        found = _least_memory(
            costs, [limits.get(d.name, d.target.memory_mib * 2**20) for d in devices]
        )
    else:
        found = _least_time(costs)
    if not found:
        raise UnsupportedModelError(
            f"shared by {len(devices)} devices this model has over {_MOST_STAGES} stages"
        )
    return found


def _least_time(costs: SegmentCosts) -> list[SharedStage]:
    """Return the fastest way, of those with few enough stages."""
    each = _STAGE_MS
    for _ in range(_MOST_TRIES):
        found = _fastest(costs, each)
        # One joins the results.
        if sum(len(stage.request.names) for stage in found) < _MOST_STAGES:
            return found
        each *= 2
    return []


def _fastest(costs: SegmentCosts, stage_ms: float) -> list[SharedStage]:
    last = len(costs.nodes) - 1
    best: dict[_State, float] = {(0, None): 0.0}
    came: dict[_State, tuple[_State, SharedStage]] = {}
    for begin in range(last):
        for state, cost in [(s, c) for s, c in best.items() if s[0] == begin]:
            for end in range(begin + 1, last + 1):
                for segment in costs.segments(begin, end):
                    stage = costs.cost(begin, end, segment, state[1])
                    ms = cost + stage.ms + stage.fetch_ms + stage_ms * len(segment.devices)
                    reached: _State = (end, segment)
                    if ms < best.get(reached, math.inf):
                        best[reached], came[reached] = ms, (state, stage)
    at = min((s for s in best if s[0] == last), key=best.__getitem__)
    way = []
    while at[0]:
        at, stage = came[at]
        way.append(stage)
    return way[::-1]


@dataclass(frozen=True)
class _Way:
    """A way to a cut: the shares of memory that it needs, its stages, and its last step."""

    shares: tuple[float, ...]
    stages: int
    segment: Segment | None = None
    begin: int = 0
    before: "_Way | None" = None


def _least_memory(costs: SegmentCosts, memory: Sequence[float]) -> list[SharedStage]:
    """Return the way whose fullest device needs the least, of those with few enough stages."""
    last = len(costs.nodes) - 1
    ways: list[list[_Way]] = [[] for _ in costs.nodes]
    ways[0] = [_Way((0.0,) * len(memory), 0)]
    whole = costs.cost(0, last, Segment((0,)), None)
    step = (sum(whole.weight_bytes) + sum(whole.value_bytes)) / min(memory) / _STEPS
    for begin in range(last):
        kept = _kept(ways[begin], step)
        ways[begin] = []
        for end in range(begin + 1, last + 1):
            for segment in costs.segments(begin, end):
                stage = costs.cost(begin, end, segment, None)
                each = zip(stage.weight_bytes, stage.value_bytes, memory, strict=True)
                more = [(weights + values) / most for weights, values, most in each]
                ways[end] += [
                    _Way(
                        tuple(a + b for a, b in zip(way.shares, more, strict=True)),
                        way.stages + len(segment.devices),
                        segment,
                        begin,
                        way,
                    )
                    for way in kept
                    if way.stages + len(segment.devices) < _MOST_STAGES
                ]
    best = min(ways[last], key=lambda way: (max(way.shares), way.stages), default=None)
    steps: list[tuple[int, int, Segment]] = []
    end = last
    while best is not None and best.segment is not None:
        steps.append((best.begin, end, best.segment))
        end, best = best.begin, best.before
    stages, shared = [], None
    for begin, end, segment in reversed(steps):
        stages.append(costs.cost(begin, end, segment, shared))
        shared = segment
    return stages


def _kept(ways: Sequence[_Way], step: float) -> list[_Way]:
    """Return the ways than which no other needs less everywhere, with as few stages."""
    of_size: dict[tuple[int, ...], _Way] = {}
    for way in sorted(ways, key=lambda way: (way.stages, max(way.shares))):
        of_size.setdefault(tuple(round(share / step) for share in way.shares), way)
    found: list[_Way] = []
    for way in sorted(of_size.values(), key=lambda way: (sum(way.shares), way.stages)):
        if not any(all(a <= b for a, b in zip(k.shares, way.shares, strict=True)) for k in found):
            found.append(way)
            if len(found) == _MOST_WAYS:
                break
    return found
