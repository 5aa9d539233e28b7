"""Choose where a graph is cut: behind named values, or so that stages have equal work."""

from collections.abc import Callable, Sequence

from edgec.compiler.errors import BadInputError, UnsupportedModelError, did_you_mean
from edgec.compiler.exits.places import operator_macs
from edgec.compiler.split.cut_graph import Before, CutGraph
from edgec.compiler.split.devices import StageRequest

# A value that moves costs about as much as so many multiplications.
_MACS_PER_BYTE = 2.0
# So far a stage may be from its equal share of the work, as a share of that, to send less.
_AWAY = 0.1


def candidate_cuts(graph: CutGraph) -> list[Before]:
    """Return the cuts behind each operator that nothing but values that may travel cross."""
    found: dict[Before, None] = {}
    for place in graph.operators:
        if graph.may_travel(place):
            before = graph.closed([place])
            if before not in found and graph.is_cut(before):
                found[before] = None
    return sorted(found, key=len)


def common_cuts(graphs: Sequence[CutGraph]) -> list[Before]:
    """Return the cuts of the first program that all programs of a model have."""
    first, *others = graphs
    return [cut for cut in candidate_cuts(first) if all(map(_has(first.cut_names(cut)), others))]


def _has(names: Sequence[str]) -> Callable[[CutGraph], bool]:
    def has(graph: CutGraph) -> bool:
        cut = graph.find_cut(names)
        return cut is not None and graph.cut_names(cut) == tuple(names) and graph.is_cut(cut)

    return has


def balanced_cuts(graphs: Sequence[CutGraph], stages: int) -> list[Before]:
    """Return cuts that make stages of about equal work, and of few bytes.

    Args:
        graphs: the programs of a model; the cuts are of the first.
        stages: how many.

    Raises:
        UnsupportedModelError: there are too few places to cut at.
    """
    graph = graphs[0]
    work = {place: operator_work(graph, place) for place in graph.operators}
    total = sum(work.values())
    candidates = common_cuts(graphs)
    done = {cut: sum(work[place] for place in cut) / total for cut in candidates}
    cuts: list[Before] = []
    for number in range(1, stages):
        allowed = [c for c in candidates if not cuts or cuts[-1] < c]
        if not allowed:
            raise UnsupportedModelError(
                f"the model has {len(cuts) + 1} parts that can be computed apart; {stages} stages "
                "were asked for"
            )
        away = {cut: abs(done[cut] - number / stages) for cut in allowed}
        near = [cut for cut in allowed if away[cut] <= min(away.values()) + _AWAY / stages]
        cuts.append(min(near, key=lambda c: (graph.cut_bytes(c), away[c])))
    return cuts


def operator_work(graph: CutGraph, place: int) -> float:
    """Return the multiplications of an operator, with those that moving its values is worth."""
    variable, value = graph.values.graph.bindings[place]
    moved = graph.size_bytes(place) + graph.weight_bytes[place]
    return operator_macs(variable, value) + _MACS_PER_BYTE * moved


def cuts_behind(graph: CutGraph, requests: Sequence[StageRequest]) -> list[Before]:
    """Return the cuts that requests name.

    Raises:
        BadInputError: a name is unknown, or nothing can be cut there; says where near it can be.
    """
    cuts: list[Before] = []
    for number, request in enumerate(requests[:-1], 1):
        sums = request.along == "sums"
        places = [_named(graph, name, exactly=sums) for name in request.until]
        before = graph.closed([*(cuts[-1] if cuts else ()), *places])
        if not graph.is_cut(before, in_kernels=sums):
            raise BadInputError(
                f"stage {number} cannot end with {', '.join(request.until)}: "
                f"{_why_not(graph, before)}"
            )
        if cuts and before == cuts[-1]:
            raise BadInputError(f"stage {number} computes nothing before {request.until[0]}")
        cuts.append(before)
    return cuts


def _named(graph: CutGraph, name: str, exactly: bool) -> int:
    """Return the operator of a name, or the one behind it that ends its kernel."""
    by_name = {graph.name(place): place for place in graph.operators}
    if name not in by_name:
        raise BadInputError(f"no value is named {name!r}{did_you_mean(name, by_name)}")
    place = by_name[name]
    while not exactly and not graph.may_travel(place) and len(graph.readers[place]) == 1:
        (place,) = graph.readers[place]
    return place


def _why_not(graph: CutGraph, before: Before) -> str:
    inside = [p for p in graph.crossing(before) if not graph.may_travel(p)]
    nearest = min(
        candidate_cuts(graph), key=lambda cut: len(cut ^ before), default=frozenset[int]()
    )
    names = ", ".join(graph.name(place) for place in graph.crossing(nearest))
    where = f"; the nearest place to cut at is behind {names}" if names else ""
    if inside:
        return f"a kernel computes {graph.name(inside[0])} together with what reads it{where}"
    return f"nothing or everything would be before it{where}"
