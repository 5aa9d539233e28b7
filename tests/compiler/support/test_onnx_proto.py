"""Models without their weights."""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from support.onnx_graphs import make_model, node, random

from edgec.compiler.support.onnx_proto import save_proto, without_weights

LARGE, AXES = random(64, 64), np.array([1], np.int64)


def nested() -> onnx.ModelProto:
    """Large tensors as an initializer, in an attribute, and in a subgraph."""
    branch = helper.make_graph(
        [node("MatMul", ["x", "inner"], ["z"])],
        "branch",
        [],
        [helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1, 64])],
        [numpy_helper.from_array(LARGE, "inner")],
    )
    nodes = [
        node("Constant", [], ["c"], value=numpy_helper.from_array(LARGE, "c")),
        node("MatMul", ["x", "w"], ["a"]),
        node("MatMul", ["a", "c"], ["b"]),
        node("If", ["yes"], ["d"], then_branch=branch, else_branch=branch),
        node("Add", ["b", "d"], ["e"]),
        node("ReduceSum", ["e", "axes"], ["y"]),
    ]
    weights = {"w": LARGE, "axes": AXES, "yes": np.array(True)}
    return make_model(nodes, {"x": [1, 64]}, ["y"], weights)


def test_large_values_are_left_out_wherever_they_are(tmp_path: Path) -> None:
    model = nested()
    whole = model.SerializeToString()
    save_proto(without_weights(model), tmp_path / "x.onnx")
    assert model.SerializeToString() == whole
    assert (tmp_path / "x.onnx").stat().st_size < 3000 < 4 * LARGE.nbytes < len(whole)
    read = onnx.load(tmp_path / "x.onnx", load_external_data=False)
    assert [n.op_type for n in read.graph.node] == [n.op_type for n in model.graph.node]
    kept = {tensor.name: tensor for tensor in read.graph.initializer}
    assert list(kept["w"].dims) == [64, 64]
    assert kept["w"].data_type == onnx.TensorProto.FLOAT
    np.testing.assert_array_equal(numpy_helper.to_array(kept["axes"]), AXES)


def test_all_values_are_kept(tmp_path: Path) -> None:
    save_proto(nested(), tmp_path / "x.onnx")
    assert onnx.load(tmp_path / "x.onnx") == nested()
