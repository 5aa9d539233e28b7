"""Bounds that the model gets or computes, and shapes that only a run tells, in static graphs."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.support.silent_onnxruntime import onnxruntime

Tensors = dict[str, np.ndarray[Any, Any]]


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def built(
    folder: Path,
    nodes: list[Any],
    inputs: Tensors,
    weights: Tensors | None = None,
    outputs: tuple[str, ...] = ("y",),
    opset: int = 19,
) -> tuple[Bundle, onnxruntime.InferenceSession]:
    """The compiled model, which has passed parity on these inputs, and ONNX Runtime's."""
    kinds = {
        name: onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in inputs.items()
    }
    kinds |= dict.fromkeys({"positions", "kept"} & set(outputs), onnx.TensorProto.INT64)
    shapes = {name: list(array.shape) for name, array in inputs.items()}
    model = make_model(nodes, shapes, outputs, weights, opset=opset, dtypes=kinds)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    path = save(model, folder)
    options = CompileOptions(inputs=inputs)
    return compile_model(path, options=options, output=folder / "model.edgec"), session


def same(bundle: Bundle, session: onnxruntime.InferenceSession, inputs: Tensors) -> None:
    """Other inputs than those of parity: shapes and bounds must not be those of the compile."""
    found = bundle.run(inputs)
    names = [value.name for value in session.get_outputs()]
    for name, expected in zip(names, session.run(None, inputs), strict=True):
        assert found[name].dtype == expected.dtype
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)


def test_clip(tmp_path: Path) -> None:
    """A floor below the maximum, as AmplitudeToDB has it, and a ceiling that is an input."""
    nodes = [
        node("ReduceMax", ["x"], ["top"], keepdims=0),
        node("Sub", ["top", "range"], ["floor"]),
        node("Clip", ["x", "floor", "ceiling"], ["y"]),
    ]
    weights = {"range": np.array(2, np.float32)}
    inputs = {"x": random(3, 50), "ceiling": np.array(0.5, np.float32)}
    bundle, session = built(tmp_path, nodes, inputs, weights, opset=17)
    same(bundle, session, {"x": random(3, 50, seed=1) * 3, "ceiling": np.array(9, np.float32)})


def test_slice(tmp_path: Path) -> None:
    nodes = [
        node("Slice", ["x", "from", "to", "axes", "steps"], ["part"]),
        node("Mul", ["part", "factor"], ["y"]),
    ]
    weights = {"axes": ints(-2, 0), "steps": ints(2, 1), "factor": random(5)}
    inputs = {"x": random(4, 9, 5), "from": ints(1, 0), "to": ints(8, 3)}
    bundle, session = built(tmp_path, nodes, inputs, weights)
    for begin, end in (
        (ints(-5, 1), ints(100, -1)),
        (ints(3, 2), ints(3, 1)),
        (ints(0, 0), ints(9, 4)),
    ):
        same(bundle, session, {"x": random(4, 9, 5, seed=1), "from": begin, "to": end})


def test_slice_of_inferred_length(tmp_path: Path) -> None:
    """What ONNX knows the length of stays static, so that all operators can follow."""
    nodes = [
        node("Slice", ["x", "from", "to"], ["part"]),
        node("MatMul", ["part", "w"], ["y"]),
    ]
    weights = {"w": random(5, 3)}
    inputs = {"x": random(9, 5), "from": ints(2), "to": ints(6)}
    kinds = {"from": onnx.TensorProto.INT64, "to": onnx.TensorProto.INT64}
    model = make_model(nodes, {"x": [9, 5], "from": [1], "to": [1]}, ["y"], weights, dtypes=kinds)
    model.graph.value_info.add().CopyFrom(
        onnx.helper.make_tensor_value_info("part", onnx.TensorProto.FLOAT, [4, 5])
    )
    options = CompileOptions(inputs=inputs)
    bundle = compile_model(save(model, tmp_path), options=options, output=tmp_path / "m.edgec")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    same(bundle, session, {**inputs, "from": ints(5), "to": ints(9)})


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
def test_pad(tmp_path: Path, mode: str) -> None:
    nodes = [node("Pad", ["x", "pads", "value"], ["p"], mode=mode), node("Neg", ["p"], ["y"])]
    inputs = {"x": random(3, 4), "pads": ints(1, 0, 2, 3), "value": np.array(7, np.float32)}
    bundle, session = built(tmp_path, nodes, inputs)
    crops = (
        (ints(0, -1, -1, 0), ints(2, 2, 0, 1))
        if mode in ("constant", "edge")
        else (ints(2, 2, 0, 1),)
    )
    for pads in crops:
        same(bundle, session, {**inputs, "x": random(3, 4, seed=1), "pads": pads})


