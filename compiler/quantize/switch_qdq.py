"""Provide a graph in which the quantization of each operator can be switched on and off.

One more input holds a number for each operator, 1 for on and 0 for off:

    x  ->  where(switch, round(x), x)             for each activation that the operator reads
    conv(x, W)  ->  conv(x, W) + switch * conv(x, W_q - W)

So one compile serves to measure any set of quantized operators.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import IRModule, relax

from edgec.compiler.ir.anchors import Operator
from edgec.compiler.ir.relax_helpers import constant
from edgec.compiler.ir.rewrite import with_weight
from edgec.compiler.quantize.encode import Quantization
from edgec.compiler.quantize.insert_qdq import fake_quantize

op = relax.op

SWITCHES = "quantized operators"
"""Name of the further input."""


@dataclass(frozen=True)
class SwitchQuantization:
    """Add the switches; no `Pass`, as the signature changes.

    Attributes:
        quantization: the quantization of the module that it is applied to.
        operators: in the order of the switches.
    """

    quantization: Quantization = field(repr=False)
    operators: Sequence[Operator] = field(repr=False)

    def __call__(self) -> IRModule:
        """Return the module; its last parameter is float32 [operators]."""
        parameter = relax.Var("switches", relax.TensorType((len(self.operators),), "float32"))
        switcher = _Switcher(self.quantization, self.operators, parameter)
        return self.quantization.plan.graph.rebuilt(switcher.rewrite, [parameter])


class _Switcher:
    def __init__(
        self, quantization: Quantization, operators: Sequence[Operator], parameter: Any
    ) -> None:
        self.quantization = quantization
        self.parameter = parameter
        self.numbers = {operator.anchor: i for i, operator in enumerate(operators)}
        self.operators = list(operators)
        self.rounded: dict[Any, Any] = {}

    def rewrite(
        self, builder: relax.BlockBuilder, variable: Any, value: Any, current: Callable[[Any], Any]
    ) -> Any:
        if value is None:
            return variable
        number = self.numbers.get(variable)
        if number is None:
            return builder.emit(value, variable.name)
        operator = self.operators[number]
        emit = builder.emit
        switch = emit(op.strided_slice(self.parameter, [0], [number], [number + 1]))
        arguments = list(value.args)
        if operator.keep == "integer":
            on = emit(op.greater(switch, constant(np.zeros(1, np.float32))))
            stand_ins = {
                current(x): self._switched(builder, x, current(x), on) for x in operator.inputs
            }
            arguments = [stand_ins.get(a, a) if isinstance(a, relax.Var) else a for a in arguments]
        if operator.weight is None:
            return emit(relax.Call(value.op, arguments, value.attrs), variable.name)
        value = relax.Call(value.op, arguments, value.attrs)
        lost = self.quantization.weight_values(operator) - operator.weight.array
        exact = emit(with_weight(value, operator.weight.array))
        error = emit(with_weight(value, lost))
        return emit(op.add(exact, emit(op.multiply(error, switch))), variable.name)

    def _switched(self, builder: relax.BlockBuilder, variable: Any, data: Any, on: Any) -> Any:
        scale = self.quantization.scales.get(variable)
        if scale is None:
            return data
        if variable not in self.rounded:
            self.rounded[variable] = fake_quantize(builder, data, scale)
        return builder.emit(op.where(on, self.rounded[variable], data))
