"""Provide one ONNX node on its way into Relax, and the contract of a converter."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from tvm import relax
from tvm.ir import GenericConst
from tvm.tirx import IntImm, Var

from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.ir.signature import TensorSpec


class Refusal(UnsupportedModelError):  # noqa: N818 - says no, is no malfunction
    """A converter does not support something about a node; the message says what.

    Attributes:
        operand: the input that had to be constant, None if that is not the reason.
    """

    def __init__(self, message: str, operand: int | None = None) -> None:
        super().__init__(message)
        self.operand = operand


@dataclass(frozen=True)
class Node:
    """A node describes an ONNX node whose inputs are Relax already.

    Attributes:
        label: its name, or its first output where it has none.
        op_type: operator.
        domain: operator domain, empty for ai.onnx.
        opset: version of that domain.
        inputs: one expression for each input; None where an optional one is left out.
        proto: the node as the file has it.
        outputs: what ONNX infers about each output; None where it infers nothing.
        dtypes: ONNX's dtype of each input; not that of the expression for a storage type (see
            `edgec.compiler.ir.storage`).
        builder: emits intermediate expressions.
    """

    label: str
    op_type: str
    domain: str
    opset: int
    inputs: tuple[relax.Expr | None, ...]
    proto: onnx.NodeProto
    outputs: tuple[TensorSpec | None, ...]
    dtypes: tuple[str | None, ...]
    builder: relax.BlockBuilder

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Return attributes by name: numbers, text, tuples, arrays and graphs."""
        return {item.name: _attribute_value(item) for item in self.proto.attribute}

    def input(self, index: int) -> relax.Expr:
        """Return a required input."""
        expression = self.optional(index)
        if expression is None:
            raise Refusal(f"input {index} is missing")
        return expression

    def optional(self, index: int) -> relax.Expr | None:
        """Return an optional input, None if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def dtype(self, index: int) -> str:
        """Return ONNX's dtype of a required input."""
        self.input(index)
        return self.dtypes[index] or dtype_of(self.input(index))

    def constant(self, index: int, what: str) -> NDArray[Any]:
        """Return the value of an input that must be known when compiling.

        Args:
            index: which input.
            what: its name in the ONNX specification.

        Raises:
            Refusal: it is only known at run time.
        """
        value = constant_value(self.input(index))
        if value is None:
            raise Refusal(
                f"input {what!r} must be constant; if it comes from an input of the model, "
                "fix that with --freeze",
                operand=index,
            )
        return value

    def emit(self, expression: relax.Expr) -> relax.Var:
        """Bind an intermediate expression."""
        return self.builder.emit(expression)

    def call(
        self, operator: Callable[..., relax.Expr], *arguments: Any, **attributes: Any
    ) -> relax.Var:
        """Bind what a Relax operator gives."""
        return self.emit(operator(*arguments, **attributes))

    def with_extents(self, expression: relax.Expr, shape: Sequence[int | None]) -> relax.Var:
        """Return a value whose shape only a run tells, with a symbol for each extent that is None.

        Operators that take symbols can follow then.
        """
        value = self.emit(expression)
        symbols = [Var("n", "int64") if extent is None else extent for extent in shape]
        return self.builder.match_cast(value, relax.TensorType(symbols, dtype_of(value)))

    def cast(self, expression: relax.Expr, dtype: str) -> relax.Expr:
        """Return a value in a dtype, itself if it has it already.

        A constant of 16-bit floats stays one.
        """
        if dtype_of(expression) == dtype:
            return expression
        array = constant_value(expression)
        half = dtype_of(expression) in ("float16", "bfloat16")
        if array is not None and half and dtype == "float32":
            return relax.const(array.astype(np.float32), dtype)
        return self.call(relax.op.astype, expression, dtype)


FLOATS = ("float16", "bfloat16", "float32", "float64")
"""Dtypes that are computed with as floats."""

Converter = Callable[[Node], relax.Expr | Sequence[relax.Expr | None]]
"""Turns a node into one expression per output; outputs at the end may be left out, text is None."""


def in_float32(converter: Converter) -> Converter:
    """Return a converter that computes in float32 where its node has 16-bit floats."""
    narrow = ("float16", "bfloat16")

    def convert(node: Node) -> relax.Expr | Sequence[relax.Expr | None]:
        dtypes = [None if value is None else dtype_of(value) for value in node.inputs]
        given = next((dtype for dtype in dtypes if dtype in narrow), None)
        if given is None:
            return converter(node)
        inputs = [
            node.cast(value, "float32") if value is not None and dtype in narrow else value
            for value, dtype in zip(node.inputs, dtypes, strict=True)
        ]
        results = converter(replace(node, inputs=tuple(inputs)))
        if not isinstance(results, Sequence):
            results = [results]
        values = [None if result is None else node.emit(result) for result in results]
        return [
            node.cast(value, given) if value is not None and dtype_of(value) == "float32" else value
            for value in values
        ]

    return convert


def constant_value(expression: relax.Expr | None) -> NDArray[Any] | None:
    """Return the array behind a constant expression, None if it is none."""
    if isinstance(expression, GenericConst):
        return expression.value.numpy()
    return None


def static_shape(expression: relax.Expr) -> tuple[int, ...]:
    """Return shape of an expression.

    Raises:
        Refusal: the shape is only known at run time.
    """
    shape = expression.ty.shape
    extents = [known_extent(extent) for extent in getattr(shape, "values", [None])]
    known = tuple(extent for extent in extents if extent is not None)
    if len(known) != len(extents):
        raise Refusal("the shape of an input is only known at run time")
    return known


def extents_of(expression: relax.Expr) -> tuple[Any, ...]:
    """Return shape of an expression: a number, or a symbol where only a run tells.

    Raises:
        Refusal: not even the number of axes is known.
    """
    shape = expression.ty.shape
    if not isinstance(shape, relax.ShapeExpr):
        raise Refusal("the shape of an input is only known at run time")
    return tuple(
        extent if known_extent(extent) is None else known_extent(extent) for extent in shape.values
    )


def dtype_of(expression: relax.Expr) -> str:
    """Return dtype name of an expression, `float32` for example."""
    return str(expression.ty.dtype.dtype)


def accumulator_dtype(dtype: str) -> str:
    """Return what to compute sums in: at least float32.

    So that 16-bit floats are rounded only once.
    """
    return dtype if dtype in ("float32", "float64") else "float32"


def scalar(value: float, dtype: str) -> relax.Expr:
    """Return a rank-0 constant."""
    return relax.const(np.array(value).astype(dtype), dtype)


def known_extent(extent: Any) -> int | None:
    """Return a dimension of a Relax shape as a number, None if it is symbolic or unknown."""
    return int(extent) if isinstance(extent, int | IntImm) else None


# An operator as TVM prints it, with its name among what nobody asked for.
_PRINTED_OPERATOR = re.compile(
    r'ir\.Op\(span=None[^\n]*?name="(?:relax\.|tirx\.)?([\w.]+)"[^\n]*?support_level=\d+\)'
)
_OMITTED = "# Metadata omitted. Use show_meta=True in script() method to show it."


def last_line(error: Exception) -> str:
    """Return what an error of TVM says in the end, after its stack.

    >>> last_line(ValueError('In ir.Op(span=None, name="relax.add", support_level=10): no'))
    'In add: no'
    """
    text = _PRINTED_OPERATOR.sub(r"\1", str(error)).replace(_OMITTED, "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]


def _attribute_value(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(item.decode() if isinstance(item, bytes) else item for item in value)
    return value
