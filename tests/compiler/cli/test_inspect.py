"""`edgec inspect`: of a model and of a bundle."""

import json
import re
from pathlib import Path

import numpy as np
from onnx import TensorProto
from support.cli_calls import COMPILE, Call, check_error
from support.onnx_graphs import make_model, node, random, save


def test_inspect_counts(call: Call, tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        node("Flatten", ["c"], ["f"]),
        node("Gemm", ["f", "v"], ["y"]),
    ]
    weights = {"w": random(4, 3, 3, 3), "v": random(4 * 64, 10)}
    path = save(make_model(nodes, {"x": [1, 3, 8, 8]}, ["y"], weights), tmp_path)
    _, out, _ = call("inspect", path, "--json")
    cost = json.loads(out)["cost"]
    assert cost["macs_by_operator"] == {"Conv": 4 * 64 * 27, "Gemm": 2560}
    assert cost["parameters"] == 108 + 2560


def test_inspect_names_what_is_open_and_unsupported(call: Call, tmp_path: Path) -> None:
    nodes = [node("Gizmo", ["x"], ["a"], domain="acme"), node("Relu", ["a"], ["y"])]
    model = make_model(nodes, {"x": ["n", 4]}, ["y"])
    path = save(model, tmp_path)
    code, out, _ = call("inspect", path)
    assert code == 0
    assert "dimension 0 (n) not fixed" in out
    assert "unsupported: acme::Gizmo: the operator is not supported (a)" in out


def test_inspect_says_of_each_node_whether_it_is_supported(call: Call, tmp_path: Path) -> None:
    nodes = [
        node("Celu", ["x"], ["a"]),
        node("Gizmo", ["a"], ["b"], domain="acme"),
        node("Add", ["shape", "one"], ["c"]),
        node("Tile", ["a", "c"], ["d"]),
        node("Relu", ["d"], ["y"]),
    ]
    inputs, kinds = {"x": ["n", 4], "shape": [2]}, {"shape": TensorProto.INT64}
    model = make_model(nodes, inputs, ["b", "y"], {"one": np.array([1, 1])}, dtypes=kinds)
    path = save(model, tmp_path)
    _, out, _ = call("inspect", path, "--json")
    support = {item["name"]: item["reason"] for item in json.loads(out)["nodes"]}
    assert support == dict.fromkeys("acdy", "") | {"b": "the operator is not supported"}
    _, out, _ = call("inspect", path, "--shape", "x=2,4", "--nodes")
    assert "input 'repeats' must be constant" in out
    assert "to be fixed: --freeze shape=…" in out
    assert "acme::Gizmo" in out
    assert "Relu" in out


def test_a_bundle_says_how_it_was_made(call: Call, digits: Path, tmp_path: Path) -> None:
    arguments = ["--quantize", "int8-weight-only", "--compress", "sparse-50", "-o", "d.edgec"]
    code, _, err = call("compile", digits, *COMPILE, *arguments)
    assert code == 0, err
    _, out, _ = call("inspect", "d.edgec")
    for pattern in (
        r"d.edgec: .* for native, [\d.]+ kB",
        r"shape given +image \[1,1,8,8\]",
        r"tuned +kernels of \d+%",
        r"compressed +sparse-50",
        r"sparse: 100.0% of the multiplications, \d+\.\d% of the weights",
        r"quantized +int8-weight-only: \d+ operators",
        r"logits: [\d.]+ dB against the original",
        r"accuracy +logits: largest error",
    ):
        assert re.search(pattern, out), (pattern, out)


def test_a_plain_bundle_says_so(call: Call, digits_bundle: Path) -> None:
    _, out, _ = call("inspect", digits_bundle)
    assert re.search(r"quantized +no", out)
    assert re.search(r"compressed +no", out)


def test_a_target_makes_it_predict(call: Call, digits: Path, tmp_path: Path) -> None:
    given = ["inspect", digits, "--shape", "image=1,1,8,8"]
    code, out, _ = call(*given, "-t", "rpi4", "--report", "r.html", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["latency"]["low"] < found["latency"]["value"] < found["latency"]["high"]
    assert found["arena_bytes"] > 0
    assert (found["library_source"], found["energy"]["source"]) == ("estimated", "model")
    page = (tmp_path / "r.html").read_text()
    assert "Prediction of digits.onnx for rpi4" in page
    assert "<svg" in page
    code, out, _ = call(*given, "-t", "rpi4", "--threads", "0")
    assert "estimated by a model" in out
    assert "predicted for 4 threads" in out
    check_error(call(*given, "--build"), 2, "--build belongs to --target")
    check_error(call(*given, "-t", "rpi4", "--nodes"), 2, "contradict")
    check_error(call(*given, "-t", "rpi9"), 4, "did you mean")
    check_error(call(*given, "-t", "rpi4", "--report", "r.txt"), 2, "--report r.txt")
    check_error(call("inspect", digits, "-t", "rpi4"), 4, "not fixed")
