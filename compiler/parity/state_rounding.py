"""Write out that activations are rounded, where ONNX Runtime may round and does not.

`accuracy_level` 4 of MatMulNBits allows activations of 8 bits, with a scale for each row and block.
ONNX Runtime's CPU provider computes on floats all the same where zero points are floats.
"""

import onnx
from onnx import TensorProto, helper

_LARGEST = 127
_SCOPE = "edgec.rounding"
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
# `axes` became an input.
_AXES_INPUT = 18


def state_rounding(model: onnx.ModelProto) -> None:
    """Round the activations of products with float zero points to 8 bits, in place.

    `scale * round(x / scale)` with `scale = max(|x|) / 127` of each block.
    """
    graph = model.graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    nodes: list[onnx.NodeProto] = []
    rounded: dict[tuple[str, int], str] = {}
    for node in graph.node:
        size = _block(node, kinds)
        if size:
            key = (node.input[0], size)
            if key not in rounded:
                rounded[key] = f"{_SCOPE}.{len(rounded)}"
                nodes += _round(graph, node.input[0], size, rounded[key], opset)
            node.input[0] = rounded[key]
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _block(node: onnx.NodeProto, kinds: dict[str, int]) -> int:
    """Return values that share a scale, 0 if the node rounds by itself or not at all."""
    if node.op_type != "MatMulNBits" or len(node.input) < 4:
        return 0
    attributes = {item.name: item.i for item in node.attribute}
    size = attributes.get("block_size", 0)
    is_float = kinds.get(node.input[3]) in _FLOATS
    allowed = attributes.get("accuracy_level", 0) == 4
    return size if allowed and is_float and size and attributes.get("K", 1) % size == 0 else 0


def _round(
    graph: onnx.GraphProto, value: str, size: int, name: str, opset: int
) -> list[onnx.NodeProto]:
    def constant(label: str, data: list[int] | float) -> str:
        kind = TensorProto.INT64 if isinstance(data, list) else TensorProto.FLOAT
        values = data if isinstance(data, list) else [data]
        dims = [len(values)] if isinstance(data, list) else []
        graph.initializer.append(helper.make_tensor(f"{name}.{label}", kind, dims, values))
        return f"{name}.{label}"

    axes = [constant("axes", [-1])] if opset >= _AXES_INPUT else []
    attributes = {} if axes else {"axes": [-1]}
    largest = constant("largest", float(_LARGEST))
    # Blocks of zeros stay zeros.
    least = constant("least", 1e-30)
    blocks, peak, scale = f"{name}.blocks", f"{name}.peak", f"{name}.scale"
    steps, whole = f"{name}.steps", f"{name}.whole"
    make = helper.make_node
    return [
        make("Shape", [value], [f"{name}.shape"]),
        make("Reshape", [value, constant("split", [-1, size])], [blocks]),
        make("Abs", [blocks], [f"{name}.abs"]),
        make("ReduceMax", [f"{name}.abs", *axes], [f"{name}.max"], keepdims=1, **attributes),
        make("Max", [f"{name}.max", least], [peak]),
        make("Div", [peak, largest], [scale]),
        make("Div", [blocks, scale], [steps]),
        make("Round", [steps], [f"{name}.rounded"]),
        make("Mul", [f"{name}.rounded", scale], [whole]),
        make("Reshape", [whole, f"{name}.shape"], [name]),
    ]
