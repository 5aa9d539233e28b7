"""Describe what a kernel template is: one kind of kernel behind one interface, with its traits."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any, Literal

from numpy.typing import NDArray
from pydantic import TypeAdapter

from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.targets.target import Target

Array = NDArray[Any]

# Whole numbers below this are exact in float32, and so are their sums in any order.
EXACT_FLOAT = 2**24


@dataclass(frozen=True)
class OnlyDecision:
    """A template that leaves nothing to decide has this decision."""


@dataclass(frozen=True)
class BiasOperand:
    """A bias operand is in units of the products: operand 2 of a kernel of quantized values.

    Attributes:
        dtype: the dtype of the operand.
        limit: what the accumulator must stay below.
    """

    dtype: Literal["int32", "float32"]
    limit: int


INT32_BIAS = BiasOperand("int32", 2**31)
FLOAT_BIAS = BiasOperand("float32", EXACT_FLOAT)


def as_is(_workload: Any, _decision: Any, _target: Target, _position: int, array: Array) -> Array:
    """Return a constant operand that the code reads as the graph has it."""
    return array


@dataclass(frozen=True)
class Template:
    """A template describes one kind of kernel.

    Attributes:
        workload: its class.
        decision: its class, or a union of classes.
        space: decisions that make sense for a workload on a target.
        default: the one that the analytic model prefers.
        emit: writes the code.
        pack: brings a constant operand, by its position, into the order that the code reads.
        estimate: cycles by the analytic model, 0 where there is none.
        weight_size: values of a packed operand 1, where decisions differ in it.
        epilogue: field of the workload that holds the epilogue, or the workload that does; empty:
            nothing can be fused into the kernel.
        accumulator: dtype of what the epilogue begins with.
        bias: the bias of a kernel of quantized values; None: its accumulators take none.
        output_channels: axis of operand 1.
        fixed_point: whether one step of the epilogue can requantize its accumulators.
        sparse: template that computes the same with sparse weights; empty: there is none.
        why_dense: reason why there is none, for kernels that read constant weights as operand 1.
        in_place: field of the workload that says that the result has the memory of operand 0, which
            the code then does not read; empty: there is no such kernel.
        for_weights: the decision to take where operand 1 is this constant: what one rounds may
            depend on the weights.
    """

    workload: type[Any]
    decision: Any
    space: Callable[[Any, Target], Sequence[Any]]
    default: Callable[[Any, Target], Any]
    emit: Callable[[Any, Any, Target, str], Kernel]
    pack: Callable[[Any, Any, Target, int, Array], Array] = as_is
    estimate: Callable[[Any, Any, Target], float] = lambda _w, _d, _t: 0.0
    weight_size: Callable[[Any, Any, Target], int] | None = None
    epilogue: str = ""
    accumulator: Literal["float32", "int32"] = "float32"
    bias: BiasOperand | None = None
    output_channels: int = 0
    fixed_point: bool = False
    sparse: str = ""
    why_dense: str = ""
    in_place: str = ""
    for_weights: Callable[[Any, Any, Target, Array], Any] = lambda _w, decision, _t, _a: decision


def undecided(
    workload: type[Any], emit: Callable[[Any, Target, str], Kernel], **traits: Any
) -> Template:
    """Return a template that leaves nothing to decide.

    Args:
        workload: its class.
        emit: writes the code, without a decision.
        traits: other fields of `Template`.
    """
    only = OnlyDecision()
    return Template(
        workload=workload,
        decision=OnlyDecision,
        space=lambda _w, _t: [only],
        default=lambda _w, _t: only,
        emit=lambda w, _d, t, name: emit(w, t, name),
        **traits,
    )


def to_text(record: Any) -> str:
    """Return a workload or decision as one line of JSON, the same for equal ones.

    Fields that a class marks as `omit_if_default` appear only where they are not the default:
    records of before there was such a field stay valid.

    >>> to_text(BiasOperand("int32", 4))
    '{"dtype":"int32","limit":4}'
    """
    values = asdict(record)
    for item in fields(record):
        if item.metadata.get("omit_if_default") and values[item.name] == item.default:
            del values[item.name]
    return json.dumps(values, separators=(",", ":"))


def from_text(kind: Any, text: str) -> Any:
    """Return what `to_text` wrote.

    >>> from_text(BiasOperand, to_text(BiasOperand("int32", 4)))
    BiasOperand(dtype='int32', limit=4)
    """
    return _adapter(kind).validate_json(text)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Return what reads a class; making it takes longer than a kernel does."""
    return TypeAdapter(kind)
