"""Cut a model with early exits so that they are all in the first stage."""

from edgec.compiler.errors import UnsupportedModelError, UsageError
from edgec.compiler.ir.early_exits import DECISION
from edgec.compiler.ir.relax_helpers import op_name
from edgec.compiler.split.cut_graph import Before, CutGraph
from edgec.compiler.split.plan import PlannedExit


def cut_behind_exits(graph: CutGraph, stages: int) -> list[Before]:
    """Return the cut behind the last exit.

    Args:
        graph: of a model with exits.
        stages: how many there are to be.

    Raises:
        UsageError: there are more than two stages.
        UnsupportedModelError: kernels compute across that cut.
    """
    if stages != 2:
        raise UsageError(
            f"--exits is for two devices, the first of which has the exits; {stages} are given: "
            "say where to cut with --split"
        )
    before = graph.closed(place for place, _ in _decisions(graph))
    if not graph.is_cut(before):
        raise UnsupportedModelError(
            "--exits: the model cannot be cut behind its last exit; choose other depths, or say "
            "where to cut with --split"
        )
    return [before]


def exits_before(graph: CutGraph, before: Before) -> tuple[PlannedExit, ...]:
    """Return the exits whose decision is before a cut, in order."""
    return tuple(
        PlannedExit(decided=graph.name(decision), answer=graph.name(answer))
        for decision, answer in _decisions(graph)
        if decision in before
    )


def _decisions(graph: CutGraph) -> list[tuple[int, int]]:
    """Return the places of each exit's decision and answer, in order."""
    values = graph.values
    found = []
    for place in graph.operators:
        _, value = values.graph.bindings[place]
        if op_name(value) == "relax.call_tir" and value.args[0].name_hint.startswith(DECISION):
            found.append((place, values.place[value.args[1].fields[0]]))
    return found
