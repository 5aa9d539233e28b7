"""Small quantized graphs, and what they compute in NumPy integers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import IRModule, relax

from edgec.compiler.backend import pack
from edgec.compiler.codegen.build import build_library
from edgec.compiler.ir.operators import hard_swish
from edgec.compiler.ir.program import Program
from edgec.compiler.ir.relax_helpers import constant
from edgec.compiler.ir.signature import Signature, TensorSpec
from edgec.compiler.kernels.emit.fixed_point import (
    logistic_requantization,
    requantization,
    swished_requantization,
)
from edgec.compiler.kernels.emit.requantize import LOGISTIC, Logistic, Requantization
from edgec.compiler.lowering.legalize import lower
from edgec.compiler.lowering.schedule import Decide, default_decide, schedule_program
from edgec.compiler.runtime.session import open_session
from edgec.targets import Target

op = relax.op
Array = NDArray[Any]


@dataclass(frozen=True)
class Code:
    """A code holds scale and zero point of a tensor's quantized values."""

    dtype: str
    scale: float
    zero_point: int

    def quantize(self, builder: relax.BlockBuilder, value: Any) -> Any:
        parameters = (
            constant(np.array(self.scale, np.float32)),
            constant(np.array(self.zero_point, self.dtype)),
        )
        return builder.emit(op.quantize(value, *parameters, axis=0, out_dtype=self.dtype))

    def dequantize(self, builder: relax.BlockBuilder, value: Any) -> Any:
        parameters = (
            constant(np.array(self.scale, np.float32)),
            constant(np.array(self.zero_point, self.dtype)),
        )
        return builder.emit(op.dequantize(value, *parameters, axis=0, out_dtype="float32"))

    def quantized(self, values: Array) -> Array:
        """Return what a kernel makes of float32 values, ties to even."""
        limits = np.iinfo(self.dtype)
        scaled = values * (np.float32(1) / np.float32(self.scale))
        whole = np.rint(scaled) + np.float32(self.zero_point)
        return np.clip(whole, limits.min, limits.max).astype(self.dtype)


def channel_constant(
    builder: relax.BlockBuilder, quantized: Array, scales: Array, axis: int
) -> Any:
    """Return a dequantize of constant quantized values with a scale for each channel."""
    zeros = np.zeros(scales.shape, quantized.dtype)
    return builder.emit(
        op.dequantize(
            constant(quantized), constant(scales), constant(zeros), axis=axis, out_dtype="float32"
        )
    )


