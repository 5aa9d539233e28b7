"""The classifier of the 28x28 digits: its weight file, and what it knows."""

from importlib import resources

import numpy as np
from sklearn.datasets import load_digits

from edgec.compiler.support.silent_onnxruntime import onnxruntime
from edgec.models import load_model_recipe
from edgec.models.zoo.digits28 import build_graph, pack_weights, unpack_weights

SIZE, BORDER = 20, 4


def enlarged(images: np.ndarray) -> np.ndarray:
    """8x8 images as 28x28 ones with a border, interpolated."""
    at = np.clip((np.arange(SIZE) + 0.5) * 8 / SIZE - 0.5, 0, 7)
    mix = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(8))).astype(np.float32)
    inner = mix @ images @ mix.T
    return np.pad(inner, ((0, 0), (BORDER, BORDER), (BORDER, BORDER)))[:, None]


def top1(content: bytes) -> float:
    """Share of the 8x8 digits that a model knows: others than it was trained on."""
    data = load_digits()
    images = enlarged((data.images / 16).astype(np.float32))
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": images})
    return float(np.mean(logits.argmax(axis=1) == data.target))


def weight_file() -> bytes:
    return resources.files("edgec.models").joinpath("zoo/digits28.npz").read_bytes()


def test_it_knows_digits_of_another_set() -> None:
    """With its last weights shuffled, which is the control, it guesses."""
    weights = unpack_weights(weight_file())
    assert top1(load_model_recipe("digits28").source.read()) > 0.6
    order = np.random.default_rng(0).permutation(192)
    weights["linear.weight"] = weights["linear.weight"][:, order]
    assert top1(build_graph(weights).SerializeToString()) < 0.4


def test_the_file_is_small_and_the_network_large() -> None:
    assert len(weight_file()) < 500_000
    assert sum(a.size for name, a in unpack_weights(weight_file()).items() if "weight" in name) > (
        300_000
    )


def test_packing_rounds_to_the_nearest() -> None:
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((5, 4, 3, 3), np.float32), "b": np.float32([1, 2])}
    found = unpack_weights(pack_weights(weights))
    step = np.abs(weights["w"]).max(axis=(1, 2, 3), keepdims=True) / 127
    assert np.all(np.abs(found["w"] - weights["w"]) <= 0.501 * step)
    assert np.array_equal(found["b"], weights["b"])
