"""Provide new weights, biases and attributes."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import IRModule, relax

from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import constant, op_name


def with_weights(
    graph: Graph,
    weights: Mapping[Any, NDArray[Any]],
    biases: Mapping[Any, NDArray[Any]] | None = None,
) -> IRModule:
    """Return the module with other constants.

    Args:
        graph: the module.
        weights: the weights of convolutions and matrix products, by their variable
            (`Operator.anchor`), in the shape of the old ones.
        biases: by the variable of the addition (`Operator.bias[0]`), in the shape of the old
            constant.
    """
    biases = biases or {}

    def change(
        _builder: relax.BlockBuilder, variable: Any, value: Any, _current: Callable[[Any], Any]
    ) -> Any:
        if variable in weights:
            value = with_weight(value, weights[variable])
        elif variable in biases:
            value = with_bias(graph, value, biases[variable])
        return value

    return graph.map_values(change)


def with_weight(call: Any, weight: NDArray[Any] | relax.Expr) -> Any:
    """Return a convolution, matrix product or look-up of rows with other weights."""
    if isinstance(weight, np.ndarray):
        weight = constant(weight)
    data, rest = call.args[0], list(call.args[1:])
    arguments = [weight, *rest] if op_name(call) == "relax.take" else [data, weight]
    return relax.Call(call.op, arguments, call.attrs)


def with_bias(graph: Graph, call: Any, array: NDArray[Any]) -> Any:
    """Return the addition of another constant."""
    new = constant(array)
    fields = [new if graph.constant(x) is not None else x for x in call.args]
    return relax.Call(call.op, fields, call.attrs)


def convolution_attributes(call: Any, **changes: Any) -> Any:
    """Return the attributes of a convolution with some of them changed."""
    kind = type(call.attrs).__name__
    names = ["strides", "padding", "dilation", "groups"]
    names += ["data_layout", "kernel_layout", "out_layout", "out_dtype"]
    names += ["output_padding"] if kind.endswith("TransposeAttrs") else []
    fields = {name: getattr(call.attrs, name) for name in names}
    return tvm.ir.make_node(f"relax.attrs.{kind}", **fields | changes)