def test_positions_and_what_follows(tmp_path: Path) -> None:
    """x[x > 0].sum(), as PyTorch exports it, and other readers of positions."""
    nodes = [
        node("Greater", ["x", "zero"], ["mask"]),
        node("NonZero", ["mask"], ["found"]),
        node("Transpose", ["found"], ["positions"], perm=[1, 0]),
        node("GatherND", ["x", "positions"], ["picked"]),
        node("ReduceSum", ["picked"], ["sum"], keepdims=0),
        node("ReduceMean", ["picked"], ["mean"], keepdims=0),
        node("Gather", ["positions", "one"], ["columns"], axis=1),
        node("Gather", ["table", "columns"], ["rows"]),
        node("Unsqueeze", ["picked", "axes"], ["column"]),
        node("Mul", ["rows", "column"], ["scaled"]),
        node("ReduceSum", ["scaled", "first"], ["total"], keepdims=0),
        node("Cast", ["columns"], ["floats"], to=onnx.TensorProto.FLOAT),
    ]
    weights = {
        "zero": np.float32(0).reshape(()),
        "one": np.array(1),
        "axes": ints(1),
        "first": ints(0),
        "table": random(6, 3),
    }
    outputs = ("positions", "sum", "mean", "rows", "total", "floats")
    bundle, session = built(tmp_path, nodes, {"x": random(5, 6)}, weights, outputs, opset=17)
    same(bundle, session, {"x": random(5, 6, seed=4) + 0.5})
    lonely = -np.ones((5, 6), np.float32)
    lonely[4, 5] = 2
    same(bundle, session, {"x": lonely})


def test_boxes_that_were_kept(tmp_path: Path) -> None:
    nodes = [
        node("NonMaxSuppression", ["b", "s", "most", "iou", "least"], ["kept"]),
        node("Gather", ["kept", "two"], ["index"], axis=1),
        node("Gather", ["kept", "zero"], ["batch"], axis=1),
        node("Unsqueeze", ["index", "axes"], ["i"]),
        node("Unsqueeze", ["batch", "axes"], ["n"]),
        node("Concat", ["n", "i"], ["where"], axis=1),
        node("GatherND", ["b", "where"], ["boxes"]),
        node("Slice", ["boxes", "begin", "end", "axes"], ["corners"]),
    ]
    weights = {
        "most": ints(4),
        "iou": np.float32([0.4]),
        "least": np.float32([0.3]),
        "two": np.array(2),
        "zero": np.array(0),
        "axes": ints(1),
        "begin": ints(0),
        "end": ints(2),
    }
    inputs = {"b": np.abs(random(2, 20, 4)), "s": random(2, 3, 20)}
    outputs = ("kept", "boxes", "corners")
    bundle, session = built(tmp_path, nodes, inputs, weights, outputs)
    same(bundle, session, {"b": np.abs(random(2, 20, 4, seed=5)), "s": random(2, 3, 20, seed=6)})


def test_refusals_name_all_that_is_not_supported(tmp_path: Path) -> None:
    """And what could be frozen: bounds themselves, or what decided a shape further up."""
    kinds = dict.fromkeys(("from", "to", "b"), onnx.TensorProto.INT64)
    model = make_model(
        [
            node("Slice", ["x", "from", "to", "", "back"], ["a"]),
            node("NonZero", ["x"], ["z"]),
            node("TopK", ["z", "k"], ["t", "b"]),
            node("Slice", ["x", "from", "to"], ["s"]),
            node("Softplus", ["s"], ["p"]),
            node("TopK", ["p", "k"], ["c", "d"]),
        ],
        {"x": [4], "from": [1], "to": [1]},
        ["a", "b", "c"],
        {"back": ints(-1), "k": ints(1)},
        dtypes=kinds,
    )
    pattern = (
        r"3 nodes.*Slice \(a\): input 'starts' must be constant.*\(from\); "
        r"TopK \(t\): the shape of an input is only known at run time; "
        r"TopK \(c\): the shape of an input is only known at run time; fix .* \(from, to\)"
    )
    with pytest.raises(UnsupportedModelError, match=pattern):
        compile_model(save(model, tmp_path), output=tmp_path / "x.edgec")
