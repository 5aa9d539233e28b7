"""LSTM, GRU and RNN in all their forms against ONNX Runtime, many nodes in one model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.errors import UnsupportedModelError

STEPS, BATCH, WIDTH, HIDDEN = 4, 3, 2, 5
GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
BIDIRECTIONAL = {"direction": "bidirectional"}
REVERSE = {"direction": "reverse"}

Form = tuple[str, dict[str, Any]]

# Optional operands by their letters: bias, lengths known and not, initial states, peepholes.
FORMS: dict[str, list[Form]] = {
    "LSTM": [
        ("", {}),
        ("bhp", BIDIRECTIONAL),
        ("bh", REVERSE),
        ("b", {"clip": 0.3}),
        ("bp", {"input_forget": 1}),
        ("bl", BIDIRECTIONAL),
        ("hL", REVERSE),
        ("b", {"activations": ["HardSigmoid", "Relu", "Softsign"]}),
    ],
    "GRU": [
        ("", {}),
        ("bh", BIDIRECTIONAL),
        ("bh", {"linear_before_reset": 1, **BIDIRECTIONAL}),
        ("", {"linear_before_reset": 1, **REVERSE}),
        ("bl", BIDIRECTIONAL),
        ("bL", {}),
        ("b", {"clip": 0.3}),
        ("b", {"activations": ["Sigmoid", "Softplus"]}),
    ],
    "RNN": [
        ("", {}),
        ("bhl", BIDIRECTIONAL),
        ("bL", REVERSE),
        (
            "b",
            {
                "activations": ["Affine", "ScaledTanh"],
                "activation_alpha": [0.7, 1.2],
                "activation_beta": [0.1, 0.6],
                **BIDIRECTIONAL,
            },
        ),
        ("b", {"activations": ["Elu", "LeakyRelu"], "activation_alpha": [0.7], **BIDIRECTIONAL}),
        ("b", {"activations": ["ThresholdedRelu"], "activation_alpha": [0.2]}),
        ("b", {"activations": ["HardSigmoid"], "activation_alpha": [0.3], "clip": 0.4}),
    ],
}


@pytest.mark.parametrize("op_type", FORMS)
def test_all_forms(tmp_path: Path, op_type: str) -> None:
    lengths = np.array([2, 4, 1], np.int32)
    gates = GATES[op_type] * HIDDEN
    weights, nodes, outputs = {"l": lengths}, [], []
    for number, (letters, attributes) in enumerate(FORMS[op_type]):
        d = 2 if attributes.get("direction") == "bidirectional" else 1
        shapes = {
            "W": (d, gates, WIDTH),
            "R": (d, gates, HIDDEN),
            "b": (d, 2 * gates),
            "h": (d, BATCH, HIDDEN),
            "c": (d, BATCH, HIDDEN),
            "p": (d, 3 * HIDDEN),
        }
        order = "WRb.hcp" if op_type == "LSTM" else "WRb.h"
        used = "WR" + letters + ("c" if "h" in letters else "")
        names = ["x"]
        for letter in order:
            if letter == ".":
                names.append("l" if "l" in letters else "L" if "L" in letters else "")
            elif letter in used:
                names.append(f"{letter}_{number}")
                weights[names[-1]] = 0.5 * random(*shapes[letter], seed=len(weights))
            else:
                names.append("")
        results = [f"{name}_{number}" for name in ("y", "yh", "yc")[: 3 if len(order) > 5 else 2]]
        nodes.append(node(op_type, names, results, hidden_size=HIDDEN, **attributes))
        outputs += results
    inputs = {"x": [STEPS, BATCH, WIDTH], "L": [BATCH]}
    model = make_model(nodes, inputs, outputs, weights, dtypes={"L": TensorProto.INT32})
    given = {"x": random(STEPS, BATCH, WIDTH, seed=99), "L": np.array([3, 1, 4], np.int32)}
    options = CompileOptions(inputs=given)
    compile_model(save(model, tmp_path), options=options, output=tmp_path / "model.edgec")


def test_weights_at_run_time(tmp_path: Path) -> None:
    """Weights and biases that another operator computes."""
    inputs = {
        "x": [STEPS, BATCH, WIDTH],
        "W": [1, 3 * HIDDEN, WIDTH],
        "R": [1, 3 * HIDDEN, HIDDEN],
        "B": [1, 6 * HIDDEN],
    }
    operator = node("GRU", list(inputs), ["y", "h"], hidden_size=HIDDEN)
    path = save(make_model([operator], inputs, ["y", "h"]), tmp_path)
    compile_model(path, options=CompileOptions(), output=tmp_path / "model.edgec")


def test_a_projection_that_the_exporter_lost_is_refused(tmp_path: Path) -> None:
    """W has the rows of 3 hidden values, the cell has 7: PyTorch's export of proj_size=3."""
    weights = {
        "w": random(1, 12, 5),
        "r": random(1, 12, 3),
        "h": random(1, 2, 3),
        "c": random(1, 2, 7),
    }
    operator = node("LSTM", ["x", "w", "r", "", "", "h", "c"], ["y"], hidden_size=3)
    model = make_model([operator], {"x": [6, 2, 5]}, ["y"], weights)
    with pytest.raises(
        UnsupportedModelError, match=r"initial_c \[1, 2, 7\] instead of .*proj_size"
    ):
        compile_model(save(model, tmp_path), output=tmp_path / "x.edgec")


@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("constant", [False, True], ids=["input", "constant"])
def test_sequences_of_no_steps(op_type: str, constant: bool, tmp_path: Path) -> None:
    """They end with zeros, as in ONNX Runtime; the lengths that edgec makes up are 0 and 1."""
    gates, hidden = {"LSTM": 4, "GRU": 3, "RNN": 1}[op_type], 4
    states = ["h", "c"] if op_type == "LSTM" else ["h"]
    outputs = ["y", *(f"last_{name}" for name in states)]
    lengths = np.array([0, 2, 6], np.int32)
    weights = {"w": random(1, gates * hidden, 5), "r": random(1, gates * hidden, hidden, seed=1)}
    shapes = {"x": [6, 3, 5], "lengths": [3], **{name: [1, 3, hidden] for name in states}}
    inputs = {"x": random(6, 3, 5, seed=2), "lengths": lengths}
    inputs.update({name: random(1, 3, hidden, seed=3) for name in states})
    if constant:
        weights["lengths"] = lengths
        del shapes["lengths"], inputs["lengths"]
    operands = ["x", "w", "r", "", "lengths", *states]
    layer = node(op_type, operands, outputs, hidden_size=hidden)
    dtypes = {"lengths": TensorProto.INT32}
    model = save(make_model([layer], shapes, outputs, weights, dtypes=dtypes), tmp_path)
    # Both compiles compare with ONNX Runtime.
    compile_model(model, output=tmp_path / "made-up.edgec")
    options = CompileOptions(inputs=inputs)
    bundle = compile_model(model, options=options, output=tmp_path / "given.edgec")
    found = bundle.run(inputs)
    for name in states:
        assert not found[f"last_{name}"][:, 0].any()
        assert found[f"last_{name}"][:, 1:].all()
