"""A small model over two stages, and its plan: a stage reads an input and what the other gives."""

from pathlib import Path

import numpy as np
import onnx
from support.onnx_graphs import make_model, node, random, save

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


def save_decoder(folder: Path) -> Path:
    """Write two layers that keep the mean of all they saw, and count how much that was."""
    weights = {"w": random(3, 8), "v": random(8, 8, seed=1), "axes": np.array([1])}
    nodes = [
        node("Add", ["past_length", "last"], ["present_length"]),
        node("Cast", ["present_length"], ["many"], to=onnx.TensorProto.FLOAT),
    ]
    source = "x"
    for layer, weight in enumerate("wv"):
        made = f"{layer}.made"
        nodes += [
            node("MatMul", [source, weight], [f"{layer}.in"]),
            node("Relu", [f"{layer}.in"], [made]),
            node("ReduceMean", [made, "axes"], [f"{layer}.mean"]),
            node("Add", [f"past_key_values.{layer}", f"{layer}.mean"], [f"present.{layer}"]),
            node("Div", [f"present.{layer}", "many"], [f"{layer}.part"]),
            node("Add", [made, f"{layer}.part"], [f"{layer}.out"]),
        ]
        source = f"{layer}.out"
    states = {f"past_key_values.{layer}": [1, 1, 8] for layer in range(2)}
    outputs = [source, "present_length", *(f"present.{layer}" for layer in range(2))]
    dtypes = dict.fromkeys(("past_length", "last", "present_length"), onnx.TensorProto.INT64)
    inputs = {"x": [1, "tokens", 3], "past_length": [1], "last": [1], **states}
    return save(make_model(nodes, inputs, outputs, weights, opset=18, dtypes=dtypes), folder)


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


def write_decoder_plan(folder: Path) -> Path:
    """Compile the stages of `save_decoder`, a layer each, and the whole of it into a plan."""
    split_model(
        save_decoder(folder.parent),
        parse_devices("a=native,b=native"),
        CompileOptions(
            runner=True, programs={"prefill": {"x": (1, 4, 3)}, "decode": {"x": (1, 1, 3)}}
        ),
        output=folder,
        whole=load_target("native"),
    )
    return folder
