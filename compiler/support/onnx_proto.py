"""Provide ONNX models as files: whole, or without their weights."""

from collections.abc import Iterator
from pathlib import Path

import onnx

# Protobuf serializes no more; weights of larger models go beside the file.
_LARGEST_PROTO = (1 << 31) - 1
# Shapes, axes and scales stay: without them a graph is hard to read.
_SMALL_BYTES = 1024
# Named where the weights would be; viewers show such tensors without values.
_LEFT_OUT = "weights-left-out"


def save_proto(model: onnx.ModelProto, path: Path) -> None:
    """Write a model; what one file cannot hold goes to `<stem>.weights` beside it.

    Raises:
        ValueError: it cannot be serialized.
        OSError: the file cannot be written.
    """
    if model.ByteSize() > _LARGEST_PROTO:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        onnx.save(copy, path, save_as_external_data=True, location=f"{path.stem}.weights")
    else:
        path.write_bytes(model.SerializeToString(deterministic=True))


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that has the names, types and shapes of large tensors, but not their values.

    `onnx.load(path, load_external_data=False)` and Netron open it.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in _tensors(copy.graph):
        if tensor.ByteSize() <= _SMALL_BYTES:
            continue
        kept = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        kept.data_location = onnx.TensorProto.EXTERNAL
        kept.external_data.add(key="location", value=_LEFT_OUT)
        tensor.CopyFrom(kept)
    return copy


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield initializers and attributes, those of subgraphs too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(inner)
