"""Graphs that edgec writes around the weights of others: shapes, arithmetic, known answers."""

import io
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import onnx
import pytest
from support.language_files import safetensors_file

from edgec.compiler.errors import BadInputError
from edgec.compiler.support.silent_onnxruntime import onnxruntime
from edgec.models import load_model_recipe
from edgec.models.model_recipe import BuiltGraph, Source
from edgec.models.zoo import efficientnet_lite0, minilm
from edgec.models.zoo.torch_file import read_torch

BUILT = ("efficientnet-lite0", "minilm-l6")


def run(model: onnx.ModelProto | bytes, **inputs: np.ndarray) -> list[np.ndarray]:
    content = model if isinstance(model, bytes) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    return session.run(None, inputs)


def shapes(values) -> dict[str, list[int | str]]:
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in values
    }


# Recipes


def test_listing_recipes_loads_no_onnx():
    code = (
        "import sys; from edgec.models import recipes; [r.describe() for r in recipes()];"
        "print({'onnx', 'numpy', 'gguf', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("name", BUILT)
def test_recipe_shapes_name_the_inputs(name):
    source = load_model_recipe(name).source
    assert isinstance(source, BuiltGraph)
    model = {
        "efficientnet-lite0": lambda: efficientnet_lite0.build_graph(narrow_efficientnet()),
        "minilm-l6": lambda: minilm.build(tiny_bert()),
    }[name]()
    given = {input_name: len(shape) for input_name, shape in load_model_recipe(name).shapes.items()}
    assert given == {k: len(shape) for k, shape in shapes(model.graph.input).items()}


@dataclass(frozen=True)
class Bytes(Source):
    content: bytes

    def read(self) -> bytes:
        return self.content


def test_built_graph_gives_the_same_bytes_each_time():
    source = BuiltGraph(Bytes(tiny_bert()), "edgec.models.zoo.minilm:build")
    assert source.read() == source.read()


# Weight files


def torch_file(monkeypatch, tensors: dict[str, np.ndarray]) -> bytes:
    """What `torch.save` wrote before 1.6; each tensor in column order, after three others."""
    torch, utils = ModuleType("torch"), ModuleType("torch._utils")

    class FloatStorage:
        __module__, __qualname__ = "torch", "FloatStorage"

    def _rebuild_tensor_v2():
        """Only its name is written."""

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    torch.FloatStorage, torch._utils = FloatStorage, utils
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2

    @dataclass
    class Tensor:
        key: str
        values: np.ndarray

        def __reduce__(self):
            strides = tuple(np.cumprod((1, *self.values.shape[:-1])).tolist())
            arguments = (Stored(self.key), 3, self.values.shape, strides, False, OrderedDict())
            return _rebuild_tensor_v2, arguments

    @dataclass
    class Stored:
        key: str

    class Writer(pickle.Pickler):
        def persistent_id(self, obj):
            if isinstance(obj, Stored):
                return ("storage", FloatStorage, obj.key, "cpu", 99, None)
            return None

    stream = io.BytesIO()
    state = OrderedDict((k, Tensor(f"key of {k}", v)) for k, v in tensors.items())
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", torch)
        patch.setitem(sys.modules, "torch._utils", utils)
        for part in (
            *(0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}),
            *(state, [f"key of {name}" for name in tensors]),
        ):
            Writer(stream, protocol=2).dump(part)
    for values in tensors.values():
        stored = np.concatenate([[7, 7, 7], values.ravel("F")]).astype("<f4")
        stream.write(stored.size.to_bytes(8, "little") + stored.tobytes())
    return stream.getvalue()


def test_torch_file_is_read_with_offsets_and_strides(monkeypatch):
    tensors = {
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
        "cube": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    }
    read = read_torch(torch_file(monkeypatch, tensors))
    assert list(read) == ["matrix", "cube"]
    for name, values in tensors.items():
        np.testing.assert_array_equal(read[name], values)


def test_torch_file_that_ends_early_is_refused(monkeypatch):
    data = torch_file(monkeypatch, {"matrix": np.zeros((2, 3), np.float32)})
    with pytest.raises(BadInputError, match=r"shape \(2, 3\) reaches beyond its storage"):
        read_torch(data[:-4])


