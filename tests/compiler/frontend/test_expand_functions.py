"""Operators without a converter are computed as the bodies that ONNX gives them."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.frontend.expand_functions import expand_functions


def test_bodies_compute_what_onnxruntime_computes(tmp_path: Path) -> None:
    """A fixed body, one that depends on attributes, and one on types and left-out inputs."""
    nodes = [
        node("Celu", ["x"], ["a"], alpha=0.7),
        node("CenterCropPad", ["a", "size"], ["b"], axes=[0, 1]),
        node("RotaryEmbedding", ["q", "cos", "sin"], ["c"], num_heads=2),
    ]
    inputs = {"x": [4, 9], "q": [1, 3, 16]}
    weights = {
        "size": np.array([6, 5], np.int64),
        "cos": random(1, 3, 4),
        "sin": random(1, 3, 4),
    }
    path = save(make_model(nodes, inputs, ["b", "c"], weights, opset=23), tmp_path)
    compile_model(path, options=CompileOptions(), output=tmp_path / "model.edgec")


def test_a_body_of_functions_and_one_in_a_branch() -> None:
    """SwiGLU is made of Swish; subgraphs are looked through too."""
    branch = make_model([node("Swish", ["x"], ["z"])], {}, ["z"], {}, opset=28).graph
    nodes = [
        node("SwiGLU", ["x", "g"], ["h"]),
        node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
    ]
    model = make_model(nodes, {"x": [4], "g": [4]}, ["h", "y"], {"c": np.array(True)}, opset=28)
    graph = ir.from_proto(model)
    expand_functions(graph)
    found = {item.op_type for item in graph.graph.all_nodes()}
    assert "Sigmoid" in found
    inside = {item.op_type for item in graph.graph.all_nodes() if item.graph is not graph.graph}
    assert "Sigmoid" in inside
    assert not {"SwiGLU", "Swish"} & found
    assert not graph.functions
