"""Attention, rotary embeddings and losses against ONNX Runtime or ONNX's own evaluator."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from support.kernel_runs import compile_graph
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.errors import UnsupportedModelError


def compiled(folder: Path, model: Any) -> None:
    """Compile, which compares with ONNX Runtime after each stage."""
    options = CompileOptions(check_stages=True)
    compile_model(save(model, folder), options=options, output=folder / "model.edgec")


def evaluated(folder: Path, model: Any, inputs: dict[str, np.ndarray]) -> None:
    """Compile, run, and compare with ONNX's own evaluator.

    Every output needs a name: the evaluator takes what it finds under none for an input left out.
    """
    actual = compile_graph(model, "native", folder).open().run(inputs)
    names = [value.name for value in model.graph.output]
    for name, expected in zip(names, ReferenceEvaluator(model).run(None, inputs), strict=True):
        np.testing.assert_allclose(actual[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)


def logits(inputs: list[str], outputs: list[str], mode: int, **attributes: Any) -> Any:
    """Attention with its intermediate result."""
    return node("Attention", inputs, outputs, qk_matmul_output_mode=mode, **attributes)


def test_attention(tmp_path: Path) -> None:
    q, kv, flat = [2, 4, 3, 8], [2, 2, 5, 8], [2, 3, 32]
    truth = np.random.default_rng(0).random((3, 5)) < 0.6
    truth[1] = False
    inputs = {"q": q, "k": kv, "v": [2, 2, 5, 6], "f": flat, "m": [2, 1, 3, 5], "pk": [2, 2, 4, 8]}
    nodes = [
        node("Attention", ["q", "k", "v"], ["a"]),
        node("Attention", ["q", "k", "v"], ["b"], is_causal=1, scale=0.3),
        logits(["q", "k", "v", "m"], ["c", "c1", "c2", "qk"], 1, softcap=2.0),
        logits(["q", "k", "v", "truth"], ["d", "d1", "d2", "p"], 3),
        node("Attention", ["f", "f", "f"], ["e"], q_num_heads=4, kv_num_heads=2),
        node("Attention", ["q", "k", "k", "", "pk", "pk"], ["g", "h", "i"], is_causal=1),
        logits(["q", "k", "v", "m"], ["j", "j1", "j2", "l"], 2),
    ]
    nodes[4].input[1] = nodes[4].input[2] = "half"
    inputs["half"] = [2, 3, 16]
    outputs = ["a", "b", "c", "qk", "d", "p", "e", "g", "h", "i", "j", "l"]
    model = make_model(nodes, inputs, outputs, {"truth": truth}, opset=23)
    feeds = {name: random(*shape, seed=i) for i, (name, shape) in enumerate(inputs.items())}
    evaluated(tmp_path, model, feeds)


def test_attention_that_sees_nothing_gives_zeros(tmp_path: Path) -> None:
    """Masks that are only known at run time."""
    inputs = {"q": [2, 2, 3, 8], "k": [2, 2, 5, 8], "m": [3, 5], "n": [2]}
    kinds = {"m": TensorProto.BOOL, "n": TensorProto.INT64}
    nodes = [
        logits(["q", "k", "k", "m"], ["a", "a1", "a2", "b"], 3),
        node("Attention", ["q", "k", "k", "", "", "", "n"], ["c"], is_causal=1),
    ]
    model = make_model(nodes, inputs, ["a", "b", "c"], opset=24, dtypes=kinds)
    mask = np.random.default_rng(0).random((3, 5)) < 0.5
    mask[2] = False
    feeds = {"q": random(2, 2, 3, 8), "k": random(2, 2, 5, 8, seed=1), "m": mask}
    evaluated(tmp_path, model, feeds | {"n": np.array([2, 4])})


def test_attention_window(tmp_path: Path) -> None:
    nodes = [
        node("Attention", ["q", "k", "k"], ["a"], left_window_size=1, right_window_size=2),
        node("Attention", ["q", "k", "k"], ["b"], left_window_size=2, is_causal=1),
    ]
    model = make_model(nodes, {"q": [1, 2, 4, 8], "k": [1, 2, 6, 8]}, ["a", "b"], opset=25)
    evaluated(tmp_path, model, {"q": random(1, 2, 4, 8), "k": random(1, 2, 6, 8, seed=1)})


def test_rotary_embedding(tmp_path: Path) -> None:
    nodes = [
        node("RotaryEmbedding", ["x", "cos", "sin", "ids"], ["a"]),
        node("RotaryEmbedding", ["x", "cos", "sin", "ids"], ["b"], interleaved=1),
        node("RotaryEmbedding", ["x", "c2", "s2"], ["c"], rotary_embedding_dim=4),
        node("RotaryEmbedding", ["f", "cos", "sin", "ids"], ["d"], num_heads=3),
    ]
    weights = {
        "cos": random(10, 4),
        "sin": random(10, 4, seed=1),
        "c2": random(2, 5, 2),
        "s2": random(2, 5, 2, seed=1),
        "ids": np.array([[0, 3, 4, 1, 9], [2, 2, 1, 0, 5]]),
    }
    inputs = {"x": [2, 3, 5, 8], "f": [2, 5, 24]}
    compiled(tmp_path, make_model(nodes, inputs, list("abcd"), weights, opset=23))


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
def test_linear_attention(tmp_path: Path, rule: str) -> None:
    inputs = {"q": [2, 3, 16], "k": [2, 3, 8], "v": [2, 3, 6], "s": [2, 2, 4, 3]}
    names = ["q", "k", "v", "s"]
    if "gated" in rule:
        inputs["g"] = [2, 3, 8]
    if "delta" in rule:
        inputs["b"] = [2, 3, 1]
    names += ["g" if "gated" in rule else "", "b" if "delta" in rule else ""]
    attributes = {"q_num_heads": 4, "kv_num_heads": 2, "update_rule": rule}
    nodes = [node("LinearAttention", names, ["y", "t"], **attributes)]
    model = make_model(nodes, inputs, ["y", "t"], opset=27)
    feeds = {name: 0.5 * random(*shape, seed=i) for i, (name, shape) in enumerate(inputs.items())}
    evaluated(tmp_path, model, feeds)


def test_causal_convolution(tmp_path: Path) -> None:
    nodes = [
        node("CausalConvWithState", ["x", "w", "b", "s"], ["y", "t"], activation="silu"),
        node("CausalConvWithState", ["x", "w"], ["z", "u"]),
    ]
    weights = {"w": random(6, 1, 4), "b": random(6)}
    inputs = {"x": [2, 6, 5], "s": [2, 6, 3]}
    model = make_model(nodes, inputs, ["y", "t", "z", "u"], weights, opset=27)
    evaluated(tmp_path, model, {"x": random(2, 6, 5), "s": random(2, 6, 3, seed=1)})


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_losses(tmp_path: Path, reduction: str) -> None:
    nodes, outputs = [], []
    every: list[dict[str, int]] = [{}, {"ignore_index": 2}, {"ignore_index": -1}]
    for kind in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"):
        for weighted in (False, True):
            # Whether they are ignored matters most to what they are divided by.
            for ignored in every if reduction == "mean" else every[1:2]:
                name = f"{kind}{len(nodes)}"
                target = "t" if ignored.get("ignore_index") != -1 else "t_minus"
                names = ["x", target, *(["w"] if weighted else [])]
                nodes.append(node(kind, names, [name], reduction=reduction, **ignored))
                outputs.append(name)
    cross_entropy = next(n for n in nodes if n.op_type == "SoftmaxCrossEntropyLoss")
    cross_entropy.output.append("logarithms")
    outputs.append("logarithms")
    classes = np.random.default_rng(0).integers(0, 5, (3, 4, 2))
    weights = {
        "t": classes,
        "t_minus": np.where(classes == 3, -1, classes),
        "w": np.abs(random(5)),
    }
    compiled(tmp_path, make_model(nodes, {"x": [3, 5, 4, 2]}, outputs, weights))


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (node("Attention", ["q", "k", "k"], ["y"]), "3 query heads cannot share 2 key heads"),
        (node("RotaryEmbedding", ["q", "c", "c"], ["y"]), "caches do not hold 4 angles"),
    ],
)
def test_refusals(tmp_path: Path, operator: Any, message: str) -> None:
    inputs = {"q": [1, 3, 4, 8], "k": [1, 2, 4, 8], "c": [1, 4, 3]}
    model = make_model([operator], inputs, ["y"], opset=23)
    with pytest.raises(UnsupportedModelError, match=message):
        compile_model(save(model, tmp_path), output=tmp_path / "x.edgec")
