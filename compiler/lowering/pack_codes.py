"""Which kernels multiply codes, and their constant operands; for `pack_layouts`."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.ir.blocked_layout import Shape, by_channel
from edgec.compiler.ir.relax_helpers import constant, dtype_of, op_name, scalar_of, value_of
from edgec.compiler.kernels.conv.direct import ConvTransposeWorkload
from edgec.compiler.kernels.conv.integer import IntegerConvWorkload
from edgec.compiler.kernels.conv.integer_depthwise import IntegerDepthwiseWorkload
from edgec.compiler.kernels.conv.integer_transpose import (
    IntegerConvTransposeWorkload,
    phase_windows,
)
from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.kernels.elementwise import ElementwiseWorkload
from edgec.compiler.kernels.emit.epilogue import CODES, OperandKind, Step
from edgec.compiler.kernels.emit.requantize import requantization, scaled_operand, scaled_step
from edgec.compiler.kernels.integer_elementwise import (
    IntegerElementwiseWorkload,
    multiplier,
    numbers_of,
    sum_fraction,
)
from edgec.compiler.kernels.isa import Dot
from edgec.compiler.kernels.matmul.dense import MatmulWorkload
from edgec.compiler.kernels.matmul.integer import IntegerMatmulWorkload
from edgec.compiler.kernels.pool import PoolWorkload
from edgec.compiler.kernels.templates import from_text
from edgec.compiler.numerics.pair_sums import GROUP

# Whole numbers below this are exact in float32, and so are their sums in any order.
EXACT_FLOAT = 2**24

# Kernels whose operand 2 is a bias in units of the products: its type, and what stays below.
_TAKE_BIAS: dict[str, tuple[Any, int]] = {
    "edgec.integer_conv": (np.int32, 2**31),
    "edgec.integer_conv_transpose": (np.int32, 2**31),
    "edgec.integer_depthwise": (np.int32, 2**31),
    "edgec.integer_matmul": (np.int32, 2**31),
    "edgec.pool": (np.float32, EXACT_FLOAT),
}

# The axis of output channels of their weights, where it is not the first.
_CHANNELS = {"edgec.integer_conv_transpose": 1, "edgec.integer_matmul": 1}

# Kernels that make codes of their sums by one step.
_IN_FIXED_POINT = ("edgec.integer_conv", "edgec.integer_depthwise")

# Epilogues of sums of codes to which a bias in units of the products can be added.
_SCALED_SUMS = (
    (Step("multiply", "channel"),),
    (Step("add", "channel"), Step("multiply", "channel")),
)


@dataclass(frozen=True)
class Codes:
    """What codes stand for: (code - zero_point) * scale.

    Attributes:
        dtype: that holds them.
        scale: of a step.
        zero_point: the code of 0.
        largest: code that occurs, as far as is known.
    """

    dtype: OperandKind
    scale: np.float32
    zero_point: int
    largest: int = field(compare=False)

    @classmethod
    def of(cls, dtype: str, scale: Any, zero_point: Any) -> "Codes":
        """Codes of which any may occur."""
        largest = int(np.iinfo(dtype).max)
        return cls(dtype, np.float32(scale), int(zero_point), largest)  # type: ignore[arg-type]

    @property
    def numbers(self) -> Any:
        """As an operand: scale and zero point."""
        return constant(np.array([self.scale, self.zero_point], np.float32))

    def as_type(self, dtype: str) -> "Codes":
        """What stands for the same in int8 or uint8."""
        shift = int(np.iinfo(dtype).min) - int(np.iinfo(self.dtype).min)
        zero_point, largest = self.zero_point + shift, self.largest + shift
        return Codes(dtype, self.scale, zero_point, largest)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Rounded:
    """A constant as codes with a scale for each channel and zero point 0.

    Attributes:
        codes: int8 or int32, of any shape.
        scales: float32 [channels].
    """

    codes: NDArray[Any]
    scales: NDArray[np.float32]


@dataclass(frozen=True)
class Convolution:
    """An ordinary or transposed convolution; a signal is an image of one line.

    Attributes:
        weight: with both dimensions of the window.
        scales: of its codes, one for each output channel, or [out_channels, groups] for each
            `group` of the weights of one; None: it has none.
        shape: of the result, as the graph has it.
        extents: batch, channels, rows and columns of the input, then the output without batch.
        window: kernel, stride, and padding above and to the left.
        dilation: vertical and horizontal.
        groups: independent channel groups.
        format: in which the weight is stored, a key of `codes.STORED`.
        group: weights of one scale; 0: all of an output channel.
    """

    weight: NDArray[Any]
    scales: NDArray[np.float32] | None
    shape: Shape
    extents: tuple[int, int, int, int, int, int, int]
    window: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    groups: int
    format: str = "float32"
    group: int = 0

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is a group of its own."""
        return self.groups == self.extents[1] == self.extents[4] and self.groups > 1


