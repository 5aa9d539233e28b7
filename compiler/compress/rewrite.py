"""New weights, biases and attributes."""

from collections.abc import Callable, Mapping
from typing import Any

import tvm
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

    def change(
        _builder: relax.BlockBuilder, variable: Any, value: Any, _now: Callable[[Any], Any]
    ) -> Any:
        if variable in weights:
            value = relax.Call(value.op, [value.args[0], constant(weights[variable])], value.attrs)
        elif variable in biases:
            new = constant(biases[variable])
            fields = [new if graph.constant(x) is not None else x for x in value.args]
            value = relax.Call(value.op, fields, value.attrs)
        return value

    return graph.revalued(change)


def convolution_attributes(call: Any, **changes: Any) -> Any:
    """The attributes of a convolution with some of them changed."""
    kind = type(call.attrs).__name__
    names = ["strides", "padding", "dilation", "groups"]
    names += ["data_layout", "kernel_layout", "out_layout", "out_dtype"]
    names += ["output_padding"] if kind.endswith("TransposeAttrs") else []
    fields = {name: getattr(call.attrs, name) for name in names}
    return tvm.ir.make_node(f"relax.attrs.{kind}", **fields | changes)
