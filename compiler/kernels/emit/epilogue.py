"""Describe what a kernel does to a value between its accumulator and the store.

An epilogue is a chain of steps. Each takes the value so far, and a binary one also the next
operand of the kernel. `channel` operands hold a value for each output channel, `image_channel`
operands one for each channel of each image, `element` operands one for each element of the output.
A `number` holds for all. `uint8` and `int8` operands are quantized values, one for each element of
the output, followed by their scale and zero point. A `quantizer` quantizes the value, as the last
step: reciprocal of the scale, zero point, smallest and largest quantized value less the zero point.
A `fixed` operand belongs to a step that requantizes accumulators, the only one; see
`requantize`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tvm import tirx

from edgec.compiler.kernels.emit import vector_math
from edgec.compiler.kernels.emit.emitter import Emitter, Index
from edgec.compiler.kernels.emit.quantized_values import Quantizer, load_as_float, quantize_floats
from edgec.compiler.kernels.vectors import broadcast, constant, fused_multiply_add, lanes_of, select
from edgec.compiler.numerics.activations import ACTIVATIONS, BY_OPERATOR

OperandKind = Literal[
    "channel", "image_channel", "element", "number", "uint8", "int8", "quantizer", "fixed"
]

QUANTIZED_DTYPES: tuple[OperandKind, ...] = ("uint8", "int8")

# What follows the multipliers and shifts of channels in a `fixed` operand.
FIXED_NUMBERS = 4

_PARAMETERS: dict[OperandKind, int] = {"number": 1, "uint8": 2, "int8": 2, "quantizer": 4}

OperandLoader = Callable[[int, OperandKind], Any]
"""Gives the operand of binary step number n."""

Places = Mapping[OperandKind, Index]
"""Where an operand of each kind is read."""


@dataclass(frozen=True)
class EpilogueStep:
    """An epilogue step describes one step of an epilogue.

    Attributes:
        op: name in `BINARY` or `UNARY`.
        operand: what the next operand holds, None for a unary step.
        parameters: numbers of a unary step: the bounds of a clip, the slope of a leaky ReLU; of
            a quantizer which ends are open, see `quantize_floats`.
    """

    op: str
    operand: OperandKind | None = None
    parameters: tuple[float, ...] = ()

    def __str__(self) -> str:
        """Return the short form for names and records.

        >>> str(EpilogueStep("add", "channel")), str(EpilogueStep("clip", None, (0.0, 6.0)))
        ('add:channel', 'clip(0,6)')
        """
        numbers = f"({','.join(f'{number:g}' for number in self.parameters)})"
        return (
            f"{self.op}:{self.operand}"
            if self.operand
            else self.op + numbers * any([self.parameters])
        )


def begins_with_bias(steps: Sequence[EpilogueStep]) -> bool:
    """Return whether the accumulators can begin with a number of each channel."""
    return bool(steps) and steps[0] == EpilogueStep("add", "channel")


def _at_least(x: Any, bound: Any) -> Any:
    """Return the larger of a value and a number.

    The comparison is false if one of the two is NaN, and then the second operand is the result:
    with the value there NaN stays NaN, for no more instructions.
    """
    return tirx.max(bound, x)


def _at_most(x: Any, bound: Any) -> Any:
    """Return the smaller of a value and a number; NaN stays NaN, see `_at_least`."""
    return tirx.min(bound, x)


def _either_nan(choose: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return a maximum or minimum of two values that is NaN if the first is.

    It is if the second is.
    """
    return lambda x, y: select(tirx.isnan(x), x, choose(x, y))


def _clip(x: Any, low: float, high: float) -> Any:
    lanes = lanes_of(x)
    dtype = str(x.ty.dtype.with_lanes(1)) if lanes > 1 else str(x.ty.dtype)
    return _at_most(_at_least(x, constant(low, dtype, lanes)), constant(high, dtype, lanes))


def _number(x: Any, value: float) -> Any:
    return constant(value, "float32", lanes_of(x))


def _relu(x: Any) -> Any:
    return _at_least(x, _number(x, 0))


def _hard_sigmoid(x: Any, alpha: float, beta: float) -> Any:
    return _clip(x * _number(x, alpha) + _number(x, beta), 0, 1)


def _gelu(x: Any) -> Any:
    half = x * _number(x, 0.5)
    return half + half * vector_math.erf(x * _number(x, 0.5**0.5))


def _gelu_tanh(x: Any) -> Any:
    # (1 + tanh(u)) / 2 = sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
    u = x * (x * x * _number(x, 0.044715) + _number(x, 1)) * _number(x, 2 * 0.7978845608028654)
    return x * vector_math.sigmoid(u)


@dataclass(frozen=True)
class Unary:
    """A unary step describes the code of a function of one value.

    Attributes:
        emit: (x, *parameters) -> f(x).
        cost: rough cost on one vector, in FMA-like instructions.
    """

    emit: Callable[..., Any]
    cost: int = 2


