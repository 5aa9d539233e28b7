"""Provide a classifier of the 28x28 digits around its weights, `digits28.npz`.

Four convolutions, of which three halve the image, global pooling and a linear layer: 316,000
weights. They are stored as int8 with a scale for each output channel; the network is the float
one that they stand for. `train_digits28.py` makes the file.

`image` is [batch, 1, 28, 28] in 0..1, white on black; `logits` are [batch, 10].
"""

import io
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgec.compiler.support.graph_builder import GraphBuilder

LAYERS = (("conv0", 32, 1), ("conv1", 64, 2), ("conv2", 128, 2), ("conv3", 192, 2))
"""Name, channels and stride of the convolutions, 3x3."""

CLASSES = 10


def build(data: bytes) -> onnx.ModelProto:
    """Return the ONNX model of a weight file."""
    return build_graph(unpack_weights(data))


def pack_weights(weights: Mapping[str, np.ndarray]) -> bytes:
    """Return the file of float weights, rounded: output channels are their first axis."""
    arrays = {}
    for name, array in weights.items():
        if array.ndim == 1:
            arrays[name] = array
            continue
        scales = np.abs(array).max(axis=tuple(range(1, array.ndim)), keepdims=True) / 127
        arrays[f"{name} codes"] = np.rint(array / scales).astype(np.int8)
        arrays[f"{name} scales"] = scales.astype(np.float32)
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def unpack_weights(data: bytes) -> dict[str, np.ndarray]:
    """Return float weights of a file."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        weights = {name: file[name] for name in file.files if " " not in name}
        for name in file.files:
            base, _, part = name.partition(" ")
            if part == "codes":
                weights[base] = file[name] * file[f"{base} scales"]
    return weights


def build_graph(weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Return the ONNX model of float weights."""
    graph = GraphBuilder()
    value = "image"
    for name, _, stride in LAYERS:
        operands = [graph.weight(f"{name}.{part}", weights[f"{name}.{part}"]) for part in _PARTS]
        convolved = graph.node(
            "Conv",
            [value, *operands],
            name,
            pads=[1] * 4,
            strides=[stride] * 2,
            kernel_shape=[3, 3],
        )
        value = graph.node("Relu", [convolved], f"relu_{name}")
    value = graph.node("GlobalAveragePool", [value], "pooled")
    value = graph.node("Flatten", [value], "features")
    operands = [graph.weight(f"linear.{part}", weights[f"linear.{part}"]) for part in _PARTS]
    graph.node("Gemm", [value, *operands], "logits", transB=1)
    return graph.model(
        "digits28",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
    )


_PARTS = ("weight", "bias")
