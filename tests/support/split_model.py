"""A small model over two stages, and its plan: a stage reads an input and what the other gives."""

from pathlib import Path

import numpy as np
import onnx
from support.onnx_graphs import make_model, node

from edgec.compiler.options import CompileOptions
from edgec.compiler.split.devices import StageRequest, parse_devices
from edgec.compiler.split.split_model import split_model
from edgec.targets import load_target

FEATURES = 24


def graph() -> onnx.ModelProto:
    """Return x, y -> hidden, z: hidden is computed by stage a, z by stage b of hidden and y."""
    random = np.random.default_rng(0)
    weights = {
        name: random.standard_normal((FEATURES, FEATURES)).astype(np.float32) / 5
        for name in ("u", "v")
    }
    nodes = [
        node("MatMul", ["x", "u"], ["xu"]),
        node("Relu", ["xu"], ["hidden"]),
        node("MatMul", ["hidden", "v"], ["hv"]),
        node("Add", ["hv", "y"], ["z"]),
    ]
    shape = [1, FEATURES]
    return make_model(nodes, {"x": shape, "y": shape}, ["hidden", "z"], weights)


def write_plan(folder: Path, devices: str = "a=native,b=native") -> Path:
    """Compile stages and the whole model into the folder of a plan."""
    file = folder.with_suffix(".onnx")
    onnx.save(graph(), file)
    split_model(
        file,
        parse_devices(devices),
        CompileOptions(runner=True),
        output=folder,
        stages=(StageRequest(device="a", until=("hidden",)), StageRequest(device="b")),
        whole=load_target("native"),
    )
    return folder