@dataclass(frozen=True)
class ConvCase:
    """A conv case describes a convolution of quantized values, [N, C, H, W] or [N, C, W].

    Attributes:
        shape: the shape of the data.
        weight: shape of the weights; of a transposed convolution [inputs, outputs, …].
        groups: the groups of channels.
        attributes: strides, padding (top, left, bottom, right), dilation, output_padding.
        data: quantized values of the data.
        result: quantized values of the result.
        largest: largest magnitude of a weight code.
        extreme: whether all data and weights are at the ends of their ranges.
        relu: whether one follows.
        swish: whether a hard swish follows.
        silu: whether a SiLU follows.
        affine: what it is multiplied by then, and what is added.
        transposed: whether it is a transposed convolution.
    """

    shape: Sequence[int]
    weight: Sequence[int]
    groups: int = 1
    attributes: dict[str, Any] = field(default_factory=dict)
    data: Code = Code("uint8", 0.02, 128)
    result: Code = Code("uint8", 0.05, 100)
    largest: int = 63
    extreme: bool = False
    relu: bool = False
    swish: bool = False
    silu: bool = False
    affine: tuple[float, float] = (1.0, 0.0)
    transposed: bool = False

    def signed(self) -> "ConvCase":
        """Return the same with int8 data, for targets that multiply those."""
        shift = {
            name: replace(code, dtype="int8", zero_point=code.zero_point - 128)
            for name, code in (("data", self.data), ("result", self.result))
        }
        return replace(self, **shift)  # type: ignore[arg-type]

    @property
    def axis(self) -> int:
        """Return the axis of the output channels of the weights."""
        return int(self.transposed)

    def arrays(self) -> tuple[Array, Array, Array, Array]:
        """Return data, weights, scales of weights, bias."""
        random = np.random.default_rng(len(self.shape) + sum(self.weight))
        if self.extreme:
            top = np.iinfo(self.data.dtype).max
            data = np.full(self.shape, top, self.data.dtype)
            weight = np.full(self.weight, self.largest, np.int8)
            weight[1::2] = -self.largest
        else:
            limits = np.iinfo(self.data.dtype)
            data = random.integers(limits.min, limits.max + 1, self.shape, self.data.dtype)
            weight = random.integers(-self.largest, self.largest + 1, self.weight, np.int8)
        outputs = self.weight[self.axis]
        depth = float(np.prod(self.weight)) / outputs
        scales = (0.01 / np.sqrt(depth) * (1 + random.random(outputs))).astype(np.float32)
        bias = random.integers(-3000, 3000, outputs, np.int32)
        return data, weight, scales, bias

    def module(self) -> IRModule:
        """Return quantized values in, quantized values out."""
        _, weight, scales, bias = self.arrays()
        parameter = relax.Var("x", relax.TensorType(list(self.shape), self.data.dtype))
        builder = relax.BlockBuilder()
        with builder.function("main", [parameter]):
            with builder.dataflow():
                value = self.data.dequantize(builder, parameter)
                floats = channel_constant(builder, weight, scales, self.axis)
                names = {"strides": 1, "padding": 0, "dilation": 1, **self.attributes}
                value = builder.emit(
                    self._operator()(
                        value, floats, groups=self.groups, out_dtype="float32", **names
                    )
                )
                units = (scales * np.float32(self.data.scale)).astype(np.float32)
                value = builder.emit(
                    op.add(value, channel_constant(builder, bias.reshape(self.along), units, 1))
                )
                if self.relu:
                    value = builder.emit(op.nn.relu(value))
                if self.silu:
                    value = builder.emit(op.nn.silu(value))
                if self.swish:
                    value = builder.emit(hard_swish(value))
                if self.affine != (1.0, 0.0):
                    by, added = (constant(np.array(n, np.float32)) for n in self.affine)
                    value = builder.emit(op.add(builder.emit(op.multiply(value, by)), added))
                result = builder.emit_output(self.result.quantize(builder, value))
            builder.emit_func_output(result)
        return builder.get()

    @property
    def along(self) -> tuple[int, ...]:
        """Return shape of one value for each channel."""
        return (1, -1, *[1] * (len(self.shape) - 2))

    def _operator(self) -> Callable[..., Any]:
        lines = len(self.shape) == 4
        if self.transposed:
            return op.nn.conv2d_transpose if lines else op.nn.conv1d_transpose
        return op.nn.conv2d if lines else op.nn.conv1d

    def expected(self, floats: bool = False) -> Array:
        """Compute it in NumPy: exact integers, then 16 bits or float32.

        Args:
            floats: whether the kernel that is meant has only the last way.
        """
        sums, units = self.sums()
        plan = self.fixed_point()
        if plan is not None and not floats:
            return self._in_16_bits(sums, plan)
        return self.result.quantized(self._activated(sums.astype(np.float32) * np.float32(units)))

    def exact(self) -> Array:
        """Quantized values before they are rounded and clipped, less the zero point, in float64."""
        sums, units = self.sums()
        return self._activated(sums.astype(np.float64) * units) / np.float32(self.result.scale)

    def _activated(self, values: Array) -> Array:
        values = np.maximum(values, 0) if self.relu else values
        if self.silu:
            values = values / (1 + np.exp(-values))
        elif self.swish:
            values = values * np.clip(values + 3, 0, 6) / 6
        return values * np.float32(self.affine[0]) + np.float32(self.affine[1])

    def fixed_point(self) -> Requantization | None:
        """Return what the compiler plans, None where it uses floats."""
        _, weight, scales, bias = self.arrays()
        if self.transposed:
            return None
        flat = weight.reshape(len(weight), -1).astype(np.int64)
        limits = np.iinfo(self.data.dtype)
        ends = [int(end) - self.data.zero_point for end in (limits.min, limits.max)]
        products = np.stack([flat * end for end in ends])
        most, least = products.max(axis=0).sum(axis=1), products.min(axis=0).sum(axis=1)
        reach = np.maximum(np.abs(most + bias), np.abs(least + bias))
        units = (scales * np.float32(self.data.scale)).astype(np.float32)
        scale, (low, high) = float(np.float32(self.result.scale)), self._ends()
        low, high = low - self._offset, high - self._offset
        scale /= float(np.float32(self.affine[0]))
        if self.silu:
            return logistic_requantization(units, reach, scale, high)
        if self.swish:
            return swished_requantization(units, reach, scale, high)
        return requantization(units / scale, reach, int(np.ceil(max(high, -low))) + 1)

    @property
    def _offset(self) -> float:
        """Return what is added, in steps of the result."""
        return float(np.float32(self.affine[1])) / float(np.float32(self.result.scale))

    def _ends(self) -> tuple[int, int]:
        """Return the smallest and the largest quantized value less the zero point."""
        limits, zero = np.iinfo(self.result.dtype), self.result.zero_point
        return 0 if self.relu else int(limits.min) - zero, int(limits.max) - zero

    def _in_16_bits(self, sums: Array, plan: Requantization) -> Array:
        """Return the arithmetic that `requantize` states, on int64."""
        fraction, zero = plan.fraction, self.result.zero_point
        down = plan.shifts.astype(np.int64).reshape(self.along)
        half = np.where(down > 0, 1 << np.maximum(down - 1, 0), 0)
        words = ((sums + half) << np.maximum(-down, 0)) >> np.maximum(down, 0)
        by = plan.multipliers.astype(np.int64).reshape(self.along)
        value = (np.clip(words, -(2**15), 2**15 - 1) * by + 2**14) >> 15
        if isinstance(plan.gate, Logistic):
            value = _silu(value, plan.gate)
        elif plan.gate is not None:
            three, raised = plan.gate.three, plan.gate.raised
            gate = np.clip(value + three, 0, 2 * three) << raised
            value = (value * gate + 2**14) >> 15
        moved = round((zero + self._offset) * 2**fraction) - (zero << fraction)
        quantized = (value + moved + (1 << (fraction - 1))) >> fraction
        return (np.clip(quantized, *self._ends()) + zero).astype(self.result.dtype)

    def sums(self) -> tuple[Array, Array]:
        """Return whole sums, bias included, and what one of each channel is worth."""
        data, weight, scales, bias = self.arrays()
        centred = data.astype(np.int64) - self.data.zero_point
        if self.transposed:
            sums = spread(centred, weight, **self.attributes)
        else:
            sums = convolve(centred, weight, self.groups, **self.attributes)
        sums += bias.reshape(self.along)
        assert np.abs(sums).max() < 2**31
        units = (scales * np.float32(self.data.scale)).astype(np.float32)
        return sums, units.reshape(self.along).astype(np.float64)