# Functions of one value: those of `numerics.activations`, and arithmetic with a constant number.
UNARY: dict[str, Unary] = {
    "abs": Unary(tirx.abs),
    "add_number": Unary(lambda x, number: x + _number(x, number)),
    "divide_by_number": Unary(lambda x, number: _number(x, number) / x),
    "divide_number": Unary(lambda x, number: x / _number(x, number)),
    "clip": Unary(_clip),
    "erf": Unary(vector_math.erf, cost=36),
    "exp": Unary(vector_math.exp, cost=16),
    "gelu": Unary(_gelu, cost=38),
    "gelu_tanh": Unary(_gelu_tanh, cost=26),
    "hard_sigmoid": Unary(_hard_sigmoid),
    "hard_swish": Unary(lambda x: x * (_clip(x + _number(x, 3), 0, 6) * _number(x, 1 / 6))),
    "leaky_relu": Unary(lambda x, slope: select(x > _number(x, 0), x, x * _number(x, slope))),
    "maximum_number": Unary(lambda x, number: _at_least(x, _number(x, number))),
    "minimum_number": Unary(lambda x, number: _at_most(x, _number(x, number))),
    "multiply_number": Unary(lambda x, number: x * _number(x, number)),
    "relu": Unary(_relu),
    "sigmoid": Unary(vector_math.sigmoid, cost=20),
    "silu": Unary(lambda x: x * vector_math.sigmoid(x), cost=21),
    "sqrt": Unary(tirx.sqrt),
    "subtract_from_number": Unary(lambda x, number: _number(x, number) - x),
    "tanh": Unary(vector_math.tanh, cost=30),
}


def _add(x: Any, y: Any) -> Any:
    if isinstance(y, tuple):
        code, scale = y
        return fused_multiply_add(code, scale, x)
    return x + y


def _multiply(x: Any, y: Any) -> Any:
    return x * (y[0] * y[1]) if isinstance(y, tuple) else x * y


# Those that take quantized values; other steps read floats.
WITH_QUANTIZED_OPERAND = ("add", "multiply")

BINARY: dict[str, Callable[..., Any]] = {
    "add": _add,
    "divide": lambda x, y: x / y,
    "divide_by": lambda x, y: y / x,
    "maximum": _either_nan(tirx.max),
    "minimum": _either_nan(tirx.min),
    "multiply": _multiply,
    "quantize_int8": lambda x, y, *ends: quantize_floats(x, y, "int8", *ends),
    "quantize_uint8": lambda x, y, *ends: quantize_floats(x, y, "uint8", *ends),
    "subtract": lambda x, y: x - y,
    "subtract_from": lambda x, y: y - x,
}


def cost(steps: Sequence[EpilogueStep]) -> int:
    """Return the instructions of an epilogue on one vector."""
    return sum(UNARY[step.op].cost if step.op in UNARY else 2 for step in steps)


def activation_step(call: Any) -> EpilogueStep:
    """Return the step of a call of an activation, see `numerics.activations`."""
    name = BY_OPERATOR[str(call.op.name)]
    return EpilogueStep(name, None, ACTIVATIONS[name].parameters(call))


def declare_operands(
    e: Emitter, steps: Sequence[EpilogueStep], sizes: Mapping[OperandKind, int]
) -> list[Any]:
    """Return a parameter for the operand of each binary step, of the size of its kind."""
    operands: list[Any] = []
    for number, kind in enumerate(step.operand for step in steps if step.operand):
        name, count = f"operand{number}", _PARAMETERS.get(kind)
        if kind in QUANTIZED_DTYPES:
            quantized = e.buffer(name, sizes["element"], kind)
            operands.append((quantized, e.buffer(f"scale{number}", 2, "float32")))
        elif kind == "fixed":
            operands.append(e.buffer(name, 2 * sizes["channel"] + FIXED_NUMBERS, "int16"))
        else:
            operands.append(e.buffer(name, count or sizes[kind], "float32"))
    return operands


def output_dtype(steps: Sequence[EpilogueStep]) -> str:
    """Return the output dtype of what a chain gives."""
    last = steps[-1].op if steps else ""
    return last.rpartition("quantize_")[2] if "quantize_" in last else "float32"


def operand_loader(
    e: Emitter, operands: Sequence[Any], places: Places, lanes: int = 1
) -> OperandLoader:
    """Reads `lanes` values of an operand from the place of its kind.

    Quantized values come as a pair, less the zero point and with the scale; a quantizer as
    `Quantizer`.
    """

    def load(number: int, kind: OperandKind) -> Any:
        if kind in QUANTIZED_DTYPES:
            quantized, parameters = operands[number]
            scale, zero = (broadcast(e.load(parameters, i), lanes) for i in range(2))
            return load_as_float(e, quantized, places["element"], lanes) - zero, scale
        if kind in _PARAMETERS:
            count = _PARAMETERS[kind]
            numbers = [broadcast(e.load(operands[number], i), lanes) for i in range(count)]
            return Quantizer(numbers, e.isa) if kind == "quantizer" else numbers[0]
        return e.load(operands[number], places[kind], lanes)

    return load


def apply(steps: Sequence[EpilogueStep], value: Any, operands: OperandLoader) -> Any:
    """Run the chain on a value.

    Args:
        steps: the chain.
        value: scalar or vector.
        operands: gives the value of binary step number n, of the same lanes.
    """
    position = 0
    for step in steps:
        if step.operand is None:
            value = UNARY[step.op].emit(value, *step.parameters)
        else:
            operand = operands(position, step.operand)
            value = BINARY[step.op](value, operand, *step.parameters)
            position += 1
    return value
