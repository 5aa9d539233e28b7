"""Write scales of Resize so that ONNX's shape inference gives the shape that runtimes give.

The extent of an output is the extent of the input times the scale, rounded down. Runtimes multiply
in float32, where 10 * 0.7 is 7; ONNX infers in float64, where the float32 number next to 0.7 gives
6.9999999. All that follows would have a wrong shape.
"""

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

# The place of the scales among the inputs; from operator set 11 on the regions come before them.
_SCALES = {"Resize": (2, 1), "Upsample": (1,)}


def resolve_resize_scales(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model with such scales one or two units of float32 higher, where shapes are known."""
    known = _constants(model)
    places = {
        index: place
        for index, node in enumerate(model.graph.node)
        if (place := _fractional(node, known)) is not None
    }
    if not places:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    shapes = _shapes(result)
    for index, place in places.items():
        node = result.graph.node[index]
        scales = known[node.input[place]]
        extents = shapes.get(node.input[0])
        if extents is None:
            continue
        axes = _axes(node, len(extents))
        if len(axes) != len(scales) or any(axis >= len(extents) for axis in axes):
            continue
        wanted = [_enough(extents[axis], scale) for axis, scale in zip(axes, scales, strict=True)]
        if np.array_equal(wanted, scales):
            continue
        name = f"{node.output[0]}_scales"
        node.input[place] = name
        result.graph.initializer.append(numpy_helper.from_array(np.array(wanted), name))
        # It changes the shapes behind it.
        shapes = _shapes(result)
    return result


def _constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Return the scales that the file holds, by name."""
    wanted = {
        node.input[place]
        for node in model.graph.node
        for place in _SCALES.get(node.op_type, ())
        if place < len(node.input)
    }
    tensors = {item.name: item for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return {
        name: numpy_helper.to_array(tensors[name])
        for name in wanted
        if name in tensors and tensors[name].data_type == onnx.TensorProto.FLOAT
    }


def _fractional(node: onnx.NodeProto, known: dict[str, NDArray[Any]]) -> int | None:
    """Return the place of scales that are no whole numbers."""
    if node.domain not in ("", "ai.onnx"):
        return None
    for place in _SCALES.get(node.op_type, ()):
        scales = known.get(node.input[place]) if place < len(node.input) else None
        if scales is not None and scales.ndim == 1 and np.any(scales % 1):
            return place
    return None


def _axes(node: onnx.NodeProto, rank: int) -> list[int]:
    given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return [axis % rank for axis in given.get("axes", range(rank))]


def _enough(extent: int, scale: np.float32) -> np.float32:
    """Return the least scale of at least this that gives the runtimes' extent in float64, too."""
    wanted = math.floor(np.float32(extent) * scale)
    while math.floor(extent * float(scale)) < wanted:
        scale = np.nextafter(scale, np.float32(np.inf))
    return scale


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the known shapes as ONNX infers them now, by name."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
        and all(dim.dim_value > 0 for dim in value.type.tensor_type.shape.dim)
    }
