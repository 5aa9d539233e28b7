from support.onnx_graphs import make_model, node, random

from edgec.compiler.frontend.canonical import canonical_model


def test_a_model_without_its_origin_keeps_all_but_copies_of_its_weights() -> None:
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Relu", ["a"], ["y"])]
    model = make_model(nodes, {"x": [1, 3, 8, 8]}, ["y"], {"w": random(4, 3, 3, 3)})
    canonical = canonical_model(model)
    bare = canonical.without_origin()
    assert bare.graph.ByteSize() == 0
    assert bare.imported.module is bare.module is canonical.module
    assert bare.signature == canonical.signature
    assert bare.value_names == canonical.value_names
