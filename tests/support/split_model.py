"""A small model over two stages, and its plan: a stage reads an input and what the other gives."""

from pathlib import Path

import numpy as np
import onnx
from support.onnx_graphs import make_model, node

from edgec.compiler.options import CompileOptions
from edgec.compiler.pipeline import compile_model
from edgec.compiler.split.plan import Plan

FEATURES = 24


def whole_graph() -> onnx.ModelProto:
    """Return x, y -> hidden, z: hidden is computed by stage a, z by stage b of hidden and y."""
    return _graph("ab")


def _graph(stages: str) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    weights = {
        name: random.standard_normal((FEATURES, FEATURES)).astype(np.float32) / 5
        for name in ("u", "v")
    }
    first = [node("MatMul", ["x", "u"], ["xu"]), node("Relu", ["xu"], ["hidden"])]
    second = [node("MatMul", ["hidden", "v"], ["hv"]), node("Add", ["hv", "y"], ["z"])]
    shape = [1, FEATURES]
    if stages == "a":
        return make_model(first, {"x": shape}, ["hidden"], {"u": weights["u"]})
    if stages == "b":
        return make_model(second, {"hidden": shape, "y": shape}, ["z"], {"v": weights["v"]})
    return make_model([*first, *second], {"x": shape, "y": shape}, ["hidden", "z"], weights)


def write_plan(folder: Path, targets: tuple[str, str] = ("native", "native")) -> Path:
    """Compile the stages and the whole model, and write the plan."""
    folder.mkdir()
    for name, target in (("a", targets[0]), ("b", targets[1]), ("whole", "native")):
        file = folder.parent / f"{name}.onnx"
        onnx.save(_graph("ab" if name == "whole" else name), file)
        compile_model(file, target, CompileOptions(runner=True), output=folder / f"{name}.edgec")
        file.unlink()
    Plan.model_validate(fields(targets)).write(folder)
    return folder


def fields(targets: tuple[str, str] = ("native", "native")) -> dict[str, object]:
    """Return what plan.json holds."""
    shape, kind = (1, FEATURES), "float32"
    tensors = [{"name": name, "dtype": kind, "shape": shape} for name in ("x", "y", "hidden", "z")]
    x, y, hidden, z = tensors
    return {
        "model": {"name": "small", "sha256": "0" * 64},
        "whole": "whole.edgec",
        "programs": [
            {
                "name": "",
                "inputs": [x, y],
                "outputs": [hidden, z],
                "stages": [
                    {
                        "device": "a",
                        "target": targets[0],
                        "bundle": "a.edgec",
                        "inputs": ["x"],
                        "outputs": ["hidden"],
                    },
                    {
                        "device": "b",
                        "target": targets[1],
                        "bundle": "b.edgec",
                        "inputs": ["hidden", "y"],
                        "outputs": ["z"],
                    },
                ],
                "values": [
                    {**x, "from": "host", "to": ["a"]},
                    {**y, "from": "host", "to": ["b"]},
                    {**hidden, "from": "a", "to": ["b", "host"]},
                    {**z, "from": "b", "to": ["host"]},
                ],
            }
        ],
    }
