"""Provide operators as the ONNX specification writes them out: functions of simpler operators.

Newer operators of ONNX carry a body of simpler operators in their schema. What has a body but
no converter is replaced by it before the import, so that its parts go through converters.
Functions of the model itself are inlined too.
"""

from collections.abc import Iterable, Iterator
from itertools import zip_longest

import onnx
import onnx_ir as ir
from onnx import defs
from onnx_ir.passes import common

# A body may use operators that have bodies of their own.
MAX_DEPTH = 4

# Domain of the functions while they are not inlined yet.
_DOMAIN = "edgec.expanded"


def expand_functions(model: ir.Model) -> None:
    """Inline the model's functions, and the bodies of operators that have no converter.

    Which body some operators get depends on the types of their inputs. Nodes whose types are
    not known yet stay as they are: call it again when more is known.

    Args:
        model: changed in place.
    """
    common.InlinePass()(model)
    for _ in range(MAX_DEPTH):
        nodes = [node for node in model.graph.all_nodes() if _is_wanted(node, model)]
        if not nodes:
            break
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
        expanded = [_call_body(node, model, number) for number, node in enumerate(nodes)]
        if not any(expanded):
            break
        common.InlinePass()(model)


def _is_wanted(node: ir.Node, model: ir.Model) -> bool:
    # Imported here: a bundle is inspected without TVM.
    from edgec.compiler.frontend.converter_table import EXPANDED, is_known

    key = (node.domain, node.op_type)
    if key not in EXPANDED and is_known(*key):
        return False
    return has_body(*key, model.opset_imports.get(node.domain, 1))


def _call_body(node: ir.Node, model: ir.Model, number: int) -> bool:
    """Make a node the call of a new function of the model, its body; False where that fails."""
    opsets = model.opset_imports
    schema = _schema(node.domain, node.op_type, opsets.get(node.domain, 1))
    assert schema is not None
    proto = ir.to_proto(node)
    given = {attribute.name for attribute in proto.attribute}
    for name, parameter in schema.attributes.items():
        if name not in given and parameter.default_value.name:
            proto.attribute.append(parameter.default_value)
    body = _body(proto, schema, opsets, [_type(value) for value in node.inputs])
    if body is None or not all(_keeps_its_meaning(item, body, opsets) for item in _all(body.node)):
        return False
    body.domain, body.name = _DOMAIN, f"{node.op_type}_{number}"
    del body.opset_import[:]
    body.opset_import.extend(onnx.helper.make_opsetid(*item) for item in opsets.items())
    function = ir.from_proto(body)
    model.functions[function.identifier()] = function
    node.attributes.clear()
    for attribute in proto.attribute:
        if attribute.name in body.attribute:
            node.attributes.add(ir.from_proto(attribute))
    node.domain, node.op_type = _DOMAIN, body.name
    return True


def _schema(domain: str, op_type: str, version: int) -> defs.OpSchema | None:
    try:
        return defs.get_schema(op_type, version, domain)
    except defs.SchemaError:
        return None


def has_body(domain: str, op_type: str, version: int) -> bool:
    """Return whether ONNX defines an operator by others."""
    schema = _schema(domain, op_type, version)
    return schema is not None and bool(schema.has_function or schema.has_context_dependent_function)


def _body(
    node: onnx.NodeProto,
    schema: defs.OpSchema,
    opsets: dict[str, int],
    types: list[onnx.TypeProto],
) -> onnx.FunctionProto | None:
    """Return the newest body that the model's operator set has.

    None if types are missing for it.
    """
    data = node.SerializeToString()
    inputs = [kind.SerializeToString() for kind in types]
    opset = opsets.get("", defs.onnx_opset_version())
    fixed = [v for v in schema.function_opset_versions if v <= opset]
    if fixed:
        text = schema.get_function_with_opset_version(max(fixed))
        return onnx.FunctionProto.FromString(text)
    built = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
    named = zip(node.input, types, strict=False)
    if not built or any(name and not kind.WhichOneof("value") for name, kind in named):
        return None
    try:
        text = schema.get_context_dependent_function_with_opset_version(max(built), data, inputs)
    except (RuntimeError, ValueError):
        # It says so when shapes are missing that the body depends on.
        return None
    return onnx.FunctionProto.FromString(text) if text else None


def _type(value: ir.Value | None) -> onnx.TypeProto:
    """Return the type of an input as far as it is known."""
    if value is None or value.type is None:
        return onnx.TypeProto()
    return ir.to_proto(value).type


def _keeps_its_meaning(
    node: onnx.NodeProto, body: onnx.FunctionProto, opsets: dict[str, int]
) -> bool:
    """Return whether a node of a body means the same in the model's operator set.

    Bodies are written for one operator set. Later ones mostly allow more types; what must not
    have changed are operands, and defaults and existence of attributes.
    """
    written = {item.domain: item.version for item in body.opset_import}.get(node.domain, 1)
    old = _schema(node.domain, node.op_type, written)
    new = _schema(node.domain, node.op_type, opsets.get(node.domain, written))
    if old is None or new is None:
        return old is new
    if old.since_version == new.since_version:
        return True
    if any(attribute.name not in new.attributes for attribute in node.attribute):
        return False
    used = zip_longest(node.input, old.inputs, new.inputs)
    same_operands = all(
        then is not None and now is not None and then.name == now.name
        for name, then, now in used
        if name
    )
    same_defaults = all(
        new.attributes[name].default_value == parameter.default_value
        for name, parameter in old.attributes.items()
        if name in new.attributes
    )
    return same_operands and same_defaults


def _all(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes, and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _all(attribute.g.node)
