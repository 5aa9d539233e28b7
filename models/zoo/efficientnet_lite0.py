"""Provide EfficientNet-Lite0, an ImageNet classifier, around the weights of a PyTorch file.

The network is EfficientNet-B0 (Tan and Le, 2019, arXiv:1905.11946, table 1) without squeeze and
excitation and with ReLU6 for Swish. Its weights come from TensorFlow, whence the padding "SAME":
with stride 2 the right and lower edges get more than the left and upper ones.

`image` is RGB, (value - 127) / 128, [batch, 3, 224, 224]; `logits` are [batch, 1000].
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgec.compiler.support.graph_builder import GraphBuilder
from edgec.models.zoo.torch_file import read_torch

IMAGE_SIZE = 224
NORM_EPSILON = 1e-3
# Blocks and first stride of each stage. Channels, kernels and expansion show in the weights.
STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))


def build(data: bytes) -> onnx.ModelProto:
    """Return the ONNX model of a weight file."""
    return build_graph(read_torch(data))


def build_graph(weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Return the ONNX model of the weights; narrower networks of the same depth work too."""
    return _Network(weights).model()


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's "SAME": pixels before and after, so that `ceil(size / stride)` come out.

    >>> same_padding(224, 3, 2), same_padding(56, 5, 2), same_padding(56, 5, 1)
    ((0, 1), (1, 2), (2, 2))
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class _Network:
    """Writes the layers in order; `size` is the height and width of the last value."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self.weights = weights
        self.graph = GraphBuilder()
        self.size = IMAGE_SIZE

    def model(self) -> onnx.ModelProto:
        value = self.convolution("image", "_conv_stem", "_bn0", "stem", stride=2)
        block = 0
        for repeats, first_stride in STAGES:
            for repeat in range(repeats):
                value = self.block(value, block, stride=1 if repeat else first_stride)
                block += 1
        value = self.convolution(value, "_conv_head", "_bn1", "head")
        value = self.graph.node("GlobalAveragePool", [value], "pool")
        value = self.graph.node("Flatten", [value], "features", axis=1)
        classes = self.weights["_fc.bias"].shape[0]
        self.graph.node(
            "Gemm",
            [value, self.parameter("_fc.weight"), self.parameter("_fc.bias")],
            "logits",
            transB=1,
        )
        shape = ["batch", 3, IMAGE_SIZE, IMAGE_SIZE]
        return self.graph.model(
            "efficientnet-lite0",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        )

    def block(self, value: str, index: int, stride: int) -> str:
        """Return inverted residual: expand, filter each channel, project.

        Skip where shapes agree.
        """
        source, scope = f"_blocks.{index}", f"block{index}"
        result = value
        if f"{source}._expand_conv.weight" in self.weights:
            result = self.convolution(
                result, f"{source}._expand_conv", f"{source}._bn0", f"{scope}.expand"
            )
        result = self.convolution(
            result,
            f"{source}._depthwise_conv",
            f"{source}._bn1",
            f"{scope}.depthwise",
            stride=stride,
            depthwise=True,
        )
        result = self.convolution(
            result,
            f"{source}._project_conv",
            f"{source}._bn2",
            f"{scope}.project",
            activation=False,
        )
        if stride != 1 or self.block_input(source) != self.block_output(source):
            return result
        return self.graph.node("Add", [result, value], f"{scope}.add")

    def block_input(self, source: str) -> int:
        expand = self.weights.get(f"{source}._expand_conv.weight")
        if expand is not None:
            return int(expand.shape[1])
        return int(self.weights[f"{source}._depthwise_conv.weight"].shape[0])

    def block_output(self, source: str) -> int:
        return int(self.weights[f"{source}._project_conv.weight"].shape[0])

    def convolution(
        self,
        value: str,
        convolution: str,
        norm: str,
        scope: str,
        *,
        stride: int = 1,
        depthwise: bool = False,
        activation: bool = True,
    ) -> str:
        """Return convolution, batch normalization as it was trained, and ReLU6 if asked for."""
        channels, _, kernel, _ = self.weights[f"{convolution}.weight"].shape
        before, after = same_padding(self.size, kernel, stride)
        value = self.graph.node(
            "Conv",
            [value, self.parameter(f"{convolution}.weight")],
            f"{scope}.conv",
            group=channels if depthwise else 1,
            kernel_shape=[kernel, kernel],
            pads=[before, before, after, after],
            strides=[stride, stride],
        )
        self.size = -(-self.size // stride)
        value = self.graph.node(
            "BatchNormalization",
            [
                value,
                *(
                    self.parameter(f"{norm}.{part}")
                    for part in ("weight", "bias", "running_mean", "running_var")
                ),
            ],
            f"{scope}.norm",
            epsilon=NORM_EPSILON,
        )
        if not activation:
            return value
        limits = [self.graph.number(0.0), self.graph.number(6.0)]
        return self.graph.node("Clip", [value, *limits], f"{scope}.relu6")

    def parameter(self, name: str) -> str:
        return self.graph.weight(name, self.weights[name])
