"""Train the digits classifier and write `digits.onnx`.

A small convolutional network on the 8x8 digits that scikit-learn ships (UCI ML hand-written
digits, 1,797 images). It gives accuracy tests a true figure with no download. Needs torch and
scikit-learn, which edgec itself does not:

    python models/training/train_digits.py

The graph is written operator by operator, with batch normalization in place, as a trained model
comes to a compiler.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from torch import nn

SEED = 0
EPOCHS = 60
TEST_IMAGES = 450
CHANNELS = (16, 32, 64)


def split_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training and test images [N, 1, 8, 8] in [0, 1], and their labels.

    The last `TEST_IMAGES` are the test set: the set is in the order of collection, so most of
    their writers are not among those of the training images.
    """
    data = load_digits()
    images = (data.images / 16).astype(np.float32)[:, None]
    labels = data.target.astype(np.int64)
    return (
        images[:-TEST_IMAGES],
        labels[:-TEST_IMAGES],
        images[-TEST_IMAGES:],
        labels[-TEST_IMAGES:],
    )


def build_network() -> nn.Sequential:
    """Return three convolutions with batch normalization, global pooling, one linear layer."""
    layers: list[nn.Module] = []
    before = 1
    for index, channels in enumerate(CHANNELS):
        stride = 2 if index == 2 else 1
        layers += [
            nn.Conv2d(before, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
        before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def train(network: nn.Sequential, images: np.ndarray, labels: np.ndarray) -> None:
    """Train by cross entropy, Adam and a one-cycle schedule.

    Images are shifted by up to one pixel.
    """
    optimizer = torch.optim.Adam(network.parameters(), 1e-2, weight_decay=1e-4)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    batches = len(x) // 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, EPOCHS * batches)
    for _ in range(EPOCHS):
        order = torch.randperm(len(x))
        for batch in range(batches):
            chosen = order[batch * 64 : batch * 64 + 64]
            dy, dx = (int(shift) for shift in torch.randint(-1, 2, (2,)))
            shifted = torch.roll(x[chosen], (dy, dx), (2, 3))
            loss = nn.functional.cross_entropy(network(shifted), y[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def to_onnx(network: nn.Sequential) -> onnx.ModelProto:
    """Return the trained network as an ONNX graph with an open batch dimension."""
    nodes, weights = [], []

    def weight(name: str, tensor: torch.Tensor) -> str:
        weights.append(numpy_helper.from_array(tensor.detach().numpy(), name))
        return name

    value = "image"
    for index in range(len(CHANNELS)):
        conv, norm = network[3 * index], network[3 * index + 1]
        kernel = weight(f"conv{index}.weight", conv.weight)
        nodes.append(
            helper.make_node(
                "Conv",
                [value, kernel],
                [f"conv{index}"],
                name=f"conv{index}",
                pads=[1] * 4,
                strides=list(conv.stride),
                kernel_shape=[3, 3],
            )
        )
        statistics = [
            weight(f"norm{index}.{name}", tensor)
            for name, tensor in (
                ("scale", norm.weight),
                ("bias", norm.bias),
                ("mean", norm.running_mean),
                ("variance", norm.running_var),
            )
        ]
        nodes.append(
            helper.make_node(
                "BatchNormalization",
                [f"conv{index}", *statistics],
                [f"norm{index}"],
                name=f"norm{index}",
                epsilon=norm.eps,
            )
        )
        value = f"relu{index}"
        nodes.append(helper.make_node("Relu", [f"norm{index}"], [value], name=value))
    linear = network[-1]
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["features"], name="flatten"),
        helper.make_node(
            "Gemm",
            [
                "features",
                weight("linear.weight", linear.weight),
                weight("linear.bias", linear.bias),
            ],
            ["logits"],
            name="linear",
            transB=1,
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="edgec"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    """Train, report the accuracy on the test images, write the file."""
    torch.manual_seed(SEED)
    train_images, train_labels, test_images, test_labels = split_digits()
    network = build_network()
    train(network, train_images, train_labels)
    network.eval()
    with torch.no_grad():
        answers = network(torch.from_numpy(test_images)).argmax(1).numpy()
    print(f"top-1 on {len(test_labels)} test images: {(answers == test_labels).mean():.4f}")
    path = Path(__file__).parent.parent / "zoo" / "digits.onnx"
    onnx.save(to_onnx(network), path)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
