"""Write pooling with ceil_mode with as much padding as its windows need.

A last window that starts behind the input is none (ONNX since operator set 22, ONNX Runtime and
PyTorch always). ONNX's shape inference of older operator sets counts it, and all that follows
would have a wrong shape.

What does not count its padding is in floor mode then. Average pooling that counts it keeps its
mode, as more padding would count as well; only what lies behind a last window goes.
"""

import onnx
from onnx import helper

_POOLING = ("AveragePool", "LpPool", "MaxPool")


def resolve_ceil_mode(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model of static shapes without such pooling, where a pooling's shape is known."""
    if not any(map(_is_open, model.graph.node)):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for index in range(len(result.graph.node)):
        node = result.graph.node[index]
        # Each changes the shapes behind it.
        shape = _shape(result, node.input[0]) if _is_open(node) else None
        if shape is not None:
            _resolve(node, shape[2:])
    return result


def _is_open(node: onnx.NodeProto) -> bool:
    given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return (
        node.op_type in _POOLING
        and node.domain in ("", "ai.onnx")
        and bool(given.get("ceil_mode", 0))
        and given.get("auto_pad", b"NOTSET") == b"NOTSET"
    )


def _shape(model: onnx.ModelProto, name: str) -> tuple[int, ...] | None:
    """Return shape of a value as ONNX infers it now, None if it is not known."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.name == name and value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            if all(dim.dim_value > 0 for dim in dims):
                return tuple(dim.dim_value for dim in dims)
    return None


def _resolve(node: onnx.NodeProto, extents: tuple[int, ...]) -> None:
    given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    rank = len(extents)
    kernel = given["kernel_shape"]
    strides, dilations = (given.get(name, [1] * rank) for name in ("strides", "dilations"))
    pads = list(given.get("pads", [0] * 2 * rank))
    counted = bool(given.get("count_include_pad", 0))
    for axis, extent in enumerate(extents):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        span = extent + pads[axis] + pads[axis + rank] - reach
        last = -(-span // strides[axis])
        in_padding = last * strides[axis] >= extent + pads[axis]
        if in_padding:
            last -= 1
        if in_padding or not counted:
            needed = last * strides[axis] + reach - extent - pads[axis]
            pads[axis + rank] = max(0, needed)
    for name in ("pads",) if counted else ("ceil_mode", "pads"):
        for item in [item for item in node.attribute if item.name == name]:
            node.attribute.remove(item)
    node.attribute.append(helper.make_attribute("pads", pads))
