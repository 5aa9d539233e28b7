"""Provide models of operator sets before 7: converted, as no runtime promises to run them."""

import onnx
import onnx.version_converter

# The oldest operator set that ONNX Runtime promises to run. Since then, operands broadcast as in
# NumPy.
CONVERTED_OPSET = 7


def convert_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of an older model in `CONVERTED_OPSET`.

    Raises:
        RuntimeError, ValueError, onnx.checker.ValidationError: the converter cannot.
    """
    older = onnx.ModelProto()
    older.CopyFrom(model)
    # The converter adds initializers that are no inputs, which version 3 does not know.
    older.ir_version = max(older.ir_version, 4)
    _stretch_slopes(older)
    converted = onnx.version_converter.convert_version(older, CONVERTED_OPSET)
    onnx.checker.check_model(converted)
    return converted


def _stretch_slopes(model: onnx.ModelProto) -> None:
    """Give PRelu's slope of each channel the shape [C, 1, ...] that broadcasts against [N, C, ...].

    Until version 7 a slope [C] goes along the channels, since then along the last dimension. The
    converter leaves it as it is.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: value.type.tensor_type.shape.dim
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    shapes.update({tensor.name: tensor.dims for tensor in graph.initializer})
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        if node.op_type == "PRelu":
            data, slope = node.input
            if data not in shapes or slope not in shapes:
                raise ValueError(f"PRelu ({node.name or node.output[0]}) has an unknown rank")
            channels_only = len(shapes[slope]) == 1 and shapes[slope][0] != 1
            axes = list(range(1, len(shapes[data]) - 1))
            if channels_only and axes:
                name = f"{node.output[0]}_slope"
                stretch = onnx.helper.make_node("Unsqueeze", [slope], [name], axes=axes)
                model.graph.node.append(stretch)
                node.input[1] = name
        model.graph.node.append(node)
