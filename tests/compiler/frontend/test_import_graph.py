"""Values keep their names on the way into Relax, whatever they are called."""

from pathlib import Path

import numpy as np
import pytest
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import CompileOptions, compile_model


@pytest.mark.parametrize("names", [("x", "main", "y"), ("main", "h", "y"), ("x", "h", "main")])
def test_a_value_called_as_the_function(names: tuple[str, str, str], tmp_path: Path) -> None:
    given, between, result = names
    nodes = [
        node("Relu", [given], [between]),
        node("Conv", [between, "w"], [result], pads=[1, 1, 1, 1]),
    ]
    model = make_model(nodes, {given: [1, 2, 5, 5]}, [result], {"w": random(3, 2, 3, 3)})
    inputs = {given: random(1, 2, 5, 5, seed=1)}
    options = CompileOptions(inputs=inputs)
    bundle = compile_model(save(model, tmp_path), options=options, output=tmp_path / "x.edgec")
    outputs = bundle.run(inputs)
    assert list(outputs) == [result]
    assert np.isfinite(outputs[result]).all()
