from pathlib import Path

import pytest
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import CompileOptions, compile_model


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose steps are shared by the threads of a session."""
    nodes = [
        node("Conv", ["x", "first"], ["a"], strides=[2, 2], pads=[1] * 4),
        node("Conv", ["a", "dense"], ["b"], pads=[1] * 4),
        node("GlobalAveragePool", ["b"], ["y"]),
    ]
    weights = {"first": random(24, 3, 3, 3), "dense": 0.1 * random(24, 24, 3, 3)}
    model = make_model(nodes, {"x": [1, 3, 48, 48]}, ["y"], weights)
    folder = tmp_path_factory.mktemp("shared")
    options = CompileOptions(parity=False)
    return compile_model(save(model, folder), "native", options, output=folder / "x.edgec").path