def _silu(value: Array, gate: Logistic) -> Array:
    """Return what `requantize` states of a SiLU."""

    def times(left: Array, right: Array | int) -> Array:
        return (left * right + 2**14) >> 15

    size = np.abs(value)
    t = np.minimum(times(size, gate.factor) << gate.doublings, 2**15 - 1)
    total = np.full_like(t, LOGISTIC[-1])
    for coefficient in LOGISTIC[-2::-1]:
        total = times(total, 2**15 - 1 - 2 * t) + coefficient
    return np.maximum(value, 0) - times(size, total)


def convolve(
    data: Array,
    weight: Array,
    groups: int = 1,
    strides: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
) -> Array:
    """Return sums of a convolution of whole numbers, int64."""
    if data.ndim == 3:
        strides, dilation = (1, strides), (1, dilation)
        padding = (0, padding[0], 0, padding[1]) if padding else 0
        lines = convolve(data[:, :, None], weight[:, :, None], groups, strides, padding, dilation)
        return lines[:, :, 0]
    (sh, sw), (dh, dw) = np.broadcast_to(strides, 2), np.broadcast_to(dilation, 2)
    top, left, bottom, right = np.broadcast_to(padding, 4)
    x = np.pad(data, ((0, 0), (0, 0), (top, bottom), (left, right)))
    outputs, inputs, kh, kw = weight.shape
    oh = (x.shape[2] - (kh - 1) * dh - 1) // sh + 1
    ow = (x.shape[3] - (kw - 1) * dw - 1) // sw + 1
    w = weight.astype(np.int64).reshape(groups, outputs // groups, inputs, kh, kw)
    x = x.reshape(x.shape[0], groups, inputs, *x.shape[2:])
    total = np.zeros((x.shape[0], groups, outputs // groups, oh, ow), np.int64)
    for i in range(kh):
        for j in range(kw):
            part = x[..., i * dh : i * dh + (oh - 1) * sh + 1 : sh, :]
            part = part[..., j * dw : j * dw + (ow - 1) * sw + 1 : sw]
            total += np.einsum("ngchw,goc->ngohw", part, w[..., i, j])
    return total.reshape(x.shape[0], outputs, oh, ow)


def spread(
    data: Array, weight: Array, strides: Any = 1, padding: Any = 0, output_padding: Any = 0
) -> Array:
    """Return sums of a transposed convolution of whole numbers, int64: each input adds a window."""
    if data.ndim == 3:
        padding = (0, padding[0], 0, padding[1]) if padding else 0
        one = spread(
            data[:, :, None], weight[:, :, None], (1, strides), padding, (0, output_padding)
        )
        return one[:, :, 0]
    (sh, sw), (ah, aw) = np.broadcast_to(strides, 2), np.broadcast_to(output_padding, 2)
    top, left, bottom, right = np.broadcast_to(padding, 4)
    batch, _, h, w = data.shape
    _, outputs, kh, kw = weight.shape
    shape = (batch, outputs, (h - 1) * sh + kh + ah, (w - 1) * sw + kw + aw)
    total = np.zeros(shape, np.int64)
    for y in range(h):
        for x in range(w):
            window = np.einsum("nc,cohw->nohw", data[:, :, y, x], weight.astype(np.int64))
            total[:, :, y * sh : y * sh + kh, x * sw : x * sw + kw] += window
    return total[:, :, top : shape[2] - bottom, left : shape[3] - right]


@dataclass(frozen=True)
class BuiltModule:
    """A built module describes a compiled Relax module.

    Attributes:
        program: what was scheduled.
        run: from arrays by name to arrays by name.
    """

    program: Program
    run: Callable[[dict[str, Array]], dict[str, Array]]

    @property
    def templates(self) -> list[str]:
        return [step.template for step in self.program.steps]


def build_module(
    module: IRModule, target: Target, library: Path, decide: Decide = default_decide
) -> tuple[Program, Signature]:
    """Return everything after canonicalization."""
    function = module["main"]

    def spec(name: str, kind: Any) -> TensorSpec:
        return TensorSpec(name, tuple(int(v) for v in kind.shape.values), str(kind.dtype.dtype))

    inputs = tuple(spec(p.name, p.ty) for p in function.params)
    signature = Signature(inputs, (spec("y", function.ret_ty),))
    program = schedule_program(lower(pack(module, target), target), target, signature, decide)
    build_library([program], target, library)
    return program, signature


def open_module(
    module: IRModule, target: Target, folder: Path, decide: Decide = default_decide
) -> BuiltModule:
    """Return a module that is ready to run here."""
    library = folder / "model.so"
    program, signature = build_module(module, target, library, decide)
    session = open_session(library, target, signature, "static", 2)
    return BuiltModule(program, session.run)
