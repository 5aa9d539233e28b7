"""Provide TVM's own ONNX converters behind our contract.

TVM's importer ignores operator domains and uses one operator-set version for the whole model.
Here the domain decides which of its converters may be used, and each node brings its version.
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import onnx
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend

from edgec.compiler.frontend.node import Converter, Node, Refusal, last_line

# Converters of TVM that implement the operator of com.microsoft; we have our own.
_MICROSOFT = frozenset(
    {
        "Attention",
        "BiasGelu",
        "EmbedLayerNormalization",
        "FastGelu",
        "SkipLayerNormalization",
    }
)

# TVM evaluates what it should not, or returns values that are not a node's outputs.
_REFUSED = frozenset({"Optional", "OptionalGetElement", "OptionalHasElement"})

# Formal names of operands that decide shapes and axes: not at run time, TVM's code for that is
# incomplete.
_CONSTANT_OPERANDS = frozenset(
    {
        "axes",
        "axis",
        "delta",
        "depth",
        "ends",
        "image_shape",
        "k",
        "limit",
        "max_output_boxes_per_class",
        "output_shape",
        "pads",
        "repeats",
        "roi",
        "scales",
        "shape",
        "size",
        "sizes",
        "split",
        "start",
        "starts",
        "steps",
    }
)

_MAP: dict[str, Any] = onnx_frontend._get_convert_map()


def tvm_converter(domain: str, op_type: str) -> Converter | None:
    """Return TVM's converter of an operator, None if it has none for this domain."""
    if domain or op_type in _MICROSOFT | _REFUSED or op_type not in _MAP:
        return None
    return _wrap(_MAP[op_type])


def _wrap(converter_class: Any) -> Converter:
    def convert(node: Node) -> relax.Expr | Sequence[relax.Expr]:
        _demand_constants(node)
        attributes = {item.name: _raw_attribute(item) for item in node.proto.attribute}
        attributes["tvm_custom"] = {"name": node.label, "num_outputs": len(node.proto.output)}
        inputs = onnx_frontend.onnx_input()
        inputs.extend(node.inputs)
        implementation: Callable[..., Any] = converter_class.get_converter(node.opset)
        # Its parameter table is only for weights that stay inputs; ours are constants.
        tables: list[dict[str, Any]] = [{}, {}]
        with _quiet():
            try:
                result = implementation(node.builder, inputs, attributes, tables)
            except Exception as error:
                # Anything may come out of TVM: an assertion, an internal error, a KeyError.
                raise Refusal(f"TVM's importer says: {last_line(error)}") from error
        return _fields(node, result)

    return convert


def _demand_constants(node: Node) -> None:
    """Refuse a node if an operand that decides shapes is only known at run time."""
    try:
        schema = onnx.defs.get_schema(node.op_type, node.opset, node.domain)
    except onnx.defs.SchemaError:
        return
    for index, (formal, given) in enumerate(zip(schema.inputs, node.inputs, strict=False)):
        decides = formal.name in _CONSTANT_OPERANDS or node.op_type == "ConstantOfShape"
        if given is not None and decides:
            node.constant(index, formal.name)


def _fields(node: Node, result: Any) -> list[relax.Expr]:
    if isinstance(result, relax.Tuple):
        return list(result.fields)
    if not isinstance(result, relax.Expr):
        raise Refusal("TVM's importer gives no tensor")
    kind = node.builder.normalize(result).ty
    if isinstance(kind, relax.TupleType):
        bound = node.builder.emit(result)
        return [relax.TupleGetItem(bound, index) for index in range(len(kind.fields))]
    if isinstance(kind, relax.ShapeType):
        return [relax.op.shape_to_tensor(result)]
    return [result]


def _raw_attribute(attribute: onnx.AttributeProto) -> Any:
    """Return an attribute as TVM's converters expect it: text as bytes, tensors as TensorProto."""
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(value)
    return value


@contextlib.contextmanager
def _quiet() -> Any:
    """Silence TVM's importer; what matters comes back as an exception."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
