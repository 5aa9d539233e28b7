"""Graphs that end ONNX's shape inference, or on which it never ends, are refused in one line."""

import numpy as np
import onnx
import pytest
from support.onnx_graphs import make_model, node, random

from edgec.compiler.errors import LimitError, UnsupportedModelError
from edgec.compiler.frontend import rehearse_inference as room
from edgec.compiler.frontend.rehearse_inference import rehearse_inference
from edgec.compiler.frontend.simplify import simplify

NEGATIVE = {"n": np.array([0, -9, 0, 0]), "a": np.array([0, 0]), "b": np.array([1, 1])}


def _unchecked(
    nodes: list[onnx.NodeProto], shape: list[int], weights: dict[str, np.ndarray]
) -> onnx.ModelProto:
    """Return a model whose shapes nobody has inferred yet."""
    empty = make_model([node("Neg", ["x"], ["y"])], {"x": shape}, ["y"], weights)
    del empty.graph.node[:]
    empty.graph.node.extend(nodes)
    empty.graph.output[0].type.tensor_type.ClearField("shape")
    return empty


def test_a_slice_of_a_negative_extent() -> None:
    nodes = [node("Pad", ["x", "n"], ["p"]), node("Slice", ["p", "a", "b"], ["y"])]
    with pytest.raises(UnsupportedModelError, match=r"it ends with SIGABRT: .*negative pads"):
        simplify(_unchecked(nodes, [3, 4], NEGATIVE))


def test_a_vector_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its elements would be written down, as those of a shape are."""
    monkeypatch.setattr(room, "MEGABYTES", 100)
    nodes = [node("Tile", ["x", "n"], ["t"]), node("Squeeze", ["t"], ["y"])]
    model = _unchecked(nodes, [3], {"n": np.array([2**30])})
    # How much of it fits depends on what this process has mapped already.
    with pytest.raises((LimitError, UnsupportedModelError), match=r"it takes over (100 MB|\d+ s)"):
        rehearse_inference(model)


def test_an_equation_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes too long is not looked at again to say more about it."""
    monkeypatch.setattr(room, "SECONDS", 1)
    layer = node("Einsum", ["x", "z"], ["y"], equation="bij,bjk->bik")
    model = make_model([layer], {"x": [5, 2, 3], "z": [5, 3, 4]}, ["y"])
    model.graph.node[0].attribute[0].s = b"> bik, k"
    with pytest.raises(UnsupportedModelError, match="over 1 s"):
        simplify(model)


def test_weights_stay_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rehearsal has their types, as the inference has, but not their bytes."""
    seen: list[onnx.ModelProto] = []

    def call(function: object, seconds: int, megabytes: int) -> str:
        assert callable(function)
        seen.append(function())
        return ""

    monkeypatch.setattr(room, "rehearse", call)
    weights = {"w": random(64, 64), "s": np.array([8, 8, 8])}
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Reshape", ["m", "s"], ["y"])]
    rehearse_inference(make_model(nodes, {"x": [8, 64]}, ["y"], weights))
    (inferred,) = seen
    assert inferred.ByteSize() < 1000
    (output,) = inferred.graph.output
    assert [dim.dim_value for dim in output.type.tensor_type.shape.dim] == [8, 8, 8]
