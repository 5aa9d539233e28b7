"""Models ranked for a board: by limits that are met for sure, perhaps, or not."""

import json
from pathlib import Path

import pytest
from support.cli_calls import Call, check_error
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler.evaluate.advice import AdviceLimits, Advised
from edgec.compiler.predict.prediction import Estimate

LATENCY = Estimate(10.0, 8.0, 14.0)


@pytest.mark.parametrize(
    ("limits", "verdict"),
    [
        (AdviceLimits(latency_ms=15), ("meets", "")),
        (AdviceLimits(latency_ms=12), ("may meet", "")),
        (AdviceLimits(latency_ms=9), ("misses", "latency")),
        (
            AdviceLimits(latency_ms=9, memory_bytes=99, size_bytes=199),
            ("misses", "latency, memory, size"),
        ),
        (AdviceLimits(), ("meets", "")),
    ],
)
def test_verdicts(limits: AdviceLimits, verdict: tuple[str, str]) -> None:
    item = Advised("a", "", latency=LATENCY, memory_bytes=100, library_bytes=200)
    assert limits.verdict(item) == verdict
    assert limits.verdict(Advised("a", "")) == ("unknown", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, a larger one, one of open shape and one that is none."""
    path = tmp_path_factory.mktemp("own")
    for name, width in (("small", 8), ("large", 64)):
        nodes = [node("MatMul", ["x", "w"], ["y"])]
        model = make_model(nodes, {"x": [4, width]}, ["y"], {"w": random(width, width)})
        save(model, path).rename(path / f"{name}.onnx")
    save(make_model([node("Relu", ["x"], ["y"])], {"x": ["n", 4]}, ["y"]), path).rename(
        path / "open.onnx"
    )
    (path / "broken.onnx").write_text("no model")
    return path


def test_a_folder_of_ones_own(folder: Path, call: Call) -> None:
    code, out, _ = call("advise", folder, "-t", "rpi4", "--latency", "1s", "--json")
    assert code == 0
    found = {item["name"]: item for item in json.loads(out)}
    # Of those that meet the limit the one of most arithmetic comes first.
    assert list(found) == ["large.onnx", "small.onnx", "broken.onnx", "open.onnx"]
    assert [found["large.onnx"]["verdict"], found["large.onnx"]["measured"]] == ["meets", False]
    assert found["large.onnx"]["macs"] == 4 * 64 * 64
    assert "not fixed" in found["open.onnx"]["why"]
    assert found["broken.onnx"]["why"]
    code, out, _ = call(
        "advise", folder, "-t", "rpi4", "--latency", "0.000001us", "--report", "a.html"
    )
    assert "misses" in out
    assert "predicted" in out
    assert "<h1>Advice of 4 models for rpi4</h1>" in Path("a.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--task", "cooking"], 2, "no model does that. Known: classification"),
        (["--latency", "5 miles"], 2, "such as 100ms"),
        (["--memory", "-1MB"], 2, "such as 8MB"),
        (["--threads", "-1"], 2, "--threads -1: expected 0 to"),
        (["none"], 4, "none is no folder"),
        (["--shape", "x=1"], 2, "give a FOLDER of your own"),
        ([".", "--task", "detection"], 2, "--task chooses from the catalogue"),
        (["."], 4, "holds no .onnx file"),
        (["-t", "rpi4", "--task", "detection", "--measure"], 2, "does not run"),
        (["--report", "a.pdf"], 2, ".html, .json or .csv"),
    ],
)
def test_wrong_calls(arguments: list[str], code: int, message: str, call: Call) -> None:
    check_error(call("advise", *arguments), code, message)