@dataclass(frozen=True)
class KernelOnCodes:
    """A kernel that reads codes and gives floats.

    Attributes:
        operator: name of its template.
        workload: of the template.
        operands: constants after the first operand.
    """

    operator: str
    workload: Any
    operands: tuple[NDArray[Any], ...]


def codes_of(call: Any, dtype: str) -> Codes | None:
    """Codes of a constant scale and zero point for the whole tensor."""
    scale, zero_point = (scalar_of(argument) for argument in call.args[1:])
    if scale is None or zero_point is None or dtype not in CODES:
        return None
    return Codes.of(dtype, scale, zero_point)


def rounded_constant(call: Any, axis: int | None = None) -> Rounded | None:
    """The constant that a dequantize with zero points 0 makes floats of.

    Args:
        call: the dequantize.
        axis: that the scales must go along, any if None.
    """
    arrays = [value_of(argument) for argument in call.args]
    codes, scales, zeros = arrays
    if codes is None or scales is None or zeros is None or zeros.any():
        return None
    stated = int(call.attrs.axis) % codes.ndim
    axis = stated if axis is None else axis % codes.ndim
    if scales.size != 1 and (axis != stated or scales.size != codes.shape[axis]):
        return None
    return Rounded(codes, np.resize(scales, codes.shape[axis]).astype(np.float32))


def quantizer(codes: Codes, bounds: tuple[float, float] | None) -> NDArray[np.float32]:
    """The operand of a step that makes codes of floats.

    Args:
        codes: which.
        bounds: of a clip of the floats, done on the codes.
    """
    limits = np.iinfo(codes.dtype)
    inverse = np.float32(1) / codes.scale
    ends = np.array([limits.min, limits.max], np.float32) - codes.zero_point
    if bounds is not None:
        # Rounding keeps order: to clip before or after the product is the same.
        ends = np.clip(np.array(bounds, np.float32) * inverse, *ends)
    return np.array([inverse, codes.zero_point, *ends], np.float32)


def conv_on_codes(found: Convolution, codes: Codes, dot: Dot, lanes: int) -> KernelOnCodes | None:
    """A convolution of codes; None if no kernel does it exactly.

    Args:
        found: the convolution, its weights codes.
        codes: of the data.
        dot: how the target multiplies codes.
        lanes: float32 values in a vector.
    """
    assert found.scales is not None
    scale = by_channel((found.scales * codes.scale).astype(np.float32), lanes)
    sums = found.weight.astype(np.int64).sum(axis=(1, 2, 3))
    bias = by_channel(-codes.zero_point * sums, lanes)
    if found.is_depthwise:
        depthwise = _integer_depthwise(found, codes, dot, bias, scale, lanes)
        return depthwise or _depthwise_in_floats(found, codes, bias, scale)
    if codes.dtype != dot.data:
        return None
    found = _whole_groups(found)
    epilogue = (Step("multiply", "channel"),)
    conv = ConvWorkload(
        *found.extents, *found.window, found.dilation, found.groups, epilogue=epilogue
    )
    border = codes.zero_point if _is_padded(conv) else 0
    fits, together = _sums(dot, [found.weight], codes)
    workload = IntegerConvWorkload(conv, border, together, wide=not fits)
    operands = [found.weight, bias.astype(np.int32)]
    if workload.has_rows:
        operands.append(_row_sums(border, found.weight, lanes))
    return KernelOnCodes("edgec.integer_conv", workload, (*operands, scale))


def _sums(dot: Dot, windows: Sequence[NDArray[Any]], codes: Codes) -> tuple[bool, int]:
    """Whether int16 holds all sums of products, and of how many groups of channels together."""
    fits = [
        all(dot.fits(window, 1, count, codes.largest) for window in windows) for count in (1, 2)
    ]
    return fits[0], 2 if fits[1] and dot.wide is not None else 1