def test_torch_file_cannot_call_anything(monkeypatch):
    data = torch_file(monkeypatch, {})
    start = data[: data.index(b".", data.index(b"little_endian")) + 1]
    with pytest.raises(BadInputError, match=rf"the weight file names {os.name}\.getcwd; only"):
        read_torch(start + pickle.dumps({"matrix": os.getcwd}, protocol=2))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", pickle.dumps(1001)])
def test_other_files_are_refused(data):
    with pytest.raises(BadInputError, match=r"none that PyTorch before 1\.6 wrote"):
        read_torch(data)


# EfficientNet-Lite0


def narrow_efficientnet() -> dict[str, np.ndarray]:
    """Random weights of the true depth and kernels, with few channels."""
    random = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}

    def convolution(name: str, norm: str, outputs: int, inputs: int, kernel: int) -> None:
        size = inputs * kernel**2
        shape = (outputs, inputs, kernel, kernel)
        values = random.normal(0, size**-0.5, shape)
        weights[f"{name}.weight"] = values.astype(np.float32)
        for part in ("weight", "bias", "running_mean", "running_var"):
            weights[f"{norm}.{part}"] = random.uniform(0.5, 1, outputs).astype(np.float32)

    convolution("_conv_stem", "_bn0", 4, 3, 3)
    channels, block = 4, 0
    kernels = (3, 3, 5, 3, 5, 5, 3)
    for stage, ((repeats, _), kernel) in enumerate(
        zip(efficientnet_lite0.STAGES, kernels, strict=True)
    ):
        for _ in range(repeats):
            name, wide = f"_blocks.{block}", channels * 2 if stage else channels
            if stage:
                convolution(f"{name}._expand_conv", f"{name}._bn0", wide, channels, 1)
            convolution(f"{name}._depthwise_conv", f"{name}._bn1", wide, 1, kernel)
            channels = 3 + stage
            convolution(f"{name}._project_conv", f"{name}._bn2", channels, wide, 1)
            block += 1
    convolution("_conv_head", "_bn1", 8, channels, 1)
    weights["_fc.weight"] = random.normal(size=(5, 8)).astype(np.float32)
    weights["_fc.bias"] = random.normal(size=5).astype(np.float32)
    return weights


def test_efficientnet_structure():
    model = efficientnet_lite0.build_graph(narrow_efficientnet())
    onnx.checker.check_model(model, full_check=True)
    assert shapes(model.graph.input) == {"image": ["batch", 3, 224, 224]}
    assert shapes(model.graph.output) == {"logits": ["batch", 5]}
    operators = [node.op_type for node in model.graph.node]
    # Residual blocks: all but the first of each stage.
    counts = {"Conv": 49, "BatchNormalization": 49, "Clip": 33, "Add": 9, "Gemm": 1}
    assert {name: operators.count(name) for name in counts} == counts


def test_efficientnet_pads_as_tensorflow_does():
    image = np.random.default_rng(1).uniform(-1, 1, (2, 3, 224, 224)).astype(np.float32)
    model = efficientnet_lite0.build_graph(narrow_efficientnet())
    [expected] = run(model, image=image)

    def with_auto_pad(mode: str) -> np.ndarray:
        other = onnx.ModelProto()
        other.CopyFrom(model)
        for node in other.graph.node:
            if node.op_type == "Conv":
                kept = [a for a in node.attribute if a.name != "pads"]
                del node.attribute[:]
                node.attribute.extend([*kept, onnx.helper.make_attribute("auto_pad", mode)])
        return run(other, image=image)[0]

    np.testing.assert_array_equal(with_auto_pad("SAME_UPPER"), expected)
    assert np.abs(with_auto_pad("SAME_LOWER") - expected).max() > 1e-3


# MiniLM


