"""Describe what computes on floats in a quantized graph, and why."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import relax

from edgec.compiler.ir.anchors import Operator
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import op_name
from edgec.compiler.quantize.encode import Quantization
from edgec.compiler.quantize.plan import integer_support
from edgec.compiler.quantize.quantization_recipe import QuantizationRecipe
from edgec.compiler.quantize.smooth import is_smoothing

# These change no numbers, or none that could be rounded.
_SILENT = ("relax.shape_of", "relax.astype", "relax.split")

WhyFloats = Callable[[Sequence[str]], str | None]
"""What the packed program says about an operator, by the names of its values.

None: its kernel reads quantized values, or it has no kernel; else why it reads floats.
"""

_UNEXPLAINED = "its kernel declined without a reason"


@dataclass(frozen=True)
class FloatFallback:
    """A float fallback describes an operator that computes on floats.

    Attributes:
        name: the name of the value that it gives.
        operator: what it is, without the dialect: `nn.softmax`, or a kind of operator.
        why: no integers.
    """

    name: str
    operator: str
    why: str


def float_fallbacks(
    quantization: Quantization, why_floats: WhyFloats, returned: tuple[str, ...] = ()
) -> tuple[FloatFallback, ...]:
    """Return them in the order of the graph; none if the recipe leaves all activations float.

    Args:
        quantization: the quantization of the graph.
        why_floats: asks the packed program; see `lowering.pack.Notes.why_floats`.
        returned: names of operators that the quantizer left out to reach a bar.
    """
    plan, recipe = quantization.plan, quantization.resolved.recipe
    graph = plan.graph
    if recipe.activations == "float":
        return ()
    known = {name for operator in plan.operators for name in operator.names}
    found: dict[Any, FloatFallback] = {}
    for operator in plan.operators:
        why = _why_planned(plan.graph, operator, recipe, returned)
        if why is None:
            why = why_floats(operator.names)
        if why is not None:
            fallback = FloatFallback(operator.name, operator.kind, why or _UNEXPLAINED)
            found[operator.result] = fallback
    for variable, value in graph.bindings:
        name = op_name(value) if isinstance(value, relax.Call) else ""
        if not name or name in _SILENT or graph.names[variable] in known:
            continue
        if graph.is_float(variable) or isinstance(value.ty, relax.TupleType):
            kind = name.removeprefix("relax.").removeprefix("edgec.")
            smoothed = is_smoothing(graph, variable)
            why = "it smooths what is rounded next" if smoothed else "it has no integer kernel"
            found[variable] = FloatFallback(graph.names[variable], kind, why)
    return tuple(found[variable] for variable in graph.definitions if variable in found)


def _why_planned(
    graph: Graph, operator: Operator, recipe: QuantizationRecipe, returned: tuple[str, ...]
) -> str | None:
    """Return why the quantizer leaves an operator on floats; None if it does not."""
    if operator.keep == "integer":
        return None
    if operator.name in returned:
        return "it returned to float to reach the bar"
    for override in recipe.override:
        if override.applies(operator.names, operator.kind):
            return f"an override of the recipe keeps it {override.keep}"
    declined = integer_support(graph, operator)
    if declined is not None:
        return declined.reason
    if recipe.activations == "dynamic":
        return "dynamic ranges are found for what has constant weights only"
    return "no operator with an integer kernel reads what it gives"
