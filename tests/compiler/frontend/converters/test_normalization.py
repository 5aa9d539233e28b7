"""Normalizations and softmax against ONNX Runtime, through the whole compile."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.kernel_runs import compile_graph
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.errors import UnsupportedModelError


def compiled(folder: Path, model: Any, stages: bool = True) -> None:
    """Compile, which compares with ONNX Runtime, after each stage if asked."""
    options = CompileOptions(check_stages=stages)
    compile_model(save(model, folder), options=options, output=folder / "model.edgec")


def test_layer_normalization(tmp_path: Path) -> None:
    """Every axis; parameters constant, computed, of fewer dimensions and left out."""
    nodes = [
        node("LayerNormalization", ["x", "s4"], ["a"], axis=0),
        node("LayerNormalization", ["x", "s2", "b2"], ["b"], axis=-2, epsilon=1e-3),
        node("LayerNormalization", ["x", "s1", "p"], ["c"], axis=-1),
        node("LayerNormalization", ["x", "p", "s1"], ["d", "mean", "inverse"], axis=1),
        node("LayerNormalization", ["x", "s1", "s1"], ["e", "", "inverse_e"], axis=-1),
    ]
    weights = {
        "s4": random(2, 3, 4, 5),
        "s2": random(4, 5),
        "b2": random(4, 5, seed=1),
        "s1": random(5),
    }
    outputs = ["a", "b", "c", "d", "mean", "inverse", "e", "inverse_e"]
    compiled(tmp_path, make_model(nodes, {"x": [2, 3, 4, 5], "p": [5]}, outputs, weights))


def test_layer_normalization_far_from_zero(tmp_path: Path) -> None:
    """Our kernel's variance of numbers near 30 does not cancel; that of TVM's own code does."""
    nodes = [
        node("Add", ["x", "shift"], ["near"]),
        node("LayerNormalization", ["near", "s"], ["y"]),
        node("InstanceNormalization", ["near", "s3", "s3"], ["z"]),
    ]
    weights = {"shift": np.float32(30), "s": random(50), "s3": random(3)}
    compiled(tmp_path, make_model(nodes, {"x": [2, 3, 50]}, ["y", "z"], weights), stages=False)


def test_by_channels(tmp_path: Path) -> None:
    nodes = [
        node("GroupNormalization", ["x", "s6", "b6"], ["a"], num_groups=2),
        node("GroupNormalization", ["x", "s6", "p"], ["b"], num_groups=6, epsilon=1e-2),
        node("InstanceNormalization", ["x", "s6", "b6"], ["c"]),
        node("BatchNormalization", ["x", "s6", "b6", "p", "v6"], ["f"]),
        node("InstanceNormalization", ["line", "s6", "p"], ["g"]),
        node("MeanVarianceNormalization", ["x"], ["h"]),
        node("MeanVarianceNormalization", ["x"], ["i"], axes=[-1, 1]),
    ]
    weights = {"s6": random(6), "b6": random(6, seed=1), "v6": np.abs(random(6, seed=2))}
    inputs = {"x": [2, 6, 5, 7], "p": [6], "line": [3, 6, 9]}
    compiled(tmp_path, make_model(nodes, inputs, list("abcfghi"), weights, opset=21))


@pytest.mark.parametrize("size", [3, 4])
def test_lrn(tmp_path: Path, size: int) -> None:
    """Against the formula: ONNX Runtime reads beside its buffer in the last channel."""
    nodes = [node("LRN", ["x"], ["y"], size=size, alpha=0.5, beta=0.6, bias=2.0)]
    built = compile_graph(make_model(nodes, {"x": [2, 6, 5, 7]}, ["y"]), "native", tmp_path)
    inputs = built.inputs()
    x, before = inputs["x"], (size - 1) // 2
    squares = np.pad(x * x, ((0, 0), (before, size - 1 - before), (0, 0), (0, 0)))
    total = sum(squares[:, offset : offset + 6] for offset in range(size))
    expected = x / (2 + 0.5 / size * total) ** 0.6
    np.testing.assert_allclose(built.open().run(inputs)["y"], expected, rtol=1e-5)


def test_batch_normalization_in_training_mode(tmp_path: Path) -> None:
    outputs = ["y", "mean", "variance"]
    inputs = ["x", "s", "b", "m", "v"]
    nodes = [node("BatchNormalization", inputs, outputs, training_mode=1, momentum=0.7)]
    weights = {"s": random(6), "b": random(6, seed=1), "v": np.abs(random(6, seed=2))}
    model = make_model(nodes, {"x": [4, 6, 5, 7], "m": [6]}, outputs, weights)
    compiled(tmp_path, model)


def test_rms_normalization(tmp_path: Path) -> None:
    nodes = [
        node("RMSNormalization", ["x", "s3"], ["a"], axis=0),
        node("RMSNormalization", ["x", "s1"], ["b"], epsilon=1e-2),
        node("RMSNormalization", ["x", "p"], ["c"], axis=-2),
    ]
    weights = {"s3": random(3, 4, 5), "s1": random(5)}
    inputs = {"x": [3, 4, 5], "p": [4, 1]}
    compiled(tmp_path, make_model(nodes, inputs, list("abc"), weights, opset=23))


@pytest.mark.parametrize("opset", [11, 13])
def test_softmax(tmp_path: Path, opset: int) -> None:
    """Until operator set 12, all axes from the given one on are one."""
    nodes = [
        node(kind, ["x"], [f"{kind}{i}"], **attributes)
        for kind in ("Softmax", "LogSoftmax")
        for i, attributes in enumerate(({}, {"axis": 0}, {"axis": 2}, {"axis": -2}))
    ]
    outputs = [item.output[0] for item in nodes]
    compiled(tmp_path, make_model(nodes, {"x": [2, 3, 4, 5]}, outputs, opset=opset))


@pytest.mark.parametrize(
    ("operator", "opset", "message"),
    [
        (node("BatchNormalization", ["x", *"ssss"], ["y"], spatial=0), 7, "spatial=0"),
        (node("BatchNormalization", ["x", *"ssss"], list("ymvno")), 9, "training mode"),
        (node("LayerNormalization", ["x", "s"], ["y"], stash_type=16), 17, "stash_type BFLOAT16"),
        (node("GroupNormalization", ["x", "s", "s"], ["y"], num_groups=4), 21, "6 channels"),
    ],
)
def test_refusals(tmp_path: Path, operator: Any, opset: int, message: str) -> None:
    model = make_model([operator], {"x": [2, 6, 6]}, ["y"], {"s": random(6)}, opset=opset)
    with pytest.raises(UnsupportedModelError, match=message):
        compile_model(save(model, tmp_path), output=tmp_path / "x.edgec")
