"""Describe what is in a model or a bundle, before anything is compiled."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.bundle.manifest import MANIFEST
from edgec.compiler.errors import ShapeError
from edgec.compiler.frontend.expand_functions import has_body
from edgec.compiler.frontend.model_argument import as_path
from edgec.compiler.frontend.model_source import read_model
from edgec.compiler.frontend.onnx_facts import GraphCost, graph_cost
from edgec.compiler.frontend.onnx_file import SourceModel
from edgec.compiler.frontend.simplify import simplify
from edgec.compiler.frontend.specialize import specialize
from edgec.compiler.ir.signature import dtype_name
from edgec.compiler.options import CompileOptions

if TYPE_CHECKING:
    from edgec.compiler.frontend.import_graph import Refused


@dataclass(frozen=True)
class Unsupported:
    """Unsupported nodes cannot be compiled for the same reason."""

    operator: str
    reason: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class NodeSupport:
    """Node support describes one node of the graph that is compiled.

    Attributes:
        name: its name, or its first output where it has none.
        operator: with its domain.
        reason: why it cannot be compiled, empty if it can.
    """

    name: str
    operator: str
    reason: str


@dataclass(frozen=True)
class ModelReport:
    """A model report describes an ONNX model.

    Attributes:
        path: the file.
        sha256: digest of the file.
        opset: version of the default operator set.
        inputs: each with its shape; open dimensions by name.
        outputs: likewise.
        cost: operators, parameters and multiply-accumulates of the simplified graph; of the
            graph as it is where dimensions are open.
        open_shapes: why multiply-accumulates are unknown, else empty.
        unsupported: what keeps the model from compiling.
        freeze: inputs that have to be frozen, because shapes or axes depend on them.
        nodes: every node; where dimensions are open, as far as its operator tells.
    """

    path: Path
    sha256: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    cost: GraphCost
    open_shapes: str = ""
    unsupported: tuple[Unsupported, ...] = ()
    freeze: tuple[str, ...] = ()
    nodes: tuple[NodeSupport, ...] = ()


def is_bundle(path: Path) -> bool:
    """Return whether a path looks like a bundle and not like a model file."""
    return (path / MANIFEST).is_file() or path.suffix == ".tar"


def inspect_path(path: str | Path, options: CompileOptions | None = None) -> ModelReport | Bundle:
    """Look into an ONNX file or a bundle.

    Args:
        path: either.
        options: shapes and frozen inputs; without them a model of open dimensions is described
            as far as it goes.

    Raises:
        EdgecError: the file is wrong.
    """
    path = as_path(path, "inspect_path", "the path of an ONNX file or of a bundle")
    if is_bundle(path):
        return Bundle.load(path)
    options = options or CompileOptions()
    shapes = options.one_program("inspect").shapes
    source = read_model(
        path, options.limits, options.context, cache=options.cache, lora=options.adapters
    )
    try:
        special = specialize(source.proto, shapes, options.freeze)
    except ShapeError as error:
        if shapes or options.freeze:
            raise
        return _report(source, source.proto, str(error), _unknown_operators(source.proto))
    # Imported here: a bundle is inspected without TVM.
    from edgec.compiler.frontend.import_graph import find_refusals

    graph = simplify(special.proto, options.limits)
    return _report(source, graph, "", find_refusals(graph))


def _report(
    source: SourceModel, model: onnx.ModelProto, open_shapes: str, refused: "list[Refused]"
) -> ModelReport:
    graph = model.graph
    initialized = {tensor.name for tensor in source.proto.graph.initializer}
    groups: dict[tuple[str, str], list[str]] = {}
    for item in refused:
        groups.setdefault((item.op_type, item.reason), []).append(item.label)
    freeze = {name for item in refused for name in item.freeze}
    return ModelReport(
        path=source.path,
        sha256=source.sha256,
        opset=source.opset,
        inputs=tuple(_text(v) for v in graph.input if v.name not in initialized),
        outputs=tuple(_text(v) for v in graph.output),
        cost=graph_cost(graph),
        open_shapes=open_shapes,
        unsupported=tuple(
            Unsupported(operator, why, tuple(nodes)) for (operator, why), nodes in groups.items()
        ),
        freeze=tuple(value.name for value in graph.input if value.name in freeze),
        nodes=_nodes(graph, refused),
    )


def _nodes(graph: onnx.GraphProto, refused: "list[Refused]") -> tuple[NodeSupport, ...]:
    reasons = {item.label: item.reason for item in refused}
    labels = [(node.name or node.output[0], _operator(node)) for node in graph.node]
    return tuple(NodeSupport(name, kind, reasons.get(name, "")) for name, kind in labels)


def _operator(node: onnx.NodeProto) -> str:
    domain = "" if node.domain == "ai.onnx" else node.domain
    return f"{domain}::{node.op_type}" if domain else node.op_type


def _text(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    extents = [dim.dim_param or (str(dim.dim_value) or "?") for dim in tensor.shape.dim]
    shape = f"[{','.join(extents)}]" if tensor.HasField("shape") else "[…]"
    return f"{value.name} {shape} {dtype_name(tensor.elem_type) if tensor.elem_type else '?'}"


def _unknown_operators(model: onnx.ModelProto) -> "list[Refused]":
    """Return nodes without a converter; what depends on shapes is not known yet."""
    from edgec.compiler.frontend.converter_table import is_known
    from edgec.compiler.frontend.import_graph import Refused

    local = {(function.domain, function.name) for function in model.functions}
    opsets = {item.domain: item.version for item in model.opset_import}
    return [
        Refused(node.name or node.output[0], _operator(node), "the operator is not supported")
        for node in model.graph.node
        if (node.domain, node.op_type) not in local
        and not is_known(node.domain, node.op_type)
        and not has_body(node.domain, node.op_type, opsets.get(node.domain, 1))
    ]
