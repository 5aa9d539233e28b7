"""Provide ONNX models as files: whole, without their weights, or with weights that stay there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.external_data_helper import uses_external_data

# Protobuf serializes no more; weights of larger models go beside the file.
_LARGEST_PROTO = (1 << 31) - 1
# Shapes, axes and scales stay: without them a graph is hard to read.
_SMALL_BYTES = 1024
# Named where the weights would be; viewers show such tensors without values.
_LEFT_OUT = "weights-left-out"


def point_to_files(model: onnx.ModelProto, folder: Path) -> None:
    """Make the places of weights that are in other files absolute, in place.

    Such weights can be read by `tensor_values` alone.

    Args:
        model: the graph.
        folder: where it is.
    """
    for tensor in _tensors(model.graph):
        if uses_external_data(tensor):
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = str((folder / entry.value).resolve())


def tensor_values(tensor: onnx.TensorProto) -> NDArray[Any]:
    """Return the values of a tensor; those that are in a file are mapped from it."""
    if not uses_external_data(tensor):
        values: NDArray[Any] = numpy_helper.to_array(tensor)
        return values
    entries = {entry.key: entry.value for entry in tensor.external_data}
    dtype, shape = helper.tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims)
    if 0 in shape:
        return np.zeros(shape, dtype)
    offset = int(entries.get("offset", 0))
    return np.memmap(entries["location"], dtype, "r", offset, shape)


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