def tiny_bert(layers: int = 2, width: int = 64) -> bytes:
    random = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {"embeddings.position_ids": np.arange(16)[None]}

    def add(name: str, *shape: int) -> None:
        tensors[name] = random.normal(0, 0.2, shape).astype(np.float32)

    for table, rows in (("word", 20), ("position", 16), ("token_type", 2)):
        add(f"embeddings.{table}_embeddings.weight", rows, width)
    add("embeddings.LayerNorm.weight", width)
    add("embeddings.LayerNorm.bias", width)
    for layer in range(layers):
        for name, outputs, inputs in (
            ("attention.self.query", width, width),
            ("attention.self.key", width, width),
            ("attention.self.value", width, width),
            ("attention.output.dense", width, width),
            ("intermediate.dense", 3 * width, width),
            ("output.dense", width, 3 * width),
        ):
            add(f"encoder.layer.{layer}.{name}.weight", outputs, inputs)
            add(f"encoder.layer.{layer}.{name}.bias", outputs)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            add(f"encoder.layer.{layer}.{name}.weight", width)
            add(f"encoder.layer.{layer}.{name}.bias", width)
    return safetensors_file(tensors)


def sentences(rows: list[list[int]], length: int) -> dict[str, np.ndarray]:
    ids = np.array([[*row, *[0] * (length - len(row))] for row in rows])
    mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def test_minilm_structure():
    model = minilm.build(tiny_bert())
    onnx.checker.check_model(model, full_check=True)
    assert shapes(model.graph.input) == {
        name: ["batch", "sequence"] for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    assert shapes(model.graph.output) == {
        "last_hidden_state": ["batch", "sequence", 64],
        "sentence_embedding": ["batch", 64],
    }
    operators = [node.op_type for node in model.graph.node]
    counts = {"LayerNormalization": 5, "Softmax": 2, "Erf": 2, "MatMul": 16}
    assert {name: operators.count(name) for name in counts} == counts


def test_minilm_pools_the_kept_tokens():
    inputs = sentences([[3, 1, 4, 1, 5], [9, 2]], length=7)
    hidden, embedding = run(minilm.build(tiny_bert()), **inputs)
    mean = np.stack([hidden[0, :5].mean(axis=0), hidden[1, :2].mean(axis=0)])
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    # A few float32 roundings of values below 1.
    np.testing.assert_allclose(embedding, expected, rtol=0, atol=1e-6)


def test_minilm_ignores_padding():
    model = minilm.build(tiny_bert())
    padded = sentences([[3, 1, 4, 1, 5], [9, 2]], length=7)
    embeddings = run(model, **padded)[1]
    alone = [run(model, **sentences([row], len(row)))[1] for row in ([3, 1, 4, 1, 5], [9, 2])]
    np.testing.assert_allclose(embeddings, np.concatenate(alone), rtol=0, atol=1e-6)
    seen = run(model, **{**padded, "attention_mask": np.ones_like(padded["input_ids"])})[1]
    assert np.abs(seen[1] - embeddings[1]).max() > 1e-2


# The trained networks


@pytest.mark.slow
def test_efficientnet_gives_the_logits_of_its_pytorch_model():
    image = np.resize((np.arange(97) / 48 - 1).astype(np.float32), (1, 3, 224, 224))
    [logits] = run(load_model_recipe("efficientnet-lite0").source.read(), image=image)
    # Made with efficientnet_lite_pytorch 0.1.0 and torch 2.13.
    expected = [-0.58189940, 0.14822458, -1.16692233, -3.13295174, -0.51041305, 0.50745445]
    assert logits.shape == (1, 1000)
    # Float32 through fifty layers, logits of the order of 10; the two differ by 1e-5.
    np.testing.assert_allclose(logits[0, :6], expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_minilm_finds_related_sentences():
    happy = [101, 2008, 2003, 1037, 3407, 2711, 102]
    very_happy = [101, 2008, 2003, 1037, 2200, 3407, 2711, 102]
    dog = [101, 2008, 2003, 1037, 3407, 3899, 102]
    sunny = [101, 2651, 2003, 1037, 11559, 2154, 102]
    model = load_model_recipe("minilm-l6").source.read()
    _, embeddings = run(model, **sentences([happy, very_happy, dog, sunny], length=128))
    # "That is a happy person" against the same with "very", with "dog", and "Today is a sunny day".
    cosines = embeddings[1:] @ embeddings[0]
    np.testing.assert_allclose(cosines, [0.943, 0.695, 0.257], rtol=0, atol=1e-3)
