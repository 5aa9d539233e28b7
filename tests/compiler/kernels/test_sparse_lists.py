"""Sparse products and convolutions against ONNX Runtime, over odd shapes and patterns."""

from pathlib import Path

import numpy as np
import pytest
from support.kernel_runs import X86_TARGETS, Branch, check_branches, random_decisions
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.cli.main import main
from edgec.compiler.kernels.sparse_lists import make_lists


def sparse(*shape: int, axis: int, density: float = 0.2, seed: int = 0) -> np.ndarray:
    """Weights in which 16 neighbours along the axis of outputs are zero at once."""
    generator = np.random.default_rng(seed)
    weight = np.moveaxis(random(*shape, seed=seed), axis, -1)
    blocks = -(-shape[axis] // 16)
    kept = generator.random((*weight.shape[:-1], blocks)) < density
    weight = weight * np.repeat(kept, 16, axis=-1)[..., : shape[axis]]
    return np.ascontiguousarray(np.moveaxis(weight, -1, axis)).astype(np.float32)


def product(m: int, k: int, n: int, weight: np.ndarray | None = None) -> Branch:
    weight = sparse(k, n, axis=1) if weight is None else weight
    nodes = [
        node("MatMul", ["x", "w"], ["p"]),
        node("Add", ["p", "b"], ["s"]),
        node("Relu", ["s"], ["y"]),
    ]
    return Branch(nodes, {"x": (m, k)}, ["sparse_matmul"], {"w": weight, "b": random(n, seed=7)})


def empty_blocks() -> np.ndarray:
    weight = sparse(96, 70, axis=1)
    weight[:, 16:48] = 0
    weight[::3] = 0
    return weight


PRODUCTS = {
    "one row": product(1, 512, 64),
    "odd": product(7, 100, 75),
    "rows of several tiles": product(45, 64, 96),
    "empty blocks": product(19, 96, 70, empty_blocks()),
    "one input": product(5, 64, 48, np.pad(random(1, 48), ((40, 23), (0, 0)))),
    "batched": Branch(
        [node("MatMul", ["x", "w"], ["y"])],
        {"x": (2, 9, 64)},
        ["sparse_matmul"],
        {"w": sparse(64, 80, axis=1)},
    ),
}


def convolution(
    channels: int, outputs: int, window: int, extent: int, density: float = 0.15, **attributes: int
) -> Branch:
    weight = sparse(outputs, channels, window, window, axis=0, density=density)
    pads = [window // 2] * 4
    given = {key: [value] * 2 for key, value in attributes.items()}
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=pads, **given),
        node("Sigmoid", ["c"], ["y"]),
    ]
    weights = {"w": weight, "b": random(outputs, seed=3)}
    shape = (2, channels, extent, extent + 3)
    return Branch(nodes, {"x": shape}, ["sparse_conv"], weights)


CONVOLUTIONS = {
    "1x1": convolution(48, 64, 1, 9),
    "1x1, odd channels": convolution(50, 37, 1, 7),
    "3x3": convolution(40, 48, 3, 11),
    "3x3, small image": convolution(64, 64, 3, 4),
    "3x3, strided": convolution(48, 48, 3, 12, strides=2),
    "3x3, dilated": convolution(32, 40, 3, 13, dilations=2),
    "5x5, nearly empty": convolution(32, 32, 5, 10, density=0.02),
}


@pytest.mark.parametrize("target", X86_TARGETS)
def test_products(target: str, tmp_path: Path) -> None:
    check_branches(PRODUCTS, target, tmp_path)


@pytest.mark.parametrize("target", X86_TARGETS)
def test_convolutions(target: str, tmp_path: Path) -> None:
    check_branches(CONVOLUTIONS, target, tmp_path)


def test_any_decision(tmp_path: Path) -> None:
    check_branches({**PRODUCTS, **CONVOLUTIONS}, "native", tmp_path, random_decisions(1))


def test_lists_without_entries() -> None:
    lists = make_lists(np.zeros((2, 5, 4), np.float32), np.arange(5))
    assert lists.entries == 1
    assert lists.starts.tolist() == [0, 0, 0]
    assert not lists.values.any()


@pytest.mark.parametrize("target", ["rpi4", "rpi5"])
def test_on_a_board_under_qemu(target: str, tmp_path: Path) -> None:
    weights = {
        "w": sparse(48, 32, 3, 3, axis=0),
        "b": random(48),
        "odd": sparse(37, 48, 3, 3, axis=0, density=0.1),
        "one": sparse(512, 37, 1, 1, axis=0),
        "matrix": sparse(512, 70, axis=1),
    }
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4),
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "odd"], ["d"], pads=[1] * 4, strides=[2, 2]),
        node("Conv", ["d", "one"], ["e"]),
        node("GlobalAveragePool", ["e"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("MatMul", ["f", "matrix"], ["y"]),
    ]
    path = save(make_model(nodes, {"x": (1, 32, 9, 11)}, ["y"], weights), tmp_path)
    options = CompileOptions(runner=True, dump=tmp_path / "dump")
    bundle = compile_model(path, target, options, output=tmp_path / "model.edgec")
    packed = next((tmp_path / "dump").glob("*-pack.py")).read_text()
    assert packed.count("sparse_conv") == 3
    assert packed.count("sparse_matmul") == 1
    command = ["board", "exec", f"qemu-{target}", str(bundle.path / "run"), "--verify"]
    assert main(command) == 0
    expected = bundle.path / "vectors/0/output-0.npy"
    np.save(expected, np.load(expected) * np.float32(1.01))
    assert main(command) == 1
