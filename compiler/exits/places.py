"""Choose where in a graph a model may end early: behind values that all of the rest is made of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import relax

from edgec.compiler.errors import UnsupportedModelError, UsageError
from edgec.compiler.ir.graph import Graph, operands
from edgec.compiler.ir.relax_helpers import op_name, shape_of

_DEQUANTIZE = "relax.dequantize"


@dataclass(frozen=True)
class ExitPlace:
    """An exit place is a value that an exit is computed from.

    Attributes:
        variable: holds it.
        before: places in the graph of what it needs, its own among them.
        work: share of the model's multiplications that this is.
    """

    variable: Any
    before: frozenset[int]
    work: float


def exit_places(graph: Graph, depths: Sequence[float], batch: int) -> list[ExitPlace]:
    """Return the places nearest to some depths, ascending.

    Args:
        graph: of the model.
        depths: shares of the model's multiplications.
        batch: samples in a batch; the first axis of a value that has some for each.

    Raises:
        UnsupportedModelError: the model has no place for an exit.
        UsageError: two exits would be at the same place.
    """
    candidates = _candidates(graph, batch)
    if not candidates:
        raise UnsupportedModelError(
            "--exits: no value in this model is all that the rest of it needs, so that an exit "
            "could be there"
        )
    found: list[ExitPlace] = []
    for depth in depths:
        # Of places behind the same work the last one: behind activation and pooling.
        near = min(reversed(candidates), key=lambda place: abs(place.work - depth))
        if near in found:
            shares = ", ".join(f"{place.work:.2g}" for place in candidates)
            raise UsageError(
                f"--exits: two of the exits would be at {near.work:.2g} of the model; there is "
                f"place at {shares}"
            )
        found.append(near)
    return found


def _candidates(graph: Graph, batch: int) -> list[ExitPlace]:
    """Return the places with work before and behind them, in order; of equal work the last."""
    place_of = {variable: number for number, (variable, _) in enumerate(graph.bindings)}
    dependent = _dependent(graph)
    work = [operator_macs(variable, value) for variable, value in graph.bindings]
    total = sum(work)
    found: dict[float, ExitPlace] = {}
    for variable, _ in graph.bindings:
        shape = shape_of(variable)
        if variable not in dependent or not graph.is_float(variable) or shape is None:
            continue
        if not 2 <= len(shape) <= 4 or shape[0] != batch or graph.is_result(variable):
            continue
        before = _needed(graph, variable, place_of)
        share = sum(work[number] for number in before) / total if total else 0.0
        if 0 < share < 1 and _crossing(graph, before, dependent) == {_source(graph, variable)}:
            found[share] = ExitPlace(variable, before, share)
    return [found[share] for share in sorted(found)]


def _dependent(graph: Graph) -> set[Any]:
    """Return the inputs of the model and what depends on them."""
    found = set(graph.parameters)
    for variable, value in graph.bindings:
        if any(operand in found for operand in operands(value)):
            found.add(variable)
    return found


def _needed(graph: Graph, variable: Any, place_of: dict[Any, int]) -> frozenset[int]:
    found: set[int] = set()
    waiting = [variable]
    while waiting:
        place = place_of.get(waiting.pop())
        if place is not None and place not in found:
            found.add(place)
            waiting += operands(graph.bindings[place][1])
    return frozenset(found)


def _crossing(graph: Graph, before: frozenset[int], dependent: set[Any]) -> set[Any]:
    """Return the values that what is behind a place reads, of dequantized ones their codes."""
    inside = {graph.bindings[number][0] for number in before}
    return {
        _source(graph, operand)
        for number, (_, value) in enumerate(graph.bindings)
        if number not in before
        for operand in operands(value)
        if operand in dependent and (operand in inside or operand in graph.parameters)
    }


def _source(graph: Graph, variable: Any) -> Any:
    value = graph.definitions.get(variable)
    if isinstance(value, relax.Call) and op_name(value) == _DEQUANTIZE:
        return value.args[0]
    return variable


def operator_macs(variable: Any, value: Any) -> float:
    """Return the multiplications of an operator: a convolution's, or a matrix product's."""
    name, shape = op_name(value), shape_of(variable)
    if shape is None or not isinstance(value, relax.Call):
        return 0
    given = [shape_of(operand) or () for operand in operands(value)]
    if name.startswith("relax.nn.conv") and len(given) > 1:
        weight = given[1]
        transposed = name.endswith("transpose")
        images = given[0] if transposed else shape
        return math.prod(images) * math.prod(weight) / weight[0]
    if name == "relax.matmul" and given:
        return math.prod(shape) * given[0][-1]
    return 0
