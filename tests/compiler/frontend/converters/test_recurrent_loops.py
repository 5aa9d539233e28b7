"""Long sequences are one loop, which computes what ONNX Runtime computes."""

from pathlib import Path
from typing import Any

import numpy as np
from support.onnx_graphs import make_model, node, random, save, to_relax

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.frontend.converters.recurrent import LOOP_STEPS

STEPS, WIDTH = LOOP_STEPS + 1, 3
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}

# Kind, batch, hidden values and attributes: batches that share lines of weights (4 of 8, 2 of 6)
# and that do not, vectors of 16 and of 1.
LAYERS: list[tuple[str, int, int, dict[str, Any]]] = [
    ("LSTM", 8, 16, {"direction": "bidirectional"}),
    ("LSTM", 1, 5, {"layout": 0}),
    ("GRU", 6, 4, {"direction": "bidirectional"}),
    ("GRU", 1, 6, {"direction": "reverse", "linear_before_reset": 1}),
    ("GRU", 4, 5, {"linear_before_reset": 1}),
    ("RNN", 3, 4, {}),
]


def test_all_kinds(tmp_path: Path) -> None:
    nodes, shapes, outputs, weights = [], {}, [], {}
    for number, (kind, batch, hidden, attributes) in enumerate(LAYERS):
        directions = 2 if attributes.get("direction") == "bidirectional" else 1
        rows = GATES[kind] * hidden
        shapes[f"x{number}"] = [STEPS, batch, WIDTH]
        weights[f"w{number}"] = random(directions, rows, WIDTH, seed=number)
        recurrent = random(directions, rows, hidden, seed=10 + number) / np.float32(hidden**0.5)
        if number == 4:
            # Known at run time only.
            shapes[f"r{number}"] = list(recurrent.shape)
        else:
            weights[f"r{number}"] = recurrent
        weights[f"b{number}"] = random(directions, 2 * rows, seed=20 + number)
        states = [f"h{number}", f"c{number}"] if kind == "LSTM" else [f"h{number}"]
        shapes.update({name: [directions, batch, hidden] for name in states})
        # Exporters of Keras say that every sequence has its whole length.
        weights[f"l{number}"] = np.full(batch, STEPS, np.int32)
        names = [f"{name}{number}" for name in "xwrbl"]
        results = [f"y{number}", *(f"last_{name}" for name in states)]
        nodes.append(node(kind, names + states, results, hidden_size=hidden, **attributes))
        outputs += results
    model = save(make_model(nodes, shapes, outputs, weights), tmp_path)
    # The compile compares with ONNX Runtime.
    compile_model(model, options=CompileOptions(), output=tmp_path / "m.edgec")


def test_a_thousand_steps_are_no_longer_than_a_hundred() -> None:
    def statements(steps: int, **attributes: Any) -> int:
        layer = node("LSTM", ["x", "w", "r"], ["y"], hidden_size=4, **attributes)
        weights = {"w": random(1, 16, WIDTH), "r": random(1, 16, 4)}
        module = to_relax(make_model([layer], {"x": [steps, 1, WIDTH]}, ["y"], weights))
        return len(module["main"].body.blocks[0].bindings)

    assert statements(1000) == statements(100) < 20
    # What no loop has is written out.
    assert statements(20, clip=3.0) > 200
