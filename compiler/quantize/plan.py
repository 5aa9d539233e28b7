"""Describe what is quantized in a graph: operators, the values they read, and values of one scale.

An *operator* is a convolution, matrix product, sum, product, pooling or concatenation together
with what its kernel computes on the way out: bias, constant factors, activations. Values inside
it are never quantized values. A value is quantized if an integer operator reads it; then every
reader reads the rounded value.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from edgec.compiler.ir.anchors import Operator, find_embeddings, find_operators, is_normalization
from edgec.compiler.ir.graph import Graph
from edgec.compiler.numerics.support import Declined, integer_matmul_support
from edgec.compiler.quantize.quantization_recipe import QuantizationRecipe


@dataclass
class QuantizationPlan:
    """A quantization plan describes what is quantized.

    Attributes:
        graph: the canonical module.
        operators: in order, those that stay float included.
        shared: for each quantized variable, the representative of the values of its scale.
    """

    graph: Graph
    operators: list[Operator]
    shared: dict[Any, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> list[Any]:
        """Return variables that is quantized, in the order of the graph."""
        every = [*self.graph.parameters, *self.graph.definitions]
        return [variable for variable in every if variable in self.shared]

    def quantized(self) -> list[Operator]:
        """Return the operators that round something; moves of quantized values do not."""
        return [o for o in self.operators if o.keep != "float" and not o.shares_scale]

    def weighted(self) -> list[Operator]:
        """Return operators whose weights are quantized."""
        return [o for o in self.operators if o.weight is not None and o.keep != "float"]


def plan_quantization(
    graph: Graph, recipe: QuantizationRecipe, float_operators: frozenset[str] = frozenset()
) -> QuantizationPlan:
    """Decide what a recipe quantizes.

    Args:
        graph: the canonical module.
        recipe: what is wanted.
        float_operators: names of operators that stay float whatever the recipe says.
    """
    order = {variable: place for place, variable in enumerate(graph.definitions)}
    every = [*find_operators(graph), *find_embeddings(graph)]
    found = [
        replace(operator, keep=_keep(graph, operator, recipe, float_operators))
        for operator in sorted(every, key=lambda operator: order[operator.anchor])
    ]
    plan = QuantizationPlan(graph, found)
    if recipe.activations != "static":
        return plan
    wanted = {
        graph.operand(result)
        for result in graph.results
        if recipe.extent == "full" and graph.is_float(result)
    }
    planned: list[Operator] = []
    # From the end: whether an addition or data movement runs on quantized values depends on who
    # reads it.
    for operator in reversed(found):
        if operator.keep == "integer" and operator.kind not in _ANCHORS:
            needed = operator.result in wanted
            operator = replace(operator, keep="integer" if needed else "float")
        if operator.keep == "integer":
            wanted.update(operator.inputs)
        planned.append(operator)
    plan.operators = planned[::-1]
    plan.shared = _shared_scales(plan.operators, wanted)
    return plan


_ANCHORS = ("conv", "conv_transpose", "depthwise_conv", "matmul")


def integer_support(graph: Graph, operator: Operator) -> Declined | None:
    """Return why no target has an integer kernel for an operator; None if one may have.

    The packer asks the same kernels. What depends on the target is left to it.
    """
    if operator.kind == "embedding":
        return Declined("rows of its int8 table become floats as they are read")
    if operator.kind == "multiply" and is_normalization(graph, operator.anchor):
        return Declined("a normalization has no kernel of integers")
    if operator.kind != "matmul":
        return None
    if operator.weight is None:
        return Declined("only a constant int8 matrix has a kernel of integers")
    return integer_matmul_support(operator.weight.array.shape)


def _keep(
    graph: Graph, operator: Operator, recipe: QuantizationRecipe, float_operators: frozenset[str]
) -> str:
    if operator.name in float_operators:
        return "float"
    keep = recipe.keep(operator.names, operator.kind)
    if keep == "integer" and integer_support(graph, operator) is not None:
        keep = "weight-only"
    if keep == "weight-only" and operator.weight is None:
        return "float"
    if recipe.activations == "dynamic" and keep == "integer" and operator.weight is None:
        return "float"
    if recipe.weights == "float" and keep == "weight-only":
        return "float"
    return keep


def _shared_scales(operators: list[Operator], wanted: set[Any]) -> dict[Any, Any]:
    """Return representative by variable (union-find over data movement)."""
    parent = {variable: variable for variable in wanted}

    def root(variable: Any) -> Any:
        while parent[variable] is not variable:
            variable = parent[variable]
        return variable

    for operator in operators:
        if operator.keep == "integer" and operator.shares_scale:
            for variable in operator.inputs:
                parent[root(variable)] = root(operator.result)
    return {variable: root(variable) for variable in wanted}
