"""Provide values of a module that is being packed."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.ir.blocked_layout import Shape
from edgec.compiler.ir.relax_helpers import constant, scalar_of, value_of
from edgec.compiler.kernels.emit.epilogue import QUANTIZED_DTYPES, OperandKind


@dataclass(frozen=True)
class QParams:
    """Quantization parameters say what quantized values stand for: (value - zero_point) * scale.

    Attributes:
        dtype: uint8 or int8.
        scale: the scale of a step.
        zero_point: the quantized value of 0.
        largest: quantized value that occurs, as far as is known.
    """

    dtype: OperandKind
    scale: np.float32
    zero_point: int
    largest: int = field(compare=False)

    @classmethod
    def of(cls, dtype: str, scale: Any, zero_point: Any) -> "QParams":
        """Return parameters of values of which any may occur."""
        largest = int(np.iinfo(dtype).max)
        return cls(dtype, np.float32(scale), int(zero_point), largest)  # type: ignore[arg-type]

    @property
    def numbers(self) -> Any:
        """Return scale and zero point as an operand."""
        return constant(np.array([self.scale, self.zero_point], np.float32))

    def as_type(self, dtype: str) -> "QParams":
        """Return what stands for the same in int8 or uint8."""
        shift = int(np.iinfo(dtype).min) - int(np.iinfo(self.dtype).min)
        zero_point, largest = self.zero_point + shift, self.largest + shift
        return QParams(dtype, self.scale, zero_point, largest)  # type: ignore[arg-type]


@dataclass(frozen=True)
class QuantizedConstant:
    """A quantized constant has a scale for each channel and zero point 0.

    Attributes:
        values: int8 or int32, of any shape.
        scales: float32 [channels].
    """

    values: NDArray[Any]
    scales: NDArray[np.float32]


@dataclass(frozen=True)
class PackedValue:
    """A packed value describes what a variable of the old function became.

    Attributes:
        expression: variable or constant of the new function.
        shape: the logical shape, [N, C, H, W] for an image.
        blocked: whether the expression has the channel-blocked layout.
        uses: how often the old variable is read.
        qparams: what the expression stands for, if it is quantized and the old variable floats.
        quantized: a constant before it was dequantized.
    """

    expression: Any
    shape: Shape
    blocked: bool
    uses: int
    qparams: QParams | None = None
    quantized: QuantizedConstant | None = None


def qparams_of(call: Any, dtype: str) -> QParams | None:
    """Return a constant scale and zero point for the whole tensor, None if they are not that."""
    scale, zero_point = (scalar_of(argument) for argument in call.args[1:])
    if scale is None or zero_point is None or dtype not in QUANTIZED_DTYPES:
        return None
    return QParams.of(dtype, scale, zero_point)


def quantized_constant(call: Any, axis: int | None = None) -> QuantizedConstant | None:
    """Return the constant that a dequantize with zero points 0 reads, None if it reads none.

    Args:
        call: the dequantize.
        axis: the axis that the scales must go along, any if None.
    """
    arrays = [value_of(argument) for argument in call.args]
    values, scales, zeros = arrays
    if values is None or scales is None or zeros is None or zeros.any():
        return None
    stated = int(call.attrs.axis) % values.ndim
    axis = stated if axis is None else axis % values.ndim
    if scales.size != 1 and (axis != stated or scales.size != values.shape[axis]):
        return None
    return QuantizedConstant(values, np.resize(scales, values.shape[axis]).astype(np.float32))


def pair(values: Any) -> tuple[int, int]:
    """Return height and width of an attribute that may have one value."""
    numbers = [int(value) for value in values]
    return (1, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])


def leading(padding: Any) -> tuple[int, int]:
    """Return the padding above and to the left, of an attribute as top, left, bottom, right."""
    numbers = [int(value) for value in padding]
    return (0, numbers[0]) if len(numbers) <= 2 else (numbers[0], numbers[1])
