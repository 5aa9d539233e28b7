"""Describe what all matchers share: the values so far, their layouts.

And the calls that are emitted.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import IRModule, relax

from edgec.compiler.ir.blocked_layout import Shape, block_array, blocked_shape, image
from edgec.compiler.ir.relax_helpers import constant, dtype_of, op_name, shape_of, value_of
from edgec.compiler.kernels.elementwise import ElementwiseWorkload
from edgec.compiler.kernels.emit.epilogue import EpilogueStep
from edgec.compiler.kernels.emit.requantize import Requantization
from edgec.compiler.kernels.isa import Dot
from edgec.compiler.kernels.layout import PackWorkload
from edgec.compiler.kernels.matmul.quantize_normalized import (
    QuantizeNormalizedWorkload,
    can_quantize,
)
from edgec.compiler.kernels.matmul.quantize_rows import QuantizeRowsWorkload
from edgec.compiler.kernels.softmax_norm import SoftmaxNormWorkload
from edgec.compiler.kernels.template import from_text, to_text
from edgec.compiler.lowering.kernel_operators import kernel_call
from edgec.compiler.lowering.pack.values import PackedValue, QParams
from edgec.compiler.numerics.support import Declined

log = logging.getLogger("edgec.pack")


@dataclass(frozen=True)
class Decline:
    """A decline describes a kernel that could not compute an operator.

    Attributes:
        label: the operator, by the name of the value that it gives.
        operator: what it is, `relax.matmul` for example.
        reason: for people.
        generic: whether no other kernel computes the operator: it runs generic code.
    """

    label: str
    operator: str
    reason: str
    generic: bool


class Context:
    """A context is the state of one packing.

    Attributes:
        lanes: float32 values in a vector of the target.
        dot: how the target multiplies quantized values; None: it does not.
        builder: the builder of the new function.
        values: what each variable of the old function became.
        old: the old function's bindings so far.
        made: the kernel call that each new variable holds.
        largest: the largest quantized value that occurs in a new variable, where it is known.
        label: name of the value that is being computed, for people.
        variable: the name of its variable.
        is_part: whether the function is a part of a larger one, with some rows of its images.
        decided: by the names of variables how accumulators are requantized, None not in fixed
            point; of others it is decided now.
        requantizations: how they are.
        operator: the operator that computes it.
        declines: every kernel that declined, in order.
        on_integers: by label, whether the kernel of an operator reads quantized values.
    """

    def __init__(self, module: IRModule, lanes: int, dot: Dot | None) -> None:
        self.lanes = lanes
        self.dot = dot
        others = {v: f for v, f in module.functions_items() if not isinstance(f, relax.Function)}
        self.builder = relax.BlockBuilder(IRModule(others))
        self.values: dict[relax.Var, PackedValue] = {}
        self.old: dict[relax.Var, Any] = {}
        self.made: dict[relax.Var, relax.Call] = {}
        self.largest: dict[relax.Var, int] = {}
        self.label = self.variable = ""
        self.is_part = False
        self.decided: dict[str, Requantization | None] = {}
        self.requantizations: dict[str, Requantization] = {}
        self.operator = ""
        self.declines: list[Decline] = []
        self.on_integers: dict[str, bool] = {}
        self._rows: dict[tuple[Any, QuantizeRowsWorkload], relax.Var] = {}
        self._converted: dict[tuple[relax.Var, bool], relax.Var] = {}
        self._floats: dict[tuple[relax.Var, QParams], PackedValue] = {}

    def decline(self, declined: Declined, generic: bool = False) -> None:
        """Log that a kernel cannot compute the operator that is being visited.

        `generic` says that no other one will.
        """
        log.debug("%s: %s: %s", self.label, self.operator, declined.reason)
        self.declines.append(Decline(self.label, self.operator, declined.reason, generic))

    def record(self, sources: Sequence[Any]) -> None:
        """Note what the kernels of the operator that is being visited read as their data.

        An operator without a kernel, a reshape, computes nothing: nothing is noted.
        """
        if not sources:
            return
        read = {dtype_of(source) for source in sources}
        self.on_integers[self.label] = bool(read & {"uint8", "int8"})

    def sources_since(self, count: int) -> list[Any]:
        """Return the data of the kernels emitted since there were `count`.

        Those that only bring a value into another layout, or dequantize it, do not count.
        """
        emitted = list(self.made.items())[count:]
        conversions = {value.expression for value in self._floats.values()}
        return [
            call.args[0]
            for variable, call in emitted
            if variable not in conversions and op_name(call) != "edgec.pack"
        ]

    # Values

    def value(self, expression: Any) -> PackedValue:
        """Return what an expression of the old function became."""
        if isinstance(expression, relax.Var) and expression in self.values:
            return self.values[expression]
        return PackedValue(expression, shape_of(expression) or (), False, 1)

    def float_value(self, expression: Any) -> PackedValue:
        """Return what an expression became, dequantized."""
        return self.as_floats(self.value(expression))

    def as_floats(self, value: PackedValue) -> PackedValue:
        """Return the value dequantized, in the same layout."""
        qparams = value.qparams
        if qparams is None:
            return value
        key = (value.expression, qparams)
        if key not in self._floats:
            scale = constant(np.array([qparams.scale], np.float32))
            step = EpilogueStep("multiply", "number")
            workload = self.elementwise_workload(value, step, value.shape, None)
            place = self.place(value)
            made = self.emit("edgec.elementwise", [value.expression, scale], workload, place)
            self._floats[key] = replace(value, expression=made, qparams=None)
        # All who read the values as floats share it: nothing may be fused into it.
        return replace(self._floats[key], uses=2)

    # Layouts

    def place(self, value: PackedValue) -> Shape:
        """Return the shape in memory."""
        return blocked_shape(value.shape, self.lanes) if value.blocked else value.shape

    def plain_expression(self, expression: Any) -> Any:
        """Return an expression's floats, or quantized values, in the layout that the graph states.

        Quantized values are of the type that the target multiplies until somebody reads them as
        the graph states them.
        """
        made = self.plain(self.float_value(expression)).expression
        if not isinstance(expression.ty, relax.TensorType):
            return made
        stated = dtype_of(expression)
        if stated == dtype_of(made) or {stated, dtype_of(made)} != {"int8", "uint8"}:
            return made
        shift = constant(np.array(-128 if stated == "int8" else 128, np.int16))
        wide = self.builder.emit(relax.op.astype(made, "int16"))
        return self.builder.emit(relax.op.astype(relax.op.add(wide, shift), stated))

    def plain(self, value: PackedValue) -> PackedValue:
        """Return the value in the layout that the graph states."""
        if not value.blocked:
            return value
        return replace(value, expression=self._convert(value, True), blocked=False)

    def blocked(self, value: PackedValue) -> PackedValue:
        """Return the value with its channels in blocks."""
        if value.blocked:
            return value
        array = value_of(value.expression)
        if array is not None:
            packed = constant(block_array(array, self.lanes))
            return replace(value, expression=packed, blocked=True)
        return replace(value, expression=self._convert(value, False), blocked=True)

    def _convert(self, value: PackedValue, unpack: bool) -> relax.Var:
        key = (value.expression, unpack)
        if key not in self._converted:
            n, channels, h, w = image(value.shape)
            dtype = dtype_of(value.expression)
            workload = PackWorkload(n, channels, h * w, unpack, dtype)
            shape = value.shape if unpack else blocked_shape(value.shape, self.lanes)
            whole = channels % self.lanes == 0
            if h * w == 1 and whole:
                # One pixel: the same bytes.
                self._converted[key] = self.builder.emit(
                    relax.op.reshape(value.expression, list(shape))
                )
            else:
                self._converted[key] = self.emit(
                    "edgec.pack", [value.expression], workload, shape, dtype
                )
        return self._converted[key]

    def quantized_rows(self, value: Any, workload: QuantizeRowsWorkload) -> relax.Var:
        """Return the rows of a plain value quantized by groups; all who read them share them.

        What normalizes them quantizes them too; who reads the floats as well has them computed.
        """
        key = (value, workload)
        if key not in self._rows:
            operator, arguments = "edgec.quantize_rows", [value]
            described: Any = workload
            norm = self.made.get(value)
            if norm is not None and op_name(norm) == "edgec.rows":
                rows = from_text(SoftmaxNormWorkload, str(norm.attrs["workload"]))
                if can_quantize(rows):
                    operator, arguments = "edgec.quantize_normalized", list(norm.args)
                    described = QuantizeNormalizedWorkload(rows, workload.group)
            shape = (workload.rows, workload.layout.bytes)
            self._rows[key] = self.emit(operator, arguments, described, shape, "int8")
        return self._rows[key]

    # Calls

    def emit(
        self,
        operator: str,
        arguments: Sequence[Any],
        workload: Any,
        shape: Sequence[int],
        dtype: str = "float32",
    ) -> relax.Var:
        """Emit the call of a kernel.

        Args:
            operator: name of its template.
            arguments: the arguments of the call.
            workload: the workload of the template.
            shape: the shape of the result in memory.
            dtype: the dtype of the result.
        """
        call = kernel_call(operator, arguments, to_text(workload), shape, dtype, self.label)
        variable = self.builder.emit(call)
        self.made[variable] = call
        return variable

    def emit_blocked(
        self,
        operator: str,
        arguments: Sequence[Any],
        workload: Any,
        shape: Shape,
        qparams: QParams | None = None,
    ) -> PackedValue:
        """Emit a kernel that gives an image in blocks; see `emit`.

        `qparams` says what the result stands for if it is quantized.
        """
        dtype = qparams.dtype if qparams else "float32"
        place = blocked_shape(shape, self.lanes)
        variable = self.emit(operator, arguments, workload, place, dtype)
        return PackedValue(variable, shape, True, 1, qparams)

    def elementwise_workload(
        self,
        data: PackedValue,
        step: EpilogueStep,
        shape: Shape,
        planes: tuple[int, int, int] | None,
    ) -> ElementwiseWorkload:
        """Return the workload of one elementwise step.

        Args:
            data: what the step is applied to.
            step: the step.
            shape: the shape of the result.
            planes: outer, channels and inner extents of a channel operand of a plain value.
        """
        qparams = data.qparams
        kind = (qparams.dtype, qparams.zero_point) if qparams else ("float32", 0)
        if data.blocked:
            n, channels, h, w = image(shape)
            blocks = math.ceil(channels / self.lanes)
            inner = h * w * self.lanes
            return ElementwiseWorkload(n, blocks, inner, self.lanes, (step,), *kind)
        return ElementwiseWorkload(*(planes or (1, 1, math.prod(shape))), 1, (step,), *kind)
