"""Quantized compiles from end to end, through the command line."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from sklearn.datasets import load_digits
from support.onnx_graphs import make_model, node
from support.tampered import Tampered

from edgec.compiler import Bundle, verify_bundle
from edgec.compiler.cli.main import main

SHAPE = ("--shape", "image=1,1,8,8")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "digits.npy"
    np.save(path, (load_digits().images[:40] / 16).astype(np.float32)[:, None])
    return path


@pytest.fixture(scope="module")
def made(digits: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    """An int8 bundle and the folder that it, its cache and its report are in."""
    folder = tmp_path_factory.mktemp("int8")
    arguments = ["compile", str(digits), *SHAPE, "--quantize", "int8", "--calibration", str(data)]
    arguments += ["--calibration-cache", str(folder / "ranges.json"), "-q"]
    arguments += ["--report", str(folder / "report.html"), "-o", str(folder / "digits.edgec")]
    assert main(arguments) == 0
    return Bundle.load(folder / "digits.edgec"), folder


def test_the_manifest_says_how_it_was_quantized(made: tuple[Bundle, Path]) -> None:
    record = made[0].manifest.quantization
    assert record is not None
    assert record.recipe["name"] == "int8"
    assert record.quantized == 5
    assert record.samples == 40
    assert record.score == 1.0
    assert record.sqnr_db["logits"] > 25


def test_the_library_holds_the_codes_and_not_the_floats(
    made: tuple[Bundle, Path], digits_bundle: Path
) -> None:
    weights = 4 * (16 * 9 + 32 * 16 * 9 + 64 * 32 * 9 + 640)
    quantized = made[0].manifest.files["model.so"].size_bytes
    plain = Bundle.load(digits_bundle).manifest.files["model.so"].size_bytes
    assert plain - quantized > 0.4 * weights


def test_it_verifies_against_its_graph_and_against_the_floats(
    made: tuple[Bundle, Path], digits: Path
) -> None:
    assert verify_bundle(made[0]).passed
    report = verify_bundle(made[0], model=digits)
    assert report.passed
    assert report.outputs[0].sqnr_db < 100

    def damaged(inputs: Any) -> Any:
        return {name: array * 1.3 for name, array in made[0].run(inputs).items()}

    assert not verify_bundle(made[0], model=digits, session=Tampered(damaged)).passed


def test_the_report_shows_every_operator(made: tuple[Bundle, Path]) -> None:
    page = (made[1] / "report.html").read_text()
    assert "<h1>Quantization of digits.onnx for native</h1>" in page
    assert '<dd class="">5 quantized</dd>' in page
    for name in ("relu0", "relu1", "relu2", "pooled", "logits"):
        assert re.search(rf"<td[^>]*>{name}\s*</td>", page)
    # A histogram of each value that is quantized values, with bars.
    histograms = re.findall(r'class="area" d="([^"]*)"', page)
    assert len(histograms) == 6
    assert sum(path.count("h1") for path in histograms) > 200
    # The pixels are 0 to 1, as their quantized values are: none is clipped.
    assert re.search(r"image\s*</td>.*?0\.000%", page, re.DOTALL)[0].count("<tr>") == 0


def test_the_cache_is_used_edited_and_checked(
    made: tuple[Bundle, Path], digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = json.loads((made[1] / "ranges.json").read_text())
    assert fields["ranges"]["image"] == [0.0, 1.0]
    cache = tmp_path / "ranges.json"

    def compiled() -> int:
        # No samples: the ranges of the file are all there is.
        arguments = ["compile", str(digits), *SHAPE, "--quantize", "int8", "-q", "--json"]
        arguments += ["--calibration-cache", str(cache), "-o", str(tmp_path / "b.edgec")]
        return main(arguments)

    def ratio() -> float:
        printed = json.loads(capsys.readouterr().out)
        return float(printed["quantization"]["sqnr_db"]["logits"])

    fields["ranges"]["image"] = [-4.0, 4.0]
    cache.write_text(json.dumps(fields))
    assert compiled() == 0
    wide = ratio()
    fields["ranges"]["relu1"] = [0.0, 0.05]
    cache.write_text(json.dumps(fields))
    assert compiled() == 0
    assert ratio() < wide - 5
    for change, message in (
        ({"model": "0" * 64}, "is of another model"),
        ({"ranges": {**fields["ranges"], "relu0": [1]}}, "relu0 has [1], expected [low, high]"),
        ({"ranges": {"image": [0, 1]}}, "there is no range for"),
        ({"format": 9}, "format 9, expected 1"),
    ):
        cache.write_text(json.dumps({**fields, **change}))
        assert compiled() == 4
        assert message in capsys.readouterr().err
    cache.write_text("{")
    assert compiled() == 4
    assert "not valid JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--quantize", "int8"], 2, "recipe int8 needs the ranges of activations"),
        (["--quantize", "log2", "--min-sqnr", "20"], 2, "are measured on samples"),
        (["--quantize", "int7"], 4, "unknown recipe 'int7'"),
        (["--calibration", "x.npy"], 2, "--calibration belongs to --quantize"),
        (["--quantize", "int8", "--calibration", "x.npy"], 4, "x.npy cannot be read"),
        (["--quantize", "log2", "--max-drop", "5"], 2, "--max-drop 5 is no share"),
        (["--quantize", "log2", "--report", "a.txt"], 2, "ending in .html or .json"),
    ],
)
def test_wrong_calls_are_refused(
    digits: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "b.edgec"
    assert main(["compile", str(digits), *SHAPE, "-q", "-o", str(output), *arguments]) == code
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_models_and_samples_that_cannot_be_quantized_are_refused(
    digits: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(model: Path, *arguments: str, code: int = 4) -> str:
        output = str(tmp_path / "b.edgec")
        assert main(["compile", str(model), "-q", "-o", output, *arguments]) == code
        assert not Path(output).exists()
        return capsys.readouterr().err

    scale = {"s": np.float32(0.1), "z": np.uint8(0)}
    pair = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    onnx.save(make_model(pair, {"x": [1, 4]}, ["y"], scale), tmp_path / "codes.onnx")
    message = refused(tmp_path / "codes.onnx", "--quantize", "int8-dynamic", code=2)
    assert "is quantized already (it has QuantizeLinear nodes)" in message

    open_shape = [node("NonZero", ["x"], ["i"]), node("Cast", ["i"], ["y"], to=1)]
    onnx.save(make_model(open_shape, {"x": [1, 4]}, ["y"]), tmp_path / "open.onnx")
    message = refused(tmp_path / "open.onnx", "--quantize", "int8-weight-only", code=3)
    assert "shapes in this model depend on data" in message

    np.save(tmp_path / "wide.npy", np.zeros((4, 1, 9, 9), np.float32))
    wide = ("--quantize", "int8", "--calibration", str(tmp_path / "wide.npy"))
    message = refused(digits, *SHAPE, *wide)
    assert "do not fit" in message
    assert "1,9,9" in message
    assert "1,8,8" in message
    good = ("--quantize", "int8", "--calibration", str(data), "--no-repair")
    message = refused(digits, *SHAPE, *good, "--rounding", "learned", code=2)
    assert "--rounding and --no-repair contradict each other" in message


def test_a_drop_that_the_samples_cannot_tell_is_refused(
    digits: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """40 images: one changed answer is 2.5 %."""
    command = ["compile", str(digits), *SHAPE, "--quantize", "int8", "--calibration", str(data)]
    command += ["-q", "-o", str(tmp_path / "x.edgec"), "--max-drop"]
    assert main([*command, "0.01"]) == 2
    assert capsys.readouterr().err == (
        "edgec: error: --max-drop 0.01 cannot be told from 40 batches of samples, where one "
        "changed answer is more than that; give at least 100, or a --max-drop of 0.025 or more\n"
    )
    assert main([*command, "0.025"]) == 0
    lines = capsys.readouterr().out
    assert "dB against the original model, on the test input" in lines
    assert "dB against the model before quantization, over 40 batches of samples" in lines
    assert "the largest class agrees in 100.00% of 40 positions" in lines
