"""What is in a model or a bundle, before anything is compiled."""

from dataclasses import dataclass, field
from pathlib import Path

import onnx

from edgec.compiler.bundle import MANIFEST, Bundle
from edgec.compiler.errors import ShapeError
from edgec.compiler.graph import GraphCost, graph_cost
from edgec.compiler.onnx_file import SourceModel, read_model
from edgec.compiler.options import CompileOptions
from edgec.compiler.signature import dtype_name
from edgec.compiler.simplify import simplify
from edgec.compiler.specialize import specialize


@dataclass(frozen=True)
class Unsupported:
    """Nodes that cannot be compiled for the same reason."""

    operator: str
    reason: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class ModelReport:
    """An ONNX model.

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
    """

    path: Path
    sha256: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    cost: GraphCost
    open_shapes: str = ""
    unsupported: tuple[Unsupported, ...] = field(default=())


def is_bundle(path: Path) -> bool:
    """Whether a path looks like a bundle and not like a model file."""
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
    path = Path(path)
    if is_bundle(path):
        return Bundle.load(path)
    options = options or CompileOptions()
    source = read_model(path)
    try:
        special = specialize(source.proto, options.shapes, options.freeze)
    except ShapeError as error:
        if options.shapes or options.freeze:
            raise
        return _report(source, source.proto.graph, str(error), _unknown_operators(source.proto))
    graph = simplify(special.proto)
    return _report(source, graph.graph, "", _refused(graph))


def _report(
    source: SourceModel, graph: onnx.GraphProto, open_shapes: str, unsupported: list[Unsupported]
) -> ModelReport:
    initialized = {tensor.name for tensor in source.proto.graph.initializer}
    return ModelReport(
        path=source.path,
        sha256=source.sha256,
        opset=source.opset,
        inputs=tuple(_text(v) for v in graph.input if v.name not in initialized),
        outputs=tuple(_text(v) for v in graph.output),
        cost=graph_cost(graph),
        open_shapes=open_shapes,
        unsupported=tuple(unsupported),
    )


def _text(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    extents = [dim.dim_param or (str(dim.dim_value) or "?") for dim in tensor.shape.dim]
    shape = f"[{','.join(extents)}]" if tensor.HasField("shape") else "[…]"
    return f"{value.name} {shape} {dtype_name(tensor.elem_type) if tensor.elem_type else '?'}"


def _refused(model: onnx.ModelProto) -> list[Unsupported]:
    # Imported here: a bundle is inspected without TVM.
    from edgec.compiler.importer import find_refusals

    groups: dict[tuple[str, str], list[str]] = {}
    for refused in find_refusals(model):
        groups.setdefault((refused.op_type, refused.reason), []).append(refused.label)
    return [Unsupported(op, why, tuple(nodes)) for (op, why), nodes in groups.items()]


def _unknown_operators(model: onnx.ModelProto) -> list[Unsupported]:
    """Operators without a converter; what depends on shapes cannot be told yet."""
    from edgec.compiler.importer.table import is_known

    local = {(function.domain, function.name) for function in model.functions}
    nodes: dict[str, list[str]] = {}
    for node in model.graph.node:
        if (node.domain, node.op_type) in local or is_known(node.domain, node.op_type):
            continue
        name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        nodes.setdefault(name, []).append(node.name or node.output[0])
    reason = "the operator is not supported"
    return [Unsupported(name, reason, tuple(labels)) for name, labels in nodes.items()]
