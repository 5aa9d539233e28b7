"""Refuse graphs on which ONNX's shape inference fails in a way that no caller can catch.

It counts on extents that are not negative, where pads below zero or a negative `k` of TopK give
such, and writes down every element of a vector of any length that is moved as a shape would be.
"""

import onnx

from edgec.compiler.errors import LimitError, UnsupportedModelError
from edgec.compiler.support.rehearsal import rehearse

# For a graph of a thousand nodes it takes some milliseconds and megabytes.
SECONDS = 4
SECONDS_PER_NODE = 0.01
MEGABYTES = 800

# Longer initializers are no shapes.
_SHAPE_BYTES = 4096


def rehearse_inference(model: onnx.ModelProto) -> None:
    """Infer the shapes of a model in a process of its own.

    Args:
        model: a model of static inputs; stays as it is.

    Raises:
        LimitError: the inference takes too much memory.
        UnsupportedModelError: it ends that process, or does not end itself.
    """
    small = _without_weights(model)
    seconds = int(SECONDS + SECONDS_PER_NODE * len(model.graph.node))
    problem = rehearse(
        lambda: onnx.shape_inference.infer_shapes(small, data_prop=True), seconds, MEGABYTES
    )
    if problem:
        kind = LimitError if problem.endswith("MB") else UnsupportedModelError
        raise kind(
            f"ONNX's shape inference fails on the graph, {problem}: a value in it has a negative "
            "extent or is far too large (negative pads, repeats or sizes, for example)"
        )


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which large initializers are inputs of the same types."""
    large = {item.name: item for item in model.graph.initializer if _size(item) > _SHAPE_BYTES}
    if not large:
        return model
    small = onnx.ModelProto(ir_version=model.ir_version)
    small.opset_import.extend(model.opset_import)
    small.functions.extend(model.functions)
    graph = small.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.initializer.extend(item for item in model.graph.initializer if item.name not in large)
    listed = {value.name for value in model.graph.input}
    graph.input.extend(
        onnx.helper.make_tensor_value_info(name, item.data_type, item.dims)
        for name, item in large.items()
        if name not in listed
    )
    return small


def _size(tensor: onnx.TensorProto) -> int:
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    return _SHAPE_BYTES + 1 if external else len(tensor.raw_data) or tensor.ByteSize()