def _whole_groups(found: Convolution) -> Convolution:
    """The convolution with so many of its groups in one that kernels multiply whole groups.

    Weights between channels of different groups are 0.
    """
    outputs, inputs, *window = found.weight.shape
    together = next(
        count
        for count in range(1, found.groups + 1)
        if found.groups % count == 0 and (count * inputs % GROUP == 0 or count == found.groups)
    )
    weight = np.zeros((outputs, together, inputs, *window), found.weight.dtype)
    place = np.arange(outputs) // (outputs // found.groups) % together
    weight[np.arange(outputs), place] = found.weight
    weight = weight.reshape(outputs, together * inputs, *window)
    return replace(found, weight=weight, groups=found.groups // together)


def conv_transpose_on_codes(
    found: Convolution, codes: Codes, dot: Dot, lanes: int
) -> KernelOnCodes | None:
    """A transposed convolution of codes, of one group; None if no kernel does it exactly.

    Args: see `conv_on_codes`.
    """
    assert found.scales is not None
    if codes.dtype != dot.data or found.scales.size != found.weight.shape[1]:
        return None
    epilogue = (Step("multiply", "channel"),)
    conv = ConvTransposeWorkload(*found.extents, *found.window, epilogue)
    padded = any(_is_padded(phase) for phase, _ in conv.phases())
    windows = phase_windows(conv, found.weight)
    fits, together = _sums(dot, windows, codes)
    border = codes.zero_point if padded else 0
    workload = IntegerConvTransposeWorkload(conv, border, together, wide=not fits)
    sums = (window.astype(np.int64).sum(axis=(1, 2, 3)) for window in windows)
    biases = [by_channel(-codes.zero_point * total, lanes) for total in sums]
    operands = [found.weight, np.concatenate(biases).astype(np.int32)]
    if workload.has_rows:
        operands.append(np.concatenate([_row_sums(border, w, lanes) for w in windows]))
    scale = by_channel((found.scales * codes.scale).astype(np.float32), lanes)
    return KernelOnCodes("edgec.integer_conv_transpose", workload, (*operands, scale))


def _integer_depthwise(
    found: Convolution,
    codes: Codes,
    dot: Dot,
    bias: NDArray[Any],
    scale: NDArray[Any],
    lanes: int,
) -> KernelOnCodes | None:
    """A depthwise convolution of codes; None if no kernel of integers does it."""
    weight = found.weight
    if codes.dtype != dot.data or not dot.fits(weight, 3, 1, codes.largest):
        return None
    conv = ConvWorkload(
        *found.extents,
        *found.window,
        found.dilation,
        found.groups,
        epilogue=(Step("multiply", "channel"),),
    )
    fits = dot.wide is not None and dot.fits(weight, 3, 2, codes.largest)
    workload = IntegerDepthwiseWorkload(conv, codes.zero_point, 2 if fits else 1)
    if not workload.suits(lanes):
        return None
    operands = [weight, bias.astype(np.int32)]
    if workload.has_rows:
        operands.append(_row_sums(codes.zero_point, weight, lanes))
    return KernelOnCodes("edgec.integer_depthwise", workload, (*operands, scale))


def _row_sums(border: int, weight: NDArray[Any], lanes: int) -> NDArray[np.int32]:
    """What a row of the window gives in padding, [kh, padded output channels]."""
    rows = border * weight.astype(np.int64).sum(axis=(1, 3)).T
    return np.pad(rows, ((0, 0), (0, -len(weight) % lanes))).astype(np.int32)


def _depthwise_in_floats(
    found: Convolution, codes: Codes, bias: NDArray[Any], scale: NDArray[Any]
) -> KernelOnCodes | None:
    sums = np.abs(found.weight.astype(np.int64)).sum(axis=(1, 2, 3))
    # The codes' own sum and that of the zero point.
    if 512 * sums.max() >= EXACT_FLOAT:
        return None
    workload = PoolWorkload(
        "depthwise",
        *found.extents[:4],
        *found.extents[5:],
        *found.window,
        found.dilation,
        (Step("add", "channel"), Step("multiply", "channel")),
        codes.dtype,
        codes.zero_point,
    )
    weight = found.weight.astype(np.float32)
    return KernelOnCodes("edgec.pool", workload, (weight, bias.astype(np.float32), scale))


def _is_padded(conv: ConvWorkload) -> bool:
    """Whether some window reaches beyond the image."""
    for out, extent, taps, stride, before, dilation in zip(
        (conv.out_h, conv.out_w),
        (conv.in_h, conv.in_w),
        conv.kernel,
        conv.stride,
        conv.padding,
        conv.dilation,
        strict=True,
    ):
        if before > 0 or (out - 1) * stride + (taps - 1) * dilation - before >= extent:
            return True
    return False


def matmul_on_codes(rows: int, stored: Rounded, codes: Codes, dot: Dot) -> KernelOnCodes | None:
    """A product of codes with constant weights; None if no kernel does it exactly.

    Args:
        rows: of the left matrix.
        stored: the right one, [K, N].
        codes: of the left one.
        dot: how the target multiplies codes.
    """
    matrix = stored.codes
    k, n = matrix.shape
    if k % GROUP or codes.dtype != dot.data:
        return None
    fits = dot.fits(matrix, 0, 1, codes.largest)
    product = MatmulWorkload(1, rows, n, k, True, (Step("multiply", "channel"),))
    bias = -codes.zero_point * matrix.astype(np.int64).sum(axis=0)
    scale = (stored.scales * codes.scale).astype(np.float32)
    operands = (matrix, bias.astype(np.int32), scale)
    return KernelOnCodes(
        "edgec.integer_matmul", IntegerMatmulWorkload(product, wide=not fits), operands
    )


def function_of_codes(
    workload: ElementwiseWorkload, scale: NDArray[Any] | None
) -> tuple[Codes, tuple[Step, ...]] | None:
    """Codes, and the steps that a chain applies to what they stand for.

    Args:
        workload: the chain.
        scale: its first operand, if that is constant.

    Returns:
        None if the chain is no function of one code.
    """
    begin, *steps = workload.steps
    if begin != Step("multiply", "number") or scale is None or any(s.operand for s in steps):
        return None
    if workload.data not in CODES:
        return None
    return Codes.of(workload.data, scale.reshape(()), workload.zero_point), tuple(steps)


def with_bias(
    operator: str, workload: Any, arguments: Sequence[Any], size: int, bias: Rounded
) -> list[Any] | None:
    """Arguments of a kernel on codes that adds a bias to its sums; None if it cannot.

    Args:
        operator: name of its template.
        workload: of the template.
        arguments: of the kernel without the bias.
        size: output channels.
        bias: in units of the products.
    """
    scale = value_of(arguments[-1])
    if operator not in _TAKE_BIAS or scale is None or workload.epilogue not in _SCALED_SUMS:
        return None
    if bias.scales.size != size or not np.array_equal(bias.scales, scale[:size]):
        return None
    added = np.zeros(scale.size, np.int64)
    added[:size] = bias.codes.reshape(-1)
    weight, known = value_of(arguments[1]), value_of(arguments[2])
    assert weight is not None
    assert known is not None
    axis = _CHANNELS.get(operator, 0)
    channels = np.moveaxis(weight, axis, 0).reshape(size, -1)
    reach = 256 * np.abs(channels.astype(np.int64)).sum(axis=1).max()
    kind, limit = _TAKE_BIAS[operator]
    total = (known.astype(np.int64).reshape(-1, added.size) + added).reshape(-1)
    if np.abs(total).max() + reach >= limit:
        return None
    return [*arguments[:2], constant(total.astype(kind)), *arguments[3:]]


def requantized(
    operator: str,
    workload: Any,
    arguments: Sequence[Any],
    codes: Codes,
    numbers: NDArray[np.float32],
    ends: tuple[bool, bool],
) -> tuple[Step, list[Any]] | None:
    """The step that makes codes of a kernel's sums, and the kernel's arguments.

    Args:
        operator: name of its template.
        workload: of the template.
        arguments: of the kernel with floats after the sums.
        codes: what is wanted.
        numbers: as `quantizer` gives them.
        ends: whether the smallest and the largest code are those of the type.

    Returns:
        None if more than a scale, or a scale and a hard swish, comes before, or numbers do not fit.
    """
    scaled = Step("multiply", "channel")
    if operator not in _IN_FIXED_POINT:
        return None
    swish = workload.epilogue == (scaled, Step("hard_swish"))
    if not swish and workload.epilogue != (scaled,):
        return None
    weight, bias, scales = (value_of(arguments[place]) for place in (1, 2, -1))
    limits = np.iinfo(dtype_of(arguments[0]))
    if weight is None or bias is None or scales is None or (scales < 0).any():
        return None
    flat = weight.reshape(len(weight), -1).astype(np.int64)
    above, below = np.maximum(flat, 0).sum(axis=1), np.minimum(flat, 0).sum(axis=1)
    known = bias.reshape(-1)[: len(flat)].astype(np.int64)
    most = above * int(limits.max) + below * int(limits.min) + known
    least = above * int(limits.min) + below * int(limits.max) + known
    reach = np.zeros(scales.size)
    reach[: len(flat)] = np.maximum(np.abs(most), np.abs(least))
    low, high = (int(np.rint(end)) + codes.zero_point for end in numbers[2:])
    if not swish:
        factors = scales.astype(np.float64) / float(codes.scale)
        # Where a product reaches 2**31 processors differ.
        if float((reach * factors).max()) >= 2**30:
            return None
        operand = constant(scaled_operand(factors, codes.zero_point, low, high))
        return scaled_step(codes.dtype, *ends), [*arguments[:-1], operand]
    found = requantization(scales, reach, float(codes.scale), high - codes.zero_point)
    if found is None:
        return None
    rounded = constant((bias + found.halves).astype(bias.dtype))
    operand = constant(found.operand(codes.zero_point, low, high))
    step = found.step(codes.dtype, *ends)
    return step, [*arguments[:2], rounded, *arguments[3:-1], operand]


@dataclass(frozen=True)
class Combination:
    """Codes made of codes, element by element.

    Attributes:
        workload: of the template.
        operands: all of its arguments.
    """

    workload: IntegerElementwiseWorkload
    operands: list[Any]


def combined(
    workload: ElementwiseWorkload,
    arguments: Sequence[Any],
    gate: Any,
    codes: Codes,
    numbers: NDArray[np.float32],
    ends: tuple[bool, bool],
) -> Combination | None:
    """Codes of a sum of codes, or of codes times a gate; None if 16 bits are few or it is neither.

    Args:
        workload: of the chain on floats.
        arguments: of its kernel.
        gate: the kernel that makes floats of the codes of the gate, None if there is none.
        codes: what is wanted.
        numbers: as `quantizer` gives them.
        ends: whether the smallest and the largest code are those of the type.
    """
    if len(workload.steps) != 2 or workload.steps[0] != Step("multiply", "number"):
        return None
    scale = scalar_of(arguments[1])
    whole = workload.inner % workload.lanes == 0 and workload.lanes > 1
    if scale is None or workload.data != codes.dtype or not whole:
        return None
    if workload.inner < GROUP * workload.lanes:
        return None
    factors, zeros = [float(scale) / float(codes.scale)], [workload.zero_point]
    inputs, step = [arguments[0]], workload.steps[1]
    gated, before = step == Step("multiply", "image_channel"), None
    limits = np.iinfo(codes.dtype)
    if step == Step("add", codes.dtype):
        other = value_of(arguments[3])
        if other is None:
            return None
        factors.append(float(other[0]) / float(codes.scale))
        zeros.append(int(other[1]))
        inputs.append(arguments[2])
        fraction = sum_fraction(factors)
    elif gated and gate is not None:
        before = _codes_before(gate, codes.dtype)
        if before is None:
            return None
        factors[0] *= float(before.scale)
        largest = max(limits.max - before.zero_point, before.zero_point - limits.min)
        fraction = sum_fraction([factors[0] * int(largest)])
    else:
        return None
    if fraction is None:
        return None
    more = []
    if before is not None:
        by = np.array([factors[0] * 2 ** (8 + fraction), before.zero_point], np.float32)
        more = [gate.args[0], constant(by)]
    multipliers = [0 if gated else multiplier(factor, fraction) for factor in factors]
    low, high = (int(np.rint(end)) + codes.zero_point for end in numbers[2:])
    words = numbers_of(zeros, multipliers, fraction, codes.zero_point, (low, high))
    result = IntegerElementwiseWorkload(
        workload.outer * workload.channels,
        workload.inner,
        len(inputs),
        gated,
        codes.dtype,
        fraction,
        *ends,
    )
    return Combination(result, [*inputs, constant(words), *more])


def _codes_before(call: Any, dtype: str) -> Codes | None:
    """The codes that a kernel makes floats of, if it does nothing else."""
    if op_name(call) != "edgec.elementwise":
        return None
    workload = from_text(ElementwiseWorkload, str(call.attrs["workload"]))
    scale = scalar_of(call.args[1]) if len(call.args) > 1 else None
    if workload.steps != (Step("multiply", "number"),) or workload.data != dtype or scale is None:
        return None
    return Codes.of(dtype, scale, workload.zero_point)
