"""Choose the stages of every program of a model: between cuts, and of each what devices share."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgec.compiler.errors import UnsupportedModelError, UsageError
from edgec.compiler.split.choose_cuts import balanced_cuts, cuts_behind
from edgec.compiler.split.cut_graph import Before, CutGraph
from edgec.compiler.split.devices import Device, StageRequest
from edgec.compiler.split.exit_cuts import cut_behind_exits
from edgec.compiler.split.make_stages import Stage, make_stages, stages_of_parts
from edgec.compiler.split.model_values import ModelValues
from edgec.compiler.split.part_graph import PartReadings, make_part_graph


@dataclass(frozen=True)
class ChosenStages:
    """Chosen stages are those of every program of a model.

    Attributes:
        stages: of each program, in order.
        devices: who computes each.
        cuts: of each program.
    """

    stages: list[list[Stage]]
    devices: list[Device]
    cuts: list[list[Before]]


def choose_stages(
    graphs: Sequence[CutGraph],
    devices: Sequence[Device],
    requests: Sequence[StageRequest],
    with_exits: bool = False,
) -> ChosenStages:
    """Return the stages of each program, and who computes each.

    Args:
        graphs: the programs of a model.
        devices: who computes, in order.
        requests: where to cut, and who computes what; none: stages of equal work.
        with_exits: whether classifiers inside the model answer early.

    Raises:
        UsageError: devices would share the stages of a model with exits.
    """
    first = graphs[0]
    if requests:
        cuts = cuts_behind(first, requests)
    elif with_exits:
        cuts = cut_behind_exits(first, len(devices))
    else:
        cuts = balanced_cuts(graphs, len(devices))
    names = [first.cut_names(cut) for cut in cuts]
    sums = [request.along == "sums" for request in requests[:-1]] or [False] * len(cuts)
    every = [
        cuts,
        *([_found(g, n, s) for n, s in zip(names, sums, strict=True)] for g in graphs[1:]),
    ]
    if not any(request.along for request in requests):
        by_name = {device.name: device for device in devices}
        return ChosenStages(
            [make_stages(graph, own) for graph, own in zip(graphs, every, strict=True)],
            [by_name[request.device] for request in requests] or list(devices),
            every,
        )
    if with_exits:
        raise UsageError("--exits: one device has all that an exit reads; leave out shared stages")
    found = [
        shared_stages(graph, own, devices, requests)
        for graph, own in zip(graphs, every, strict=True)
    ]
    if any(owners != found[0][1] for _, owners in found):
        raise UnsupportedModelError(
            "the programs of this model cannot be shared in the same way: cut it into stages of "
            "one device each"
        )
    return ChosenStages(
        [stages for stages, _ in found], [devices[number] for number in found[0][1]], every
    )


def shared_stages(
    graph: CutGraph,
    cuts: Sequence[Before],
    devices: Sequence[Device],
    requests: Sequence[StageRequest],
) -> tuple[list[Stage], list[int]]:
    """Return stages, of which those of one request run at the same time, and their devices."""
    known = [device.name for device in devices]
    segments = [request.segment(known) for request in requests]
    bounds = [*cuts, frozenset(graph.operators)]
    lanes = max(device.target.float_lanes for device in devices)
    readings = PartReadings(graph, bounds, segments, lanes)
    parts = make_part_graph(readings, graph, known)
    values = graph.values
    targets = {device.target.name: device.target for device in devices}
    shared = CutGraph(
        ModelValues(parts.module, parts.names, values.signature, values.states),
        list(targets.values()),
    )
    places = {
        owner: frozenset(
            place
            for place in shared.operators
            if parts.owners[shared.values.graph.bindings[place][0].name] == owner
        )
        for owner in readings.owners
    }
    used = [owner for owner, own in places.items() if own]
    stages = stages_of_parts(shared, [places[owner] for owner in used], parts.requantizations)
    return stages, [readings.device_of(owner) for owner in used]


def _found(graph: CutGraph, names: Sequence[str], in_kernels: bool) -> Before:
    """Return a cut of another program, by its values."""
    cut = graph.find_cut(names)
    if cut is None or not graph.is_cut(cut, in_kernels):
        raise UnsupportedModelError(
            f"not every program of this model can be cut behind {', '.join(names)}"
        )
    return cut
