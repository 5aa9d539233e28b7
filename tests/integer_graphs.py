"""Small quantized graphs, and what they compute in NumPy integers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import IRModule, relax

from edgec.compiler.backend import pack
from edgec.compiler.build import build_program
from edgec.compiler.lower import lower
from edgec.compiler.passes.base import constant
from edgec.compiler.program import Program
from edgec.compiler.runtime import open_session
from edgec.compiler.schedule import Decide, default_decide, schedule_program
from edgec.compiler.signature import Signature, TensorSpec
from edgec.targets import Target

op = relax.op
Array = NDArray[Any]


@dataclass(frozen=True)
class Code:
    """Scale and zero point of a tensor's codes."""

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

    def codes(self, values: Array) -> Array:
        """What a kernel makes of float32 values, ties to even."""
        limits = np.iinfo(self.dtype)
        scaled = values * (np.float32(1) / np.float32(self.scale))
        whole = np.rint(scaled) + np.float32(self.zero_point)
        return np.clip(whole, limits.min, limits.max).astype(self.dtype)


def channel_constant(builder: relax.BlockBuilder, codes: Array, scales: Array, axis: int) -> Any:
    """A dequantize of constant codes with a scale for each channel."""
    zeros = np.zeros(scales.shape, codes.dtype)
    return builder.emit(
        op.dequantize(
            constant(codes), constant(scales), constant(zeros), axis=axis, out_dtype="float32"
        )
    )


@dataclass(frozen=True)
class ConvCase:
    """A convolution of codes.

    Attributes:
        shape: of the data.
        weight: shape of the weights.
        groups: of channels.
        attributes: strides, padding (top, left, bottom, right), dilation.
        data: codes of the data.
        result: codes of the result.
        largest: largest magnitude of a weight code.
        extreme: whether all data and weights are at the ends of their ranges.
        relu: whether one follows.
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

    def signed(self) -> "ConvCase":
        """The same with int8 data, for targets that multiply those."""
        shift = {
            name: replace(code, dtype="int8", zero_point=code.zero_point - 128)
            for name, code in (("data", self.data), ("result", self.result))
        }
        return replace(self, **shift)  # type: ignore[arg-type]

    def arrays(self) -> tuple[Array, Array, Array, Array]:
        """Data, weights, scales of weights, bias."""
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
        outputs = self.weight[0]
        depth = float(np.prod(self.weight[1:]))
        scales = (0.01 / np.sqrt(depth) * (1 + random.random(outputs))).astype(np.float32)
        bias = random.integers(-3000, 3000, outputs, np.int32)
        return data, weight, scales, bias

    def module(self) -> IRModule:
        """Codes in, codes out."""
        _, weight, scales, bias = self.arrays()
        parameter = relax.Var("x", relax.TensorType(list(self.shape), self.data.dtype))
        builder = relax.BlockBuilder()
        with builder.function("main", [parameter]):
            with builder.dataflow():
                value = self.data.dequantize(builder, parameter)
                floats = channel_constant(builder, weight, scales, 0)
                names = {"strides": 1, "padding": 0, "dilation": 1, **self.attributes}
                value = builder.emit(
                    op.nn.conv2d(value, floats, groups=self.groups, out_dtype="float32", **names)
                )
                units = (scales * np.float32(self.data.scale)).astype(np.float32)
                value = builder.emit(
                    op.add(value, channel_constant(builder, bias.reshape(1, -1, 1, 1), units, 1))
                )
                if self.relu:
                    value = builder.emit(op.nn.relu(value))
                result = builder.emit_output(self.result.quantize(builder, value))
            builder.emit_func_output(result)
        return builder.get()

    def expected(self) -> Array:
        """In NumPy: exact integers, then float32 step by step."""
        data, weight, scales, bias = self.arrays()
        sums = convolve(data, weight, self.data.zero_point, self.groups, **self.attributes)
        sums += bias.reshape(1, -1, 1, 1)
        assert np.abs(sums).max() < 2**31
        units = (scales * np.float32(self.data.scale)).astype(np.float32)
        floats = sums.astype(np.float32) * units.reshape(1, -1, 1, 1)
        return self.result.codes(np.maximum(floats, 0) if self.relu else floats)


def convolve(
    data: Array,
    weight: Array,
    zero_point: int,
    groups: int = 1,
    strides: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
) -> Array:
    """Sums of a convolution of codes, int64; padding stands for zero."""
    (sh, sw), (dh, dw) = np.broadcast_to(strides, 2), np.broadcast_to(dilation, 2)
    top, left, bottom, right = np.broadcast_to(padding, 4)
    x = np.pad(data.astype(np.int64) - zero_point, ((0, 0), (0, 0), (top, bottom), (left, right)))
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


@dataclass(frozen=True)
class BuiltModule:
    """A compiled Relax module.

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
    """Everything after canonicalization."""
    function = module["main"]

    def spec(name: str, kind: Any) -> TensorSpec:
        return TensorSpec(name, tuple(int(v) for v in kind.shape.values), str(kind.dtype.dtype))

    inputs = tuple(spec(p.name, p.ty) for p in function.params)
    signature = Signature(inputs, (spec("y", function.ret_ty),))
    program = schedule_program(lower(pack(module, target), target), target, signature, decide)
    build_program(program, signature.outputs, target, library)
    return program, signature


def open_module(
    module: IRModule, target: Target, folder: Path, decide: Decide = default_decide
) -> BuiltModule:
    """A module ready to run here."""
    library = folder / "model.so"
    program, signature = build_module(module, target, library, decide)
    session = open_session(library, target, signature, "static", 2)
    return BuiltModule(program, session.run)
