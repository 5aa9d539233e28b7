"""Write a quantization into a graph, as pairs of quantize and dequantize.

    x                    ->  dequantize(quantize(x, s, z), s, z)      for all readers of x
    conv(x, W)           ->  conv(x, dequantize(quantized, scales))
    conv(x, W) + b       ->  conv(..) + dequantize(int32, s_x * scales)

4-bit, shared and half-float weights come out of `edgec.decode_weight`. Dynamic activations have
scales that the graph computes:

    s = (max(x, 0) - min(x, 0)) / levels,  z = round(-min(x, 0) / s) + lowest value

A pair with one scale before and after data movement leaves the quantized values as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import IRModule, relax

from edgec.compiler.ir.anchors import Operator
from edgec.compiler.ir.operators import decode_weight
from edgec.compiler.ir.relax_helpers import constant, shape_of
from edgec.compiler.ir.rewrite import with_weight
from edgec.compiler.numerics.affine import ChannelWeight, Floats, QuantizedType, Scale
from edgec.compiler.passes.base import Pass
from edgec.compiler.quantize.codebook import CodebookWeight
from edgec.compiler.quantize.encode import HalfWeight, PackedWeight, Quantization

op = relax.op


@dataclass(frozen=True)
class InsertQuantization(Pass):
    """Make the rounding of a quantization explicit.

    1. A bias becomes int32 values only where they fit; else it stays a float constant.
    2. An empty range of dynamic activations has scale 1.

    Attributes:
        quantization: the quantization of the very module that the pass is applied to.
    """

    quantization: Quantization = field(repr=False)

    def apply(self, module: IRModule) -> IRModule:
        """Rewrite `main`."""
        assert module is self.quantization.plan.graph.module
        return _Inserter(self.quantization).run()


class _Inserter:
    def __init__(self, quantization: Quantization) -> None:
        self.quantization = quantization
        self.anchors: dict[Any, Operator] = {}
        self.biases: dict[Any, Operator] = {}
        for operator in quantization.plan.weighted():
            self.anchors[operator.anchor] = operator
            if operator.bias is not None:
                self.biases[operator.bias[0]] = operator
        self.dynamic: dict[Any, Any] = {}

    def run(self) -> IRModule:
        return self.quantization.plan.graph.rebuilt(self.rewrite)

    def rewrite(
        self, builder: relax.BlockBuilder, variable: Any, value: Any, _current: Callable[[Any], Any]
    ) -> Any:
        if value is None:
            result = variable
        else:
            result = builder.emit(self._replaced(builder, variable, value), variable.name)
        scale = self.quantization.scales.get(variable)
        return result if scale is None else fake_quantize(builder, result, scale)

    def _replaced(self, builder: relax.BlockBuilder, variable: Any, value: Any) -> Any:
        operator = self.anchors.get(variable)
        if operator is not None:
            packed_weight = self.quantization.weights[operator.name]
            weight = builder.emit(weight_expression(packed_weight, operator))
            value = with_weight(value, weight)
            if operator.keep == "integer" and self._is_dynamic:
                data = self._fake_quantize_dynamically(builder, value.args[0])
                value = relax.Call(value.op, [data, weight], value.attrs)
            return value
        operator = self.biases.get(variable)
        if operator is not None:
            bias = bias_expression(self.quantization, operator, shape_of(variable) or ())
            if isinstance(bias, relax.Call):
                bias = builder.emit(bias)
            return op.add(self._summand(variable, value), bias)
        return value

    def _summand(self, variable: Any, addition: Any) -> Any:
        """Return the operand that is no constant, nor a variable that holds one."""
        graph = self.quantization.plan.graph
        left, right = graph.definitions[variable].args
        assert (graph.constant(left) is None) != (graph.constant(right) is None)
        return addition.args[0 if graph.constant(left) is None else 1]

    @property
    def _is_dynamic(self) -> bool:
        return self.quantization.resolved.recipe.activations == "dynamic"

    def _fake_quantize_dynamically(self, builder: relax.BlockBuilder, data: Any) -> Any:
        if data not in self.dynamic:
            qtype = self.quantization.resolved.activations
            self.dynamic[data] = _dynamic_pair(builder, data, qtype)
        return self.dynamic[data]


def fake_quantize(builder: relax.BlockBuilder, data: Any, scale: Scale) -> Any:
    """Return a value, quantized and dequantized."""
    kind = scale.qtype.dtype
    factor = constant(np.array(scale.scale, np.float32))
    zero_point = constant(np.array(scale.zero_point, kind))
    if (scale.qtype.low, scale.qtype.high) != _limits(kind):
        # The operator saturates at 8 bits only.
        ends = ((code - scale.zero_point) * scale.scale for code in _ends(scale.qtype))
        data = builder.emit(op.clip(data, *ends))
    quantized = builder.emit(op.quantize(data, factor, zero_point, axis=0, out_dtype=kind))
    return builder.emit(op.dequantize(quantized, factor, zero_point, axis=0, out_dtype="float32"))


def _limits(dtype: str) -> tuple[int, int]:
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def _ends(qtype: QuantizedType) -> tuple[int, int]:
    return qtype.low, qtype.high


def _dynamic_pair(builder: relax.BlockBuilder, data: Any, qtype: QuantizedType) -> Any:
    def number(value: float) -> Any:
        return constant(np.array(value, np.float32))

    emit = builder.emit
    low = emit(op.minimum(emit(op.min(data)), number(0)))
    high = emit(op.maximum(emit(op.max(data)), number(0)))
    width = emit(op.subtract(high, low))
    step = emit(op.divide(width, number(qtype.high - qtype.low)))
    # (2)
    scale = emit(op.where(emit(op.equal(width, number(0))), number(1), step))
    shift = emit(op.round(emit(op.divide(emit(op.negative(low)), scale))))
    zero = emit(op.astype(emit(op.add(shift, number(qtype.low))), qtype.dtype))
    if (qtype.low, qtype.high) != _limits(qtype.dtype):
        data = emit(op.minimum(data, emit(op.multiply(scale, _span(emit, zero, qtype)))))
    quantized = emit(op.quantize(data, scale, zero, axis=0, out_dtype=qtype.dtype))
    return emit(op.dequantize(quantized, scale, zero, axis=0, out_dtype="float32"))


def _span(emit: Callable[[Any], Any], zero: Any, qtype: QuantizedType) -> Any:
    """Return quantized values above the zero point, as a float32."""
    highest = constant(np.array(qtype.high, np.float32))
    return emit(op.subtract(highest, emit(op.astype(zero, "float32"))))


def weight_expression(packed_weight: PackedWeight, operator: Operator) -> relax.Call:
    """Return the expression that gives the weights back as floats."""
    if isinstance(packed_weight, ChannelWeight):
        zeros = np.zeros(packed_weight.scales.shape, np.int8)
        return op.dequantize(
            constant(packed_weight.quantized),
            constant(packed_weight.scales),
            constant(zeros),
            axis=packed_weight.axis,
            out_dtype="float32",
        )
    assert operator.weight is not None
    shape = operator.weight.array.shape
    if isinstance(packed_weight, HalfWeight):
        return decode_weight(constant(packed_weight.quantized), [], format="float", shape=shape)
    if isinstance(packed_weight, CodebookWeight):
        return decode_weight(
            constant(packed_weight.quantized),
            [constant(packed_weight.table), constant(packed_weight.scales)],
            format=f"codebook{len(packed_weight.table)}",
            shape=shape,
            rows_last=operator.kind == "matmul",
        )
    parameters = [constant(packed_weight.scales)]
    if packed_weight.zero_points is not None:
        parameters.append(constant(packed_weight.zero_points))
    return decode_weight(
        constant(packed_weight.packed),
        parameters,
        format="log2" if packed_weight.zero_points is None else "int4",
        shape=shape,
        group=packed_weight.group,
        rows_last=operator.kind == "matmul",
    )


def bias_expression(
    quantization: Quantization, operator: Operator, shape: tuple[int, ...]
) -> relax.Expr:
    """Return the bias as int32 values in units of the products, or as floats."""
    bias = quantization.biases[operator.name]
    axis = len(shape) - 1 if operator.kind == "matmul" else 1
    full = tuple(-1 if i == axis else 1 for i in range(len(shape)))
    quantized, scales = quantized_bias(quantization, operator, bias)
    if quantized is None:
        return constant(bias.reshape(full))
    return op.dequantize(
        constant(quantized.reshape(full)),
        constant(scales),
        constant(np.zeros(scales.shape, np.int32)),
        axis=axis,
        out_dtype="float32",
    )


def quantized_bias(quantization: Quantization, operator: Operator, bias: Floats) -> tuple[Any, Any]:
    """Return int32 values and their float32 scales, one for each channel; (None, None) if unfit."""
    packed_weight = quantization.weights[operator.name]
    data = quantization.scales.get(operator.inputs[0])
    if data is None or operator.keep != "integer" or not isinstance(packed_weight, ChannelWeight):
        return None, None
    scales = (packed_weight.scales * np.float32(data.scale)).astype(np.float32)
    # Groups of a transposed convolution share the scales of its weights.
    scales = np.resize(scales, bias.shape)
    whole = np.rint(bias.astype(np.float64) / scales)
    # (1)
    if not np.all(np.abs(whole) < 2**31) or np.any(scales < np.finfo(np.float32).tiny):
        return None, None
    return whole.astype(np.int32), scales
