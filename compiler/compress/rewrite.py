"""New weights and biases in an unchanged graph."""

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray
from tvm import IRModule, relax

from edgec.compiler.dataflow import Graph
from edgec.compiler.passes.base import constant


def with_weights(
    graph: Graph,
    weights: Mapping[Any, NDArray[Any]],
    biases: Mapping[Any, NDArray[Any]] | None = None,
) -> IRModule:
    """The module with other constants.

    Args:
        graph: the module.
        weights: of convolutions and matrix products, by their variable (`Operator.anchor`), in
            the shape of the old ones.
        biases: by the variable of the addition (`Operator.bias[0]`), in the shape of the old
            constant.
    """
    biases = biases or {}

    def rewrite(
        builder: relax.BlockBuilder, variable: Any, value: Any, _now: Callable[[Any], Any]
    ) -> Any:
        if value is None:
            return variable
        if variable in weights:
            value = relax.Call(value.op, [value.args[0], constant(weights[variable])], value.attrs)
        elif variable in biases:
            new = constant(biases[variable])
            fields = [new if graph.constant(x) is not None else x for x in value.args]
            value = relax.Call(value.op, fields, value.attrs)
        return builder.emit(value, variable.name)

    return graph.rebuilt(rewrite)
