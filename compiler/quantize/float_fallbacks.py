"""What stays float in a quantized graph, and why."""

from dataclasses import dataclass
from typing import Any

from tvm import relax

from edgec.compiler.ir.anchors import Operator
from edgec.compiler.ir.relax_helpers import op_name
from edgec.compiler.quantize.encode import Quantization
from edgec.compiler.quantize.recipe import Recipe

# These change no numbers, or none that could be rounded.
_SILENT = ("relax.shape_of", "relax.astype", "relax.split")


@dataclass(frozen=True)
class Island:
    """An operator that computes on floats.

    Attributes:
        name: of the value that it gives.
        operator: what it is, without the dialect: `nn.softmax`, or a kind of operator.
        why: no integers.
    """

    name: str
    operator: str
    why: str


def float_islands(quantization: Quantization, returned: tuple[str, ...] = ()) -> list[Island]:
    """In order; none if the recipe leaves all activations float.

    Args:
        quantization: of the graph.
        returned: names of operators that it leaves out to reach a bar.
    """
    plan, recipe = quantization.plan, quantization.resolved.recipe
    graph = plan.graph
    if recipe.activations == "float":
        return []
    known = {name for operator in plan.operators for name in operator.names}
    found: dict[Any, Island] = {}
    for operator in plan.operators:
        if operator.keep != "integer":
            why = _why(operator, recipe, returned)
            found[operator.result] = Island(operator.name, operator.kind, why)
    for variable, value in graph.bindings:
        name = op_name(value) if isinstance(value, relax.Call) else ""
        if not name or name in _SILENT or graph.names[variable] in known:
            continue
        if graph.is_float(variable) or isinstance(value.ty, relax.TupleType):
            kind = name.removeprefix("relax.").removeprefix("edgec.")
            found[variable] = Island(graph.names[variable], kind, "it has no integer kernel")
    return [found[variable] for variable in graph.definitions if variable in found]


def _why(operator: Operator, recipe: Recipe, returned: tuple[str, ...]) -> str:
    if operator.name in returned:
        return "it returned to float to reach the bar"
    for override in recipe.override:
        if override.applies(operator.names, operator.kind):
            return f"an override of the recipe keeps it {override.keep}"
    if recipe.activations == "dynamic":
        return "dynamic ranges are found for what has constant weights only"
    return "no operator with an integer kernel reads what it gives"
