"""Small ONNX models for tests, and what the passes make of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler.frontend.onnx_file import NEWEST_OPSET
from edgec.compiler.frontend.simplify import simplify
from edgec.compiler.frontend.specialize import specialize

Shape = Sequence[int | str | None] | None


def node(op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Any:
    """Return a node named after its first output."""
    domain = attributes.pop("domain", "")
    return helper.make_node(op_type, inputs, outputs, name=outputs[0], domain=domain, **attributes)


def make_model(
    nodes: Sequence[Any],
    inputs: Mapping[str, Shape],
    outputs: Sequence[str],
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 17,
    dtypes: Mapping[str, int] | None = None,
    functions: Sequence[Any] = (),
) -> onnx.ModelProto:
    """Return a model whose inputs are float32 unless `dtypes` says otherwise."""
    kinds = dtypes or {}
    graph = helper.make_graph(
        list(nodes),
        "test",
        [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)
            for name, shape in inputs.items()
        ],
        [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), None)
            for name in outputs
        ],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    domains = {"": opset}
    domains.update({item.domain: 1 for item in nodes if item.domain})
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(name, version) for name, version in domains.items()],
        functions=list(functions),
        ir_version=10,
    )
    # The checker wants a shape for each output.
    inferred = onnx.shape_inference.infer_shapes(model)
    for value, known in zip(model.graph.output, inferred.graph.output, strict=True):
        value.CopyFrom(known)
        if not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()
    return model


def save(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    """Write a model and give its path."""
    path = folder / name
    onnx.save(model, path)
    return path


def random(*shape: int, seed: int = 0) -> np.ndarray:
    """Return seeded standard normal float32 values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def to_relax(model: onnx.ModelProto) -> Any:
    """Return the Relax module that the importer gives for a static model."""
    from edgec.compiler.frontend.import_graph import import_model

    return import_model(simplify(specialize(model, {}, {}).proto)).module


def operators(module: Any) -> Counter[str]:
    """Return how often each Relax operator occurs in `main`."""
    from edgec.compiler.ir.relax_helpers import op_name

    bindings = [b.value for block in module["main"].body.blocks for b in block.bindings]
    names = (op_name(value).removeprefix("relax.").removeprefix("nn.") for value in bindings)
    return Counter(name for name in names if name)


__all__ = [
    "NEWEST_OPSET",
    "make_model",
    "node",
    "operators",
    "random",
    "save",
    "to_relax",
]
