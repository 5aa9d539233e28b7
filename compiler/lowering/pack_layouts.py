"""Replace operators by kernel templates, in the layouts that they want.

Images become channel-blocked, [N, C, H, W] -> [N, ceil(C / c), H, W, c] with c lanes of the
target's vectors, from the first convolution on; matrices stay row-major. A value is converted
only where an operator needs the other layout. Elementwise operators go into the epilogue of the
kernel that computes their input, where nothing else reads that; what no template covers stays as
it is, on plain layouts, for the generic path.

In a quantized graph codes stay codes between kernels, where the target multiplies codes:
`dequantize` only says what the codes stand for, and `quantize` is the last step of the epilogue
of the kernel before it. What takes floats only makes them of the codes first.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import IRModule, relax

from edgec.compiler.ir.blocked_layout import (
    Shape,
    block_array,
    blocked_shape,
    by_channel,
    image,
)
from edgec.compiler.ir.relax_helpers import (
    constant,
    count_uses,
    dtype_of,
    op_name,
    scalar_of,
    shape_of,
    substitute,
    value_of,
)
from edgec.compiler.kernels.conv.direct import ConvTransposeWorkload
from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.kernels.elementwise import ElementwiseWorkload
from edgec.compiler.kernels.emit.epilogue import ON_CODES, Step, output_dtype
from edgec.compiler.kernels.isa import Dot
from edgec.compiler.kernels.layout import (
    ChannelMapWorkload,
    GlobalPoolWorkload,
    PackWorkload,
)
from edgec.compiler.kernels.matmul.dense import MatmulWorkload
from edgec.compiler.kernels.matmul.weight_only import MIDDLE, Format, StoredMatmulWorkload
from edgec.compiler.kernels.pool import Mode, PoolWorkload
from edgec.compiler.kernels.reduce_minmax import ExtremeWorkload, shares_of
from edgec.compiler.kernels.resize import ResizeWorkload
from edgec.compiler.kernels.softmax_norm import Operation, RowWorkload
from edgec.compiler.kernels.table_lookup import LookupWorkload, table_of
from edgec.compiler.kernels.templates import TEMPLATES, from_text, to_text
from edgec.compiler.lowering.kernel_operators import kernel_call
from edgec.compiler.lowering.pack_codes import (
    Codes,
    Convolution,
    KernelOnCodes,
    Rounded,
    codes_of,
    combined,
    conv_on_codes,
    conv_transpose_on_codes,
    function_of_codes,
    matmul_on_codes,
    quantizer,
    requantized,
    rounded_constant,
    with_bias,
)
from edgec.compiler.numerics.affine import log2_values, unpack_nibbles
from edgec.compiler.numerics.resize_table import resize_table
from edgec.compiler.passes.base import Pass

# A network's input of so few channels is read as it is: blocking it would be mostly padding.
PLAIN_INPUT_CHANNELS = 4

# Kernels whose epilogue begins with an int32.
_INTEGER_SUMS = (
    "edgec.integer_conv",
    "edgec.integer_conv_transpose",
    "edgec.integer_depthwise",
    "edgec.integer_matmul",
)


@dataclass(frozen=True)
class PackLayouts(Pass):
    """Rewrite `main` to kernel templates.

    Attributes:
        lanes: float32 values in a vector of the target.
        dot: how the target multiplies codes; None: it does not.
        names: of values by those of variables, for people; others are called as their variables.
    """

    lanes: int
    dot: Dot | None = field(default=None, repr=False)
    names: Mapping[str, str] = field(default_factory=dict, repr=False)

    def apply(self, module: IRModule) -> IRModule:
        """Rewrite the one dataflow block of `main`."""
        return _Packer(module, self.lanes, self.dot, self.names).run()


@dataclass(frozen=True)
class _Value:
    """What a variable of the old function became.

    Attributes:
        expression: variable or constant of the new function.
        shape: the logical shape, [N, C, H, W] for an image.
        blocked: whether the expression has the channel-blocked layout.
        uses: how often the old variable is read.
        codes: what the expression stands for, if it is codes and the old variable floats.
        rounded: the codes of a constant.
    """

    expression: Any
    shape: Shape
    blocked: bool
    uses: int
    codes: Codes | None = None
    rounded: Rounded | None = None


class _Packer:
    def __init__(
        self, module: IRModule, lanes: int, dot: Dot | None, names: Mapping[str, str]
    ) -> None:
        self.module = module
        self.c = lanes
        self.dot = dot
        self.names = names
        self.label = ""
        others = {v: f for v, f in module.functions_items() if not isinstance(f, relax.Function)}
        self.builder = relax.BlockBuilder(IRModule(others))
        self.values: dict[relax.Var, _Value] = {}
        self.old: dict[relax.Var, Any] = {}
        self.made: dict[relax.Var, relax.Call] = {}
        self.converted: dict[tuple[relax.Var, bool], relax.Var] = {}
        self.floats: dict[tuple[relax.Var, Codes], _Value] = {}
        self.largest: dict[relax.Var, int] = {}
        self.handlers: dict[str, Callable[[relax.Call], _Value | None]] = {
            "relax.concat": self._concat,
            "relax.image.resize2d": self._resize,
            "relax.matmul": self._matmul,
            "relax.max": self._largest,
            "relax.mean": self._global_pool,
            "relax.min": self._extreme,
            "relax.nn.avg_pool1d": self._pool,
            "relax.nn.avg_pool2d": self._pool,
            "relax.nn.conv1d": self._conv,
            "relax.nn.conv1d_transpose": self._conv_transpose,
            "relax.nn.conv2d": self._conv,
            "relax.nn.conv2d_transpose": self._conv_transpose,
            "relax.nn.layer_norm": self._layer_norm,
            "relax.nn.log_softmax": self._softmax,
            "relax.nn.max_pool1d": self._pool,
            "relax.nn.max_pool2d": self._pool,
            "relax.nn.softmax": self._softmax,
            "relax.reshape": self._reshape,
            "relax.strided_slice": self._slice,
            "relax.sum": self._global_pool,
            "relax.take": self._take,
        }

    def run(self) -> IRModule:
        """The module with a new `main`."""
        function = self.module["main"]
        uses = count_uses(function)
        for parameter in function.params:
            shape = shape_of(parameter)
            if shape is not None:
                self.values[parameter] = _Value(parameter, shape, False, uses[parameter])
        (block,) = function.body.blocks
        labels = _labels(block.bindings, self.names)
        with self.builder.function("main", list(function.params)):
            with self.builder.dataflow():
                for binding in block.bindings:
                    self.old[binding.var] = binding.value
                    self.label = labels[binding.var]
                    self.values[binding.var] = self._visit(binding, uses[binding.var])
                result = self._result(function.body.body)
                bound = self.builder.emit_output(result)
            self.builder.emit_func_output(bound)
        return self.builder.get()

    def _result(self, expression: Any) -> Any:
        """What `main` returns, in plain layouts."""
        bound = self.old.get(expression, expression)
        if isinstance(bound, relax.Tuple):
            return relax.Tuple([self._plain_expression(field) for field in bound.fields])
        return self._plain_expression(expression)

    def _visit(self, binding: Any, uses: int) -> _Value:
        call = binding.value
        if isinstance(call, relax.Var):
            known = self.values.get(call)
            if known is not None:
                # The alias is no reader of its own, its readers are.
                return replace(known, uses=known.uses - 1 + uses)
        name = op_name(call)
        shape = shape_of(binding.var)
        if shape is not None and value_of(call) is not None:
            return _Value(call, shape, False, uses)
        if shape is not None and isinstance(call, relax.TupleGetItem):
            value = self._split_field(call, shape)
            if value is not None:
                return replace(value, uses=uses)
        if shape is not None and self.dot is not None and name in _ROUNDING:
            value = self._quantize(call) if "de" not in name else self._dequantize(call)
            if value is not None:
                return replace(value, uses=uses)
        if shape is not None and name and all(_is_float32(x) for x in (binding.var, *call.args)):
            handler = self.handlers.get(name)
            value = handler(call) if handler else self._elementwise(call)
            if value is not None:
                return replace(value, uses=uses)
        return self._generic(binding, uses)

    def _generic(self, binding: Any, uses: int) -> _Value:
        """Leave an operator as it is, on plain layouts."""
        substitution = {}
        call = binding.value

        def visit(expression: Any) -> None:
            if isinstance(expression, relax.Var) and expression in self.values:
                substitution[expression] = self._plain_expression(expression)

        relax.analysis.post_order_visit(call, visit)
        moved = substitute(call, substitution)
        variable = self.builder.emit(moved, binding.var.name)
        shape = shape_of(variable)
        if shape is None:
            self.values[binding.var] = _Value(variable, (), False, uses)
        return _Value(variable, shape or (), False, uses)

    # Layouts

    def _value(self, expression: Any) -> _Value:
        if isinstance(expression, relax.Var) and expression in self.values:
            return self.values[expression]
        return _Value(expression, shape_of(expression) or (), False, 1)

    def _float_value(self, expression: Any) -> _Value:
        return self._as_floats(self._value(expression))

    def _as_floats(self, value: _Value) -> _Value:
        """The value, no codes, in the same layout."""
        codes = value.codes
        if codes is None:
            return value
        key = (value.expression, codes)
        if key not in self.floats:
            scale = constant(np.array([codes.scale], np.float32))
            step = Step("multiply", "number")
            workload = self._elementwise_workload(value, step, value.shape, None)
            place = self._place(value)
            made = self._emit("edgec.elementwise", [value.expression, scale], workload, place)
            self.floats[key] = replace(value, expression=made, codes=None)
        # Shared by all who read the codes as floats: nobody's epilogue may go into it.
        return replace(self.floats[key], uses=2)

    def _place(self, value: _Value) -> Shape:
        """Shape in memory."""
        return blocked_shape(value.shape, self.c) if value.blocked else value.shape

    def _plain_expression(self, expression: Any) -> Any:
        return self._plain(self._float_value(expression)).expression

    def _plain(self, value: _Value) -> _Value:
        """The value in the layout that the graph states."""
        if not value.blocked:
            return value
        return replace(value, expression=self._convert(value, True), blocked=False)

    def _blocked(self, value: _Value) -> _Value:
        """The value with its channels in blocks."""
        if value.blocked:
            return value
        array = value_of(value.expression)
        if array is not None:
            packed = constant(block_array(array, self.c))
            return replace(value, expression=packed, blocked=True)
        return replace(value, expression=self._convert(value, False), blocked=True)

    def _convert(self, value: _Value, unpack: bool) -> relax.Var:
        key = (value.expression, unpack)
        if key not in self.converted:
            n, channels, h, w = image(value.shape)
            dtype = dtype_of(value.expression)
            workload = PackWorkload(n, channels, h * w, unpack, dtype)
            shape = value.shape if unpack else blocked_shape(value.shape, self.c)
            whole = channels % self.c == 0
            if h * w == 1 and whole:
                # One pixel: the same bytes.
                self.converted[key] = self.builder.emit(
                    relax.op.reshape(value.expression, list(shape))
                )
            else:
                self.converted[key] = self._emit(
                    "edgec.pack", [value.expression], workload, shape, dtype
                )
        return self.converted[key]

    def _emit(
        self,
        operator: str,
        arguments: Sequence[Any],
        workload: Any,
        shape: Sequence[int],
        dtype: str = "float32",
    ) -> relax.Var:
        call = kernel_call(operator, arguments, to_text(workload), shape, dtype, self.label)
        variable = self.builder.emit(call)
        self.made[variable] = call
        return variable

    def _emit_blocked(
        self,
        operator: str,
        arguments: Sequence[Any],
        workload: Any,
        shape: Shape,
        codes: Codes | None = None,
    ) -> _Value:
        """Args as of `_emit`; codes: what the result is, if it is codes."""
        dtype = codes.dtype if codes else "float32"
        variable = self._emit(operator, arguments, workload, blocked_shape(shape, self.c), dtype)
        return _Value(variable, shape, True, 1, codes)

    # Codes

    def _quantize(self, call: relax.Call) -> _Value | None:
        """The last step of the epilogue of the kernel before it."""
        codes, shape = codes_of(call, str(call.attrs.out_dtype)), shape_of(call)
        if shape is None or not _is_float32(call.args[0]):
            return None
        if codes is None:
            return self._quantize_dynamically(call, shape)
        codes = self._for_target(codes)
        data = self._value(call.args[0])
        if data.codes == codes:
            self.largest[data.expression] = data.codes.largest
            return replace(data, codes=None)
        looked_up = self._looked_up(data, codes)
        if looked_up is not None:
            return looked_up
        data, bounds = self._without_clip(data)
        numbers = quantizer(codes, bounds)
        below, above = numbers[2:] == quantizer(codes, None)[2:]
        ends = bool(below), bool(above)
        fixed = self._in_fixed_point(data, codes, numbers, ends)
        fixed = fixed or self._combined(data, codes, numbers, ends)
        if fixed is not None:
            return fixed
        open_ends = float(below), float(above and self._is_scaled_sum(data, numbers[0]))
        step = Step(f"quantize_{codes.dtype}", "quantizer", open_ends)
        result = self._apply(data, step, [constant(numbers)], shape)
        self.largest[result.expression] = int(np.rint(numbers[3])) + codes.zero_point
        return result

    def _in_fixed_point(
        self, data: _Value, codes: Codes, numbers: NDArray[np.float32], ends: tuple[bool, bool]
    ) -> _Value | None:
        """Codes of sums, by one step of the kernel that computes the sums; None if it cannot.

        Args:
            data: the floats.
            codes: what is wanted.
            numbers: as `quantizer` gives them.
            ends: whether the smallest and the largest code are those of the type.
        """
        call = self.made.get(data.expression)
        if call is None or not self._absorbs(data):
            return None
        operator = op_name(call)
        workload = from_text(TEMPLATES[operator].workload, str(call.attrs["workload"]))
        found = requantized(operator, workload, call.args, codes, numbers, ends)
        if found is None:
            return None
        step, arguments = found
        shorter = _with_chain(workload, _EPILOGUES[operator], (step,))
        place = [int(extent) for extent in call.attrs["shape"]]
        variable = self._emit(operator, arguments, shorter, place, codes.dtype)
        self.largest[variable] = int(np.rint(numbers[3])) + codes.zero_point
        return replace(data, expression=variable)

    def _combined(
        self, data: _Value, codes: Codes, numbers: NDArray[np.float32], ends: tuple[bool, bool]
    ) -> _Value | None:
        """The sum of codes, or codes times a gate, in 16 bits; args as of `_in_fixed_point`."""
        call = self.made.get(data.expression)
        if call is None or op_name(call) != "edgec.elementwise" or not self._absorbs(data):
            return None
        workload = from_text(ElementwiseWorkload, str(call.attrs["workload"]))
        gate = None
        if len(call.args) > 2 and call.args[2] in self.made:
            gate = self.made[call.args[2]]
        found = combined(workload, call.args, gate, codes, numbers, ends)
        if found is None or not data.blocked:
            return None
        place = self._place(data)
        variable = self._emit(
            "edgec.integer_elementwise", found.operands, found.workload, place, codes.dtype
        )
        self.largest[variable] = int(np.rint(numbers[3])) + codes.zero_point
        return replace(data, expression=variable)

    def _is_scaled_sum(self, data: _Value, inverse: np.float32) -> bool:
        """Whether a value is an int32 times what makes it less than 2**31 codes."""
        call = self.made.get(data.expression)
        if call is None or op_name(call) not in _INTEGER_SUMS or not self._absorbs(data):
            return False
        workload = from_text(TEMPLATES[op_name(call)].workload, str(call.attrs["workload"]))
        scale = value_of(call.args[-1])
        alone = workload.epilogue == (Step("multiply", "channel"),)
        return alone and scale is not None and float(np.abs(scale * inverse).max()) < 0.5

    def _looked_up(self, data: _Value, codes: Codes) -> _Value | None:
        """A function of codes, by a table; None if it is none."""
        found = (data.codes, ()) if data.codes is not None else self._function_of_codes(data)
        if found is None or found[0].dtype != codes.dtype:
            return None
        before, steps = found
        table = table_of(
            codes.dtype, before.scale, before.zero_point, steps, quantizer(codes, None)
        )
        source = data.expression if data.codes is not None else self.made[data.expression].args[0]
        place = self._place(data)
        workload = LookupWorkload(math.prod(place))
        arguments = [source, constant(table)]
        variable = self._emit("edgec.lookup", arguments, workload, place, codes.dtype)
        self.largest[variable] = int(table.view(codes.dtype).max())
        return replace(data, expression=variable, codes=None)

    def _function_of_codes(self, data: _Value) -> tuple[Codes, tuple[Step, ...]] | None:
        call = self.made.get(data.expression)
        if call is None or op_name(call) != "edgec.elementwise" or not self._absorbs(data):
            return None
        workload = from_text(ElementwiseWorkload, str(call.attrs["workload"]))
        scale = value_of(call.args[1]) if len(call.args) > 1 else None
        return function_of_codes(workload, scale)

    def _quantize_dynamically(self, call: relax.Call, shape: Shape) -> _Value | None:
        """By a scale and zero point that the graph computes."""
        scale, zero = call.args[1:]
        dtype = str(call.attrs.out_dtype)
        if shape_of(scale) != () or shape_of(zero) != () or dtype not in ("uint8", "int8"):
            return None
        emit, op = self.builder.emit, relax.op

        def number(value: float) -> Any:
            return constant(np.array([value], np.float32))

        whole = emit(op.astype(self._plain_expression(zero), "float32"))
        limits = np.iinfo(dtype)
        numbers = [
            op.divide(number(1), self._plain_expression(scale)),
            op.add(number(0), whole),
            op.subtract(number(limits.min), whole),
            op.subtract(number(limits.max), whole),
        ]
        together = emit(op.concat([emit(value) for value in numbers], axis=0))
        data = self._float_value(call.args[0])
        return self._apply(data, Step(f"quantize_{dtype}", "quantizer"), [together], shape)

    def _without_clip(self, data: _Value) -> tuple[_Value, tuple[float, float] | None]:
        """The value without a clip or ReLU at its end, and the bounds of that."""
        call = self.made.get(data.expression)
        if call is None or not self._absorbs(data):
            return data, None
        operator = op_name(call)
        workload = from_text(TEMPLATES[operator].workload, str(call.attrs["workload"]))
        name = _EPILOGUES[operator]
        chain = _chain(workload, name)
        last = chain[-1] if len(chain) > 1 else None
        if last is None or last.op not in ("relu", "clip"):
            return data, None
        low, high = last.parameters if last.op == "clip" else (0.0, math.inf)
        shorter = _with_chain(workload, name, chain[:-1])
        place = [int(extent) for extent in call.attrs["shape"]]
        return replace(data, expression=self._emit(operator, call.args, shorter, place)), (
            low,
            high,
        )

    def _dequantize(self, call: relax.Call) -> _Value | None:
        """No code, only what the codes stand for."""
        rounded, shape = rounded_constant(call), shape_of(call)
        assert shape is not None
        if rounded is not None:
            if rounded.codes.dtype != np.int32:
                # Weights are looked at by who reads them.
                return None
            axis = int(call.attrs.axis) % len(shape)
            along = [-1 if i == axis else 1 for i in range(len(shape))]
            floats = (rounded.codes * rounded.scales.reshape(along)).astype(np.float32)
            return _Value(constant(floats), shape, False, 1, rounded=rounded)
        codes = codes_of(call, dtype_of(call.args[0]))
        data = self._value(call.args[0])
        if codes is None or data.codes is not None:
            return None
        if dtype_of(data.expression) != codes.dtype:
            codes = self._for_target(codes)
        largest = self.largest.get(data.expression, codes.largest)
        return replace(data, codes=replace(codes, largest=max(largest, codes.zero_point)))

    def _for_target(self, codes: Codes) -> Codes:
        """The same codes in the type that the target multiplies."""
        assert self.dot is not None
        return codes.as_type(self.dot.data)

    def _add_integers(self, data: _Value, other: _Value) -> _Value | None:
        """A bias in units of the products, to the sums of codes before they become floats."""
        call, bias = self.made.get(data.expression), other.rounded
        if call is None or bias is None or not self._absorbs(data):
            return None
        operator = op_name(call)
        workload = from_text(TEMPLATES[operator].workload, str(call.attrs["workload"]))
        size = data.shape[-1 if operator == "edgec.integer_matmul" else 1]
        arguments = with_bias(operator, workload, call.args, size, bias)
        if arguments is None:
            return None
        place = [int(extent) for extent in call.attrs["shape"]]
        return replace(data, expression=self._emit(operator, arguments, workload, place))

    # Convolution and pooling

    def _conv(self, call: relax.Call) -> _Value | None:
        data, found = self._convolution(call, "OI")
        if found is None:
            return None
        integers = found.format == "int8" and not found.group
        if data.codes is not None and integers and self.dot is not None:
            kernel = conv_on_codes(found, data.codes, self.dot, self.c)
            if kernel is not None:
                return self._image_of_codes(data, kernel, found.shape)
        data = self._as_floats(data)
        n, channels, h, w, _, out_h, out_w = found.extents
        if found.is_depthwise or (found.group and found.groups > 1):
            # They are few.
            found = _with_floats(found)
        if found.is_depthwise:
            pooled = PoolWorkload(
                "depthwise", n, channels, h, w, out_h, out_w, *found.window, found.dilation
            )
            arguments = [self._blocked(data).expression, constant(found.weight)]
            return self._emit_blocked("edgec.pool", arguments, pooled, found.shape)
        plain = not data.blocked and channels <= PLAIN_INPUT_CHANNELS and found.groups == 1
        workload = ConvWorkload(
            *found.extents,
            *found.window,
            found.dilation,
            found.groups,
            plain_input=plain,
            weight=found.format,
        )
        source = data if plain else self._blocked(data)
        arguments = [source.expression, constant(found.weight)]
        if found.group:
            assert found.scales is not None
            columns = np.arange(found.weight[:1].size).reshape(found.weight[:1].shape)
            workload = replace(workload, scale_groups=found.scales.shape[1])
            arguments += [
                constant(found.scales),
                constant((columns // found.group).astype(np.int32)),
            ]
        elif found.scales is not None:
            workload = replace(workload, epilogue=(Step("multiply", "channel"),))
            arguments.append(constant(by_channel(found.scales, self.c)))
        return self._emit_blocked("edgec.conv", arguments, workload, found.shape)

    def _image_of_codes(self, data: _Value, kernel: KernelOnCodes, shape: Shape) -> _Value:
        arguments = [self._blocked(data).expression, *map(constant, kernel.operands)]
        return self._emit_blocked(kernel.operator, arguments, kernel.workload, shape)

    def _conv_transpose(self, call: relax.Call) -> _Value | None:
        data, found = self._convolution(call, "IO")
        if found is None or found.groups != 1 or found.dilation != (1, 1):
            return None
        kernel, stride, _ = found.window
        # Every output position must be reached by some weight.
        if kernel[0] < stride[0] or kernel[1] < stride[1]:
            return None
        integers = found.format == "int8" and not found.group
        if data.codes is not None and integers and self.dot is not None:
            on_codes = conv_transpose_on_codes(found, data.codes, self.dot, self.c)
            if on_codes is not None:
                return self._image_of_codes(data, on_codes, found.shape)
        data, found = self._as_floats(data), _with_floats(found, axis=1)
        workload = ConvTransposeWorkload(*found.extents, *found.window)
        arguments = [self._blocked(data).expression, constant(found.weight)]
        return self._emit_blocked("edgec.conv_transpose", arguments, workload, found.shape)

    def _convolution(self, call: relax.Call, channels: str) -> tuple[_Value, Convolution | None]:
        """The data, and a convolution by constant weights, [*channels, …]."""
        data, weight, shape = self._value(call.args[0]), value_of(call.args[1]), shape_of(call)
        rounded = self._stored_weight(call.args[1], channels.index("O"))
        kind = "float32"
        if rounded is not None:
            weight, kind = rounded.codes, "int8"
        half, group = self._stored_half(call.args[1]), self._stored_groups(call.args[1])
        if half is not None:
            weight, kind = half
        if group is not None:
            weight, kind = group[0], "int8"
        layouts = (str(call.attrs.data_layout), str(call.attrs.kernel_layout))
        known = layouts in (("NCHW", f"{channels}HW"), ("NCW", f"{channels}W"))
        if weight is None or shape is None or not known:
            return data, None
        n, in_channels, h, w = image(data.shape)
        kernel = _pair(weight.shape[2:])
        return data, Convolution(
            weight.reshape(*weight.shape[:2], *kernel),
            rounded.scales if rounded is not None else group[1] if group is not None else None,
            shape,
            (n, in_channels, h, w, *image(shape)[1:]),
            (kernel, _pair(call.attrs.strides), _leading(call.attrs.padding)),
            _pair(call.attrs.dilation),
            int(call.attrs.groups),
            kind,
            group[2] if group is not None else 0,
        )

    def _stored_groups(
        self, expression: Any
    ) -> tuple[NDArray[np.int8], NDArray[np.float32], int] | None:
        """4-bit weights, whose first axis is that of the rows, as int8: less their zero points.

        Returns:
            Codes in the shape of the weights, scales [rows, groups], columns of a group.
        """
        call = self.old.get(expression)
        if call is None or not self._is_grouped(call) or call.attrs["rows_last"]:
            return None
        packed, *parameters = [value_of(argument) for argument in call.args]
        if packed is None:
            return None
        shape, group = [int(extent) for extent in call.attrs["shape"]], int(call.attrs["group"])
        codes, scales = unpack_nibbles(packed)[:, : math.prod(shape[1:])], parameters[0]
        assert scales is not None
        if call.attrs["format"] == "log2":
            # The least of them is 2**-6.
            whole = (log2_values(codes) * 64).astype(np.int8)
            return whole.reshape(shape), (scales / 64).astype(np.float32), group
        zeros = parameters[1]
        assert zeros is not None
        along = np.repeat(zeros, group, axis=1)[:, : codes.shape[1]]
        less = codes.astype(np.int8) - along.astype(np.int8)
        return less.reshape(shape), scales, group

    @staticmethod
    def _is_grouped(call: relax.Call) -> bool:
        """Whether it decodes weights with a scale for each group."""
        return op_name(call) == "edgec.decode_weight" and call.attrs["format"] in _GROUPED

    def _stored_half(self, expression: Any) -> tuple[NDArray[np.uint16], Format] | None:
        """Bits and format of constant weights that are stored as half floats."""
        call = self.old.get(expression)
        if call is None or op_name(call) != "edgec.decode_weight":
            return None
        codes = value_of(call.args[0])
        if codes is None or call.attrs["format"] != "float":
            return None
        return codes.view(np.uint16), "float16" if codes.dtype == np.float16 else "bfloat16"

    def _stored_weight(self, expression: Any, axis: int) -> Rounded | None:
        """Constant int8 weights behind a dequantize, whose outputs are along an axis."""
        call = self.old.get(expression)
        if call is None or op_name(call) != "relax.dequantize":
            return None
        rounded = rounded_constant(call, axis)
        return rounded if rounded is not None and rounded.codes.dtype == np.int8 else None

    def _pool(self, call: relax.Call) -> _Value | None:
        data, shape = self._value(call.args[0]), shape_of(call)
        if shape is None or str(call.attrs.layout) not in ("NCHW", "NCW"):
            return None
        n, channels, h, w = image(data.shape)
        _, _, out_h, out_w = image(shape)
        kernel, stride = _pair(call.attrs.pool_size), _pair(call.attrs.strides)
        dilation, padding = _pair(call.attrs.dilation), _leading(call.attrs.padding)
        mode: Mode = "max"
        if "avg" in op_name(call):
            mode = "average_padded" if call.attrs.count_include_pad else "average"
            reach_h = (out_h - 1) * stride[0] + (kernel[0] - 1) * dilation[0] - padding[0]
            reach_w = (out_w - 1) * stride[1] + (kernel[1] - 1) * dilation[1] - padding[1]
            before = [int(p) for p in call.attrs.padding]
            after = before[len(before) // 2 :]
            below, right = (after[0], after[1]) if len(after) == 2 else (0, after[0])
            beyond = reach_h >= h + below or reach_w >= w + right
            if mode == "average_padded" and beyond:
                # A window that ceil mode lets reach past the padding divides by less.
                return None
        workload = PoolWorkload(
            mode,
            n,
            channels,
            h,
            w,
            out_h,
            out_w,
            kernel,
            stride,
            padding,
            dilation,
        )
        source, codes = self._blocked(data).expression, data.codes
        if codes is None:
            return self._emit_blocked("edgec.pool", [source], workload, shape)
        workload = replace(workload, data=codes.dtype, zero_point=codes.zero_point)
        if mode == "max":
            return self._emit_blocked("edgec.pool", [source], workload, shape, codes)
        workload = replace(workload, epilogue=(Step("multiply", "number"),))
        scale = constant(np.array([codes.scale], np.float32))
        return self._emit_blocked("edgec.pool", [source, scale], workload, shape)

    def _global_pool(self, call: relax.Call) -> _Value | None:
        data, shape = self._value(call.args[0]), shape_of(call)
        if shape is None or call.attrs.axis is None or len(data.shape) not in (3, 4):
            return None
        rank = len(data.shape)
        axes = sorted(int(axis) % rank for axis in call.attrs.axis)
        # On a plain tensor packing first would cost more than the reduction.
        if axes != list(range(2, rank)) or not call.attrs.keepdims or not data.blocked:
            return None
        n, channels, h, w = image(data.shape)
        mode = op_name(call).removeprefix("relax.")
        workload = GlobalPoolWorkload(mode, n, channels, h * w)
        if data.codes is None:
            return self._emit_blocked("edgec.global_pool", [data.expression], workload, shape)
        workload = replace(workload, data=data.codes.dtype, zero_point=data.codes.zero_point)
        pooled = self._emit_blocked("edgec.global_pool", [data.expression], workload, shape)
        scale = constant(np.array([data.codes.scale], np.float32))
        return self._apply(pooled, Step("multiply", "number"), [scale], shape)

    def _largest(self, call: relax.Call) -> _Value | None:
        return self._extreme(call) or self._global_pool(call)

    def _extreme(self, call: relax.Call) -> _Value | None:
        """The smallest or largest of all values."""
        data = self._float_value(call.args[0])
        size = math.prod(data.shape)
        axes = call.attrs.axis
        every = axes is None or len(axes) == len(data.shape)
        if not every or shape_of(call) != () or size == 0:
            return None
        # Channels that only fill a block are no values.
        whole = data.blocked and data.shape[1] % self.c == 0
        source = (data if whole else self._plain(data)).expression
        mode = op_name(call).removeprefix("relax.")
        while True:
            shares = shares_of(size, self.c)
            workload = ExtremeWorkload(mode, size, shares)  # type: ignore[arg-type]
            source = self._emit("edgec.extreme", [source], workload, (shares,) * (shares > 1))
            if shares == 1:
                return _Value(source, (), False, 1)
            size = shares

    def _resize(self, call: relax.Call) -> _Value | None:
        data, shape = self._value(call.args[0]), shape_of(call)
        attributes = call.attrs
        method = str(attributes.method)
        if shape is None or str(attributes.layout) != "NCHW" or not data.blocked:
            return None
        if any(float(edge) != 0 for edge in attributes.roi):
            return None
        tables = [
            resize_table(
                before,
                after,
                method,
                str(attributes.coordinate_transformation_mode),
                str(attributes.rounding_method),
            )
            for before, after in zip(data.shape[2:], shape[2:], strict=True)
        ]
        if any(table is None for table in tables):
            return None
        (rows, row_weights), (columns, column_weights) = (t for t in tables if t is not None)
        n, channels, h, w = data.shape
        taps = (rows.shape[1], columns.shape[1])
        if taps != (1, 1):
            data = self._as_floats(data)
        codes = data.codes
        dtype = codes.dtype if codes else "float32"
        workload = ResizeWorkload(n, channels, h, w, shape[2], shape[3], taps, dtype)
        arguments = [
            self._blocked(data).expression,
            *(constant(table) for table in (rows, row_weights, columns, column_weights)),
        ]
        return self._emit_blocked("edgec.resize", arguments, workload, shape, codes)

    # Matrices and rows

    def _matmul(self, call: relax.Call) -> _Value | None:
        integers = self._integer_matmul(call)
        if integers is not None:
            return integers
        stored = self._stored_matmul(call)
        if stored is not None:
            return stored
        left, right = (self._plain(self._float_value(argument)) for argument in call.args)
        shape = shape_of(call)
        if shape is None or len(left.shape) < 2 or len(right.shape) < 2:
            return None
        k, n = right.shape[-2:]
        matrix = value_of(right.expression)
        if len(right.shape) == 2 or (matrix is not None and math.prod(right.shape[:-2]) == 1):
            rows = math.prod(left.shape[:-1])
            workload = MatmulWorkload(1, rows, n, k, packed=matrix is not None)
            if matrix is not None:
                right = replace(right, expression=constant(matrix.reshape(k, n)))
        elif left.shape[:-2] == right.shape[:-2]:
            batch = math.prod(left.shape[:-2])
            workload = MatmulWorkload(batch, left.shape[-2], n, k, packed=False)
        else:
            return None
        arguments = [left.expression, right.expression]
        return _Value(self._emit("edgec.matmul", arguments, workload, shape), shape, False, 1)

    def _integer_matmul(self, call: relax.Call) -> _Value | None:
        """A product of codes with constant weights; None if no kernel does it exactly."""
        left, shape = self._value(call.args[0]), shape_of(call)
        stored = self._stored_weight(call.args[1], -1)
        codes, dynamic = left.codes, self._dynamic_codes(call.args[0])
        if dynamic is not None:
            left = dynamic[0]
        if shape is None or self.dot is None or stored is None or (codes or dynamic) is None:
            return None
        matrix = stored.codes
        if matrix.ndim != 2 or len(left.shape) < 2 or stored.scales.size != matrix.shape[1]:
            return None
        rows = math.prod(left.shape[:-1])
        if dynamic is not None:
            known = Codes.of(dtype_of(left.expression), 1.0, 0)
            kernel = matmul_on_codes(rows, stored, known, self.dot)
        else:
            assert codes is not None
            kernel = matmul_on_codes(rows, stored, codes, self.dot)
        if kernel is None:
            return None
        operands = [*map(constant, kernel.operands)]
        if dynamic is not None:
            sums = matrix.astype(np.int64).sum(axis=0)
            operands[1:] = self._scaled(dynamic, sums, stored.scales)
        arguments = [self._plain(left).expression, *operands]
        variable = self._emit(kernel.operator, arguments, kernel.workload, shape)
        return _Value(variable, shape, False, 1)

    def _dynamic_codes(self, expression: Any) -> tuple[_Value, Any, Any] | None:
        """Codes behind a dequantize whose scale and zero point the graph computes, and these."""
        call = self.old.get(expression)
        if call is None or op_name(call) != "relax.dequantize":
            return None
        if any(shape_of(x) != () or value_of(x) is not None for x in call.args[1:]):
            return None
        scale, zero = (self._plain_expression(argument) for argument in call.args[1:])
        return self._value(call.args[0]), scale, zero

    def _scaled(
        self, dynamic: tuple[_Value, Any, Any], sums: NDArray[Any], scales: NDArray[np.float32]
    ) -> list[Any]:
        """Bias and scale of each channel, computed in each run, padded to whole vectors.

        Args:
            dynamic: as `_dynamic_codes` gives it.
            sums: of the weights of each channel.
            scales: of the weights.
        """
        _, scale, zero = dynamic
        op, emit = relax.op, self.builder.emit
        pad = (0, -sums.size % self.c)
        code = emit(op.astype(zero, "int32"))
        bias = op.multiply(code, constant(np.pad(-sums, pad).astype(np.int32)))
        return [emit(bias), emit(op.multiply(scale, constant(np.pad(scales, pad))))]

    def _stored_matmul(self, call: relax.Call) -> _Value | None:
        """A product with weights that stay in the form in which they are stored."""
        left, shape = self._float_value(call.args[0]), shape_of(call)
        weight = shape_of(call.args[1])
        if shape is None or weight is None or len(left.shape) < 2 or len(weight) < 2:
            return None
        k, n = weight[-2:]
        if math.prod(weight[:-2]) != 1:
            return None
        product = MatmulWorkload(1, math.prod(left.shape[:-1]), n, k, packed=True)
        decode = self.old.get(call.args[1])
        rounded, half = self._stored_weight(call.args[1], -1), self._stored_half(call.args[1])
        if rounded is not None and rounded.scales.size == n:
            scaled = replace(product, epilogue=(Step("multiply", "channel"),))
            workload = StoredMatmulWorkload(scaled, "int8")
            operands = [rounded.codes.reshape(k, n), rounded.scales]
        elif half is not None:
            workload = StoredMatmulWorkload(product, half[1])
            operands = [half[0].reshape(k, n)]
        elif decode is not None and self._is_grouped(decode):
            arrays = [value_of(argument) for argument in decode.args]
            codes, *parameters = [array for array in arrays if array is not None]
            kind: Format = "log2" if decode.attrs["format"] == "log2" else "int4"
            group = int(decode.attrs["group"])
            if kind == "int4" and np.all(parameters[1] == MIDDLE):
                del parameters[1]
            workload = StoredMatmulWorkload(product, kind, group, len(parameters) == 2)
            operands = [unpack_nibbles(codes)[:, :k].T, *(array.T for array in parameters)]
        else:
            return None
        arguments = [self._plain(left).expression, *map(constant, operands)]
        variable = self._emit("edgec.stored_matmul", arguments, workload, shape)
        return _Value(variable, shape, False, 1)

    def _softmax(self, call: relax.Call) -> _Value | None:
        data = self._float_value(call.args[0])
        rank = len(data.shape)
        if rank == 0:
            return None
        axis = int(call.attrs.axis) % rank
        logarithm = op_name(call) == "relax.nn.log_softmax"
        operation: Operation = "log_softmax" if logarithm else "softmax"
        workload = RowWorkload(
            operation,
            math.prod(data.shape) // data.shape[axis],
            data.shape[axis],
            inner=math.prod(data.shape[axis + 1 :]),
        )
        source = self._plain(data).expression
        variable = self._emit("edgec.rows", [source], workload, data.shape)
        return _Value(variable, data.shape, False, 1)

    def _layer_norm(self, call: relax.Call) -> _Value | None:
        data = self._float_value(call.args[0])
        rank = len(data.shape)
        axes = sorted(int(axis) % rank for axis in call.attrs.axes)
        parameters = [value_of(argument) for argument in call.args[1:]]
        if axes != list(range(rank - len(axes), rank)) or any(p is None for p in parameters):
            return None
        columns = math.prod(data.shape[axes[0] :])
        rows = math.prod(data.shape) // columns
        workload = RowWorkload("layer_norm", rows, columns, float(call.attrs.epsilon))
        arguments = [self._plain(data).expression, *call.args[1:]]
        variable = self._emit("edgec.rows", arguments, workload, data.shape)
        return _Value(variable, data.shape, False, 1)

    # Moves

    def _reshape(self, call: relax.Call) -> _Value | None:
        shape = shape_of(call)
        shuffled = self._channel_shuffle(call)
        if shuffled is not None or shape is None:
            return shuffled
        data = self._plain(self._value(call.args[0]))
        variable = self.builder.emit(relax.op.reshape(data.expression, list(shape)))
        return _Value(variable, shape, False, 1, data.codes)

    def _channel_shuffle(self, call: relax.Call) -> _Value | None:
        """Reshape [N, g, C / g, H, W], transpose, reshape back: a permutation of channels."""
        transposed = self.old.get(call.args[0])
        if transposed is None or op_name(transposed) != "relax.permute_dims":
            return None
        split = self.old.get(transposed.args[0])
        if split is None or op_name(split) != "relax.reshape":
            return None
        data, shape, grouped = self._value(split.args[0]), shape_of(call), shape_of(split)
        axes = [int(axis) for axis in transposed.attrs.axes or ()]
        if shape is None or grouped is None or data.shape != shape or not data.blocked:
            return None
        if len(shape) != 4 or len(grouped) != 5 or axes != [0, 2, 1, 3, 4]:
            return None
        if (grouped[0], *grouped[3:]) != (shape[0], *shape[2:]):
            return None
        groups, each = grouped[1], grouped[2]
        picks = tuple((0, group * each + i) for i in range(each) for group in range(groups))
        return self._channel_map([data], picks, shape)

    def _channel_map(
        self, inputs: Sequence[_Value], picks: tuple[tuple[int, int], ...], shape: Shape
    ) -> _Value:
        n, _, h, w = image(shape)
        channels = tuple(image(value.shape)[1] for value in inputs)
        codes = inputs[0].codes
        if any(value.codes != codes for value in inputs):
            inputs, codes = [self._as_floats(value) for value in inputs], None
        elif codes is not None:
            largest = max(value.codes.largest for value in inputs if value.codes is not None)
            codes = replace(codes, largest=largest)
        dtype = codes.dtype if codes else "float32"
        workload = ChannelMapWorkload(n, h * w, channels, picks, dtype)
        arguments = [self._blocked(value).expression for value in inputs]
        return self._emit_blocked("edgec.channel_map", arguments, workload, shape, codes)

    def _concat(self, call: relax.Call) -> _Value | None:
        shape = shape_of(call)
        fields = self.old.get(call.args[0], call.args[0])
        if shape is None or not isinstance(fields, relax.Tuple) or len(shape) not in (3, 4):
            return None
        inputs = [self._value(field) for field in fields.fields]
        if int(call.attrs.axis) % len(shape) != 1 or not any(value.blocked for value in inputs):
            return None
        picks = tuple(
            (number, channel)
            for number, value in enumerate(inputs)
            for channel in range(image(value.shape)[1])
        )
        return self._channel_map(inputs, picks, shape)

    def _slice(self, call: relax.Call) -> _Value | None:
        data, shape = self._value(call.args[0]), shape_of(call)
        if shape is None or not data.blocked:
            return None
        axes, begin, _, *steps = (_numbers(argument) for argument in call.args[1:])
        if axes is None or begin is None or len(axes) != 1 or axes[0] % len(shape) != 1:
            return None
        step = steps[0][0] if steps and steps[0] else 1
        channels = data.shape[1]
        first = begin[0] + channels if begin[0] < 0 else begin[0]
        # A start beyond either end is taken for the end.
        first = max(0, min(first, channels - 1 if step < 0 else channels))
        picks = tuple((0, first + step * index) for index in range(shape[1]))
        if any(not 0 <= channel < data.shape[1] for _, channel in picks):
            return None
        return self._channel_map([data], picks, shape)

    def _take(self, call: relax.Call) -> _Value | None:
        data, shape, channels = self._value(call.args[0]), shape_of(call), value_of(call.args[1])
        if shape is None or channels is None or channels.ndim != 1 or not data.blocked:
            return None
        if call.attrs.axis is None or int(call.attrs.axis) % len(data.shape) != 1:
            return None
        picks = tuple((0, int(channel) % data.shape[1]) for channel in channels)
        return self._channel_map([data], picks, shape)

    def _split_field(self, item: Any, shape: Shape) -> _Value | None:
        """One result of a split along channels."""
        call = self.old.get(item.tuple_value)
        if call is None or op_name(call) != "relax.split":
            return None
        data = self._value(call.args[0])
        if not data.blocked or int(call.attrs.axis) % len(data.shape) != 1:
            return None
        kinds = [field.shape.values for field in item.tuple_value.ty.fields]
        first = sum(int(extents[1]) for extents in kinds[: item.index])
        picks = tuple((0, first + index) for index in range(shape[1]))
        return self._channel_map([data], picks, shape)

    # Elementwise

    def _elementwise(self, call: relax.Call) -> _Value | None:
        name = op_name(call)
        shape = shape_of(call)
        if shape is None:
            return None
        if name in _UNARY:
            data = self._value(call.args[0])
            return self._apply(data, _UNARY[name](call), [], shape)
        if name not in _BINARY:
            return None
        forward, backward = _BINARY[name]
        left, right = (self._value(argument) for argument in call.args)
        # The value that goes on through the chain: the one of the result's shape, of two the one
        # whose kernel can take the step into its epilogue.
        candidates = [(left, right, forward), (right, left, backward)]
        candidates = [c for c in candidates if c[0].shape == shape and not _is_constant(c[0])]
        candidates.sort(key=lambda c: not self._absorbs(c[0]))
        for data, other, step in candidates:
            value = self._binary(data, other, step, shape)
            if value is not None:
                return value
        return None

    def _binary(self, data: _Value, other: _Value, op: str, shape: Shape) -> _Value | None:
        if op == "add" and other.rounded is not None:
            summed = self._add_integers(data, other)
            if summed is not None:
                return summed
        number = scalar_of(other.expression)
        if number is not None:
            return self._apply(data, _with_number(op, number), [], shape)
        if other.shape == shape:
            if data.blocked or other.blocked:
                data, other = self._blocked(data), self._blocked(other)
            if other.codes is not None and op in ON_CODES:
                operands = [other.expression, other.codes.numbers]
                return self._apply(data, Step(op, other.codes.dtype), operands, shape)
            operand = self._as_floats(other).expression
            return self._apply(data, Step(op, "element"), [operand], shape)
        other = self._as_floats(other)
        return self._per_channel(data, other, op, shape)

    def _per_channel(self, data: _Value, other: _Value, op: str, shape: Shape) -> _Value | None:
        """An operand that broadcasts: along channels of an image, or columns of a matrix."""
        padded = (1,) * (len(shape) - len(other.shape)) + other.shape
        varying = [axis for axis, extent in enumerate(padded) if extent != 1]
        if data.blocked:
            if any(axis > 1 for axis in varying):
                return None
            array = value_of(other.expression)
            if array is not None and 0 not in varying:
                operand = constant(by_channel(array, self.c))
                return self._apply(data, Step(op, "channel"), [operand], shape)
            if padded[:2] != shape[:2] or len(padded) < 3:
                return None
            reshaped = self._reshaped(other, padded)
            operand = self._blocked(reshaped).expression
            return self._apply(data, Step(op, "image_channel"), [operand], shape)
        first, past = (varying[0], varying[-1] + 1) if varying else (0, 0)
        if padded[first:past] != shape[first:past]:
            return None
        outer, channels = math.prod(shape[:first]), math.prod(shape[first:past])
        planes = (outer, channels, math.prod(shape[past:]))
        operand = self._plain(other).expression
        return self._apply(data, Step(op, "channel"), [operand], shape, planes)

    def _reshaped(self, value: _Value, shape: Shape) -> _Value:
        if value.shape == shape:
            return value
        plain = self._plain(value).expression
        return _Value(self.builder.emit(relax.op.reshape(plain, list(shape))), shape, False, 1)

    def _absorbs(self, data: _Value) -> bool:
        """Whether the kernel that computes a value can take one more step."""
        call = self.made.get(data.expression)
        free = data.uses == 1 and data.codes is None
        return call is not None and free and op_name(call) in _EPILOGUES

    def _apply(
        self,
        data: _Value,
        step: Step,
        operands: Sequence[Any],
        shape: Shape,
        planes: tuple[int, int, int] | None = None,
    ) -> _Value:
        """One step on a value: in the epilogue of its kernel, or as a kernel of its own.

        Args:
            data: the value.
            step: what to do to it.
            operands: of the step.
            shape: of the result.
            planes: outer, channels and inner extents of a channel operand of a plain value.
        """
        call = self.made.get(data.expression)
        if call is not None and self._absorbs(data):
            operator = op_name(call)
            field = _EPILOGUES[operator]
            workload = from_text(TEMPLATES[operator].workload, str(call.attrs["workload"]))
            # In the other kernels the channels of a plain value are its last dimension.
            fits = planes is None or planes[1:] == (shape[-1], 1)
            if operator == "edgec.elementwise":
                alone = self._elementwise_workload(data, step, shape, planes)
                merged = _merged(workload, alone)
                fits, workload = merged is not None, merged or workload
            if fits:
                longer = _with_chain(workload, field, (*_chain(workload, field), step))
                arguments = [*call.args, *operands]
                place = [int(extent) for extent in call.attrs["shape"]]
                variable = self._emit(operator, arguments, longer, place, output_dtype([step]))
                return _Value(variable, shape, data.blocked, 1)
        workload = self._elementwise_workload(data, step, shape, planes)
        if data.codes is not None:
            workload = replace(workload, steps=(Step("multiply", "number"), step))
            operands = [constant(np.array([data.codes.scale], np.float32)), *operands]
        variable = self._emit(
            "edgec.elementwise",
            [data.expression, *operands],
            workload,
            self._place(replace(data, shape=shape)),
            output_dtype([step]),
        )
        return _Value(variable, shape, data.blocked, 1)

    def _elementwise_workload(
        self, data: _Value, step: Step, shape: Shape, planes: tuple[int, int, int] | None
    ) -> ElementwiseWorkload:
        codes = data.codes
        kind = (codes.dtype, codes.zero_point) if codes else ("float32", 0)
        if data.blocked:
            n, channels, h, w = image(shape)
            blocks = math.ceil(channels / self.c)
            return ElementwiseWorkload(n, blocks, h * w * self.c, self.c, (step,), *kind)
        return ElementwiseWorkload(*(planes or (1, 1, math.prod(shape))), 1, (step,), *kind)


def _labels(bindings: Sequence[Any], names: Mapping[str, str]) -> dict[relax.Var, str]:
    """What people call a value: by its name, that of its alias, or of the floats behind codes."""
    aliases = {b.value: names.get(b.var.name) for b in bindings if isinstance(b.value, relax.Var)}
    labels: dict[relax.Var, str] = {}
    for binding in bindings:
        variable, value = binding.var, binding.value
        label = names.get(variable.name) or aliases.get(variable)
        if label is None and op_name(value) in _ROUNDING:
            label = labels.get(value.args[0])
        labels[variable] = label or variable.name
    return labels


def _chain(workload: Any, name: str) -> tuple[Step, ...]:
    """The steps that a workload keeps in a field, or in the workload in that field."""
    kept = getattr(workload, name)
    return kept if isinstance(kept, tuple) else kept.epilogue


def _with_chain(workload: Any, name: str, chain: tuple[Step, ...]) -> Any:
    """The workload with other steps."""
    kept = getattr(workload, name)
    longer = chain if isinstance(kept, tuple) else replace(kept, epilogue=chain)
    return replace(workload, **{name: longer})


def _merged(chain: ElementwiseWorkload, alone: ElementwiseWorkload) -> ElementwiseWorkload | None:
    """The chain with planes that suit one more step too, None if there are none.

    Steps without a channel operand suit any.
    """

    def has_channels(workload: ElementwiseWorkload) -> bool:
        return any(step.operand in ("channel", "image_channel") for step in workload.steps)

    alone = replace(alone, data=chain.data, zero_point=chain.zero_point)
    if not has_channels(alone) or replace(alone, steps=()) == replace(chain, steps=()):
        return chain
    return None if has_channels(chain) else replace(alone, steps=chain.steps)


# Where each kernel keeps the steps that it can take.
_EPILOGUES = {
    "edgec.conv": "epilogue",
    "edgec.conv_transpose": "epilogue",
    "edgec.elementwise": "steps",
    "edgec.integer_conv": "conv",
    "edgec.integer_conv_transpose": "conv",
    "edgec.integer_depthwise": "conv",
    "edgec.integer_matmul": "matmul",
    "edgec.matmul": "epilogue",
    "edgec.pool": "epilogue",
    "edgec.stored_matmul": "matmul",
}


def _simple(op: str) -> Callable[[relax.Call], Step]:
    return lambda _call: Step(op)


_UNARY: dict[str, Callable[[relax.Call], Step]] = {
    "edgec.hard_sigmoid": lambda call: Step(
        "hard_sigmoid", None, (float(call.attrs["alpha"]), float(call.attrs["beta"]))
    ),
    "edgec.hard_swish": _simple("hard_swish"),
    "relax.clip": lambda call: Step(
        "clip", None, (float(call.args[1].value), float(call.args[2].value))
    ),
    "relax.erf": _simple("erf"),
    "relax.exp": _simple("exp"),
    "relax.nn.gelu": _simple("gelu"),
    "relax.nn.gelu_tanh": _simple("gelu_tanh"),
    "relax.nn.leakyrelu": lambda call: Step("leaky_relu", None, (float(call.attrs.alpha),)),
    "relax.nn.relu": _simple("relu"),
    "relax.nn.silu": _simple("silu"),
    "relax.sigmoid": _simple("sigmoid"),
    "relax.sqrt": _simple("sqrt"),
    "relax.tanh": _simple("tanh"),
}

# Step when the chain's value is on the left, and when it is on the right.
_BINARY: dict[str, tuple[str, str]] = {
    "relax.add": ("add", "add"),
    "relax.divide": ("divide", "divide_by"),
    "relax.maximum": ("maximum", "maximum"),
    "relax.minimum": ("minimum", "minimum"),
    "relax.multiply": ("multiply", "multiply"),
    "relax.subtract": ("subtract", "subtract_from"),
}


def _with_number(op: str, number: float) -> Step:
    """A binary step whose operand is a constant number."""
    return (
        Step("add_number", None, (-number,))
        if op == "subtract"
        else Step(f"{op}_number", None, (number,))
    )


_ROUNDING = ("relax.dequantize", "relax.quantize")

# Formats of `edgec.decode_weight` with a scale for each group; codebooks have no kernel.
_GROUPED = ("int4", "log2")


def _with_floats(found: Convolution, axis: int = 0) -> Convolution:
    """With floats in place of stored weights; `axis`: output channels of the weight."""
    weight = found.weight
    if found.format in ("float16", "bfloat16"):
        weight = weight.view(np.dtype(found.format)).astype(np.float32)
    if found.scales is not None and found.group:
        each = np.repeat(found.scales, found.group, axis=1)[:, : found.weight[0].size]
        weight = (weight * each.reshape(weight.shape)).astype(np.float32)
    elif found.scales is not None:
        along = [-1 if i == axis else 1 for i in range(4)]
        weight = (weight * found.scales.reshape(along)).astype(np.float32)
    return replace(found, weight=weight, scales=None, format="float32", group=0)


def _is_constant(value: _Value) -> bool:
    return value_of(value.expression) is not None


def _are_indices(expression: Any) -> bool:
    array = value_of(expression)
    return array is not None and np.issubdtype(array.dtype, np.integer)


def _is_float32(expression: Any) -> bool:
    """Whether an argument is no obstacle: a float32 tensor, constant indices, or no tensor."""
    kind = getattr(expression, "ty", None)
    if isinstance(kind, relax.TupleType):
        tensors = [field for field in kind.fields if isinstance(field, relax.TensorType)]
        return all(str(field.dtype.dtype) == "float32" for field in tensors)
    if not isinstance(kind, relax.TensorType) or _are_indices(expression):
        return True
    return dtype_of(expression) == "float32" and shape_of(expression) is not None


def _pair(values: Any) -> tuple[int, int]:
    """Height and width of an attribute that may have one value."""
    numbers = [int(value) for value in values]
    return (1, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])


def _leading(padding: Any) -> tuple[int, int]:
    """Padding above and to the left, of an attribute in Relax order (top, left, bottom, right)."""
    numbers = [int(value) for value in padding]
    return (0, numbers[0]) if len(numbers) <= 2 else (numbers[0], numbers[1])


def _numbers(argument: Any) -> list[int] | None:
    """Integers of a tuple argument, None if one is not known."""
    fields = argument.fields if isinstance(argument, relax.Tuple) else []
    numbers = [getattr(field, "value", None) for field in fields]
    known = [int(number) for number in numbers if number is not None]
    return known if len(known) == len(numbers) else None
