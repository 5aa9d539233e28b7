"""All verbs: JSON, bad input in one line with its exit code, start without TVM."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.cli_calls import COMPILE, Call, check_error
from support.onnx_graphs import make_model, node, random, save


def test_json(call: Call, digits_bundle: Path, digits: Path) -> None:
    _, out, _ = call("verify", digits_bundle, "--json")
    assert json.loads(out)["passed"] is True
    _, out, _ = call("run", digits_bundle, "--json")
    assert json.loads(out)["outputs"][0]["shape"] == [1, 10]
    _, out, _ = call("inspect", digits_bundle, "--json")
    assert json.loads(out)["target"]["name"] == "native"
    _, out, _ = call("inspect", digits, "--json", "--shape", "image=1,1,8,8")
    assert json.loads(out)["cost"]["macs_by_operator"]["Conv"] > 0
    _, out, _ = call("targets", "--json")
    assert {target["name"] for target in json.loads(out)} > {"native", "rpi4"}
    _, out, _ = call("models", "--json")
    assert json.loads(out)[0]["name"] == "digits"
    _, out, _ = call("compile", digits, *COMPILE, "-o", "d.edgec", "--json")
    assert json.loads(out)["parity"]["checked_on"] == "target"


BAD_CALLS = [
    ("missing model", 4, ["compile", "no.onnx"], "does not exist"),
    ("not onnx", 4, ["compile", "text.onnx"], "is no ONNX model"),
    ("truncated", 4, ["compile", "short.onnx"], "is cut short"),
    ("external data", 4, ["compile", "external.onnx"], "weights.bin, which does not exist"),
    ("checker", 4, ["compile", "unchecked.onnx"], "the ONNX checker refuses it"),
    ("open dimension", 4, ["compile", "d.onnx"], "dimension 0 (batch) not fixed"),
    ("zero dimension", 4, ["compile", "d.onnx", "--shape", "image=0,1,8,8"], "is 0; it must be"),
    ("negative", 4, ["compile", "d.onnx", "--shape", "image=-1,1,8,8"], "is -1; it must be"),
    ("input name", 4, ["compile", "d.onnx", "--shape", "imag=1,1,8,8"], "did you mean image?"),
    ("operator", 3, ["compile", "gizmo.onnx"], "acme::Gizmo (y): the operator is not supported"),
    ("target", 4, ["compile", "d.onnx", *COMPILE, "-t", "rpi44"], "did you mean rpi4?"),
    ("target key", 4, ["compile", "d.onnx", *COMPILE, "-t", "bad.toml"], "unknown key vectr_bits"),
    ("output", 4, ["compile", "d.onnx", *COMPILE, "-o", "no/where"], "folder no does not exist"),
    ("in the way", 4, ["compile", "d.onnx", *COMPILE, "-o", "."], "no bundle is in the way"),
    ("read-only", 4, ["compile", "d.onnx", *COMPILE, "-o", "/proc/x"], "cannot write /proc/x"),
    ("shape syntax", 2, ["compile", "d.onnx", "--shape", "image"], "write NAME=1,3,224,224"),
    ("shape twice", 2, ["compile", "d.onnx", *COMPILE, *COMPILE], "--shape is given twice"),
    ("contradiction", 2, ["compile", "d.onnx", "--no-parity", "--check-stages"], "contradict"),
    ("no bundle", 4, ["verify", "no.edgec"], "does not exist"),
    ("model as bundle", 4, ["run", "d.onnx"], "neither a bundle folder nor a bundle .tar"),
    ("input file", 4, ["run", "d.edgec", "--input", "image=no.npy"], "No such file"),
    ("no npy", 4, ["run", "d.edgec", "--input", "image=text.onnx"], "is no NumPy file"),
    ("input shape", 4, ["run", "d.edgec", "--input", "image=x.npy"], "image [3] float64 was given"),
    ("input syntax", 4, ["run", "d.edgec", "--input", "x.npy"], "write NAME=FILE.npy"),
    ("model name", 4, ["models", "digit"], "did you mean digits?"),
    ("target name", 4, ["targets", "native2"], "did you mean native?"),
]


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [case[1:] for case in BAD_CALLS],
    ids=[case[0].replace(" ", "-") for case in BAD_CALLS],
)
def test_bad_input(
    call: Call,
    digits: Path,
    digits_bundle: Path,
    tmp_path: Path,
    code: int,
    arguments: list[str],
    message: str,
) -> None:
    import onnx

    shutil.copy(digits, tmp_path / "d.onnx")
    shutil.copytree(digits_bundle, tmp_path / "d.edgec")
    (tmp_path / "text.onnx").write_text("hello world " * 50)
    (tmp_path / "short.onnx").write_bytes(digits.read_bytes()[:5000])
    (tmp_path / "bad.toml").write_text('vectr_bits = 128\ndescription = "x"\n')
    np.save(tmp_path / "x.npy", np.zeros(3))
    save(make_model([node("Relu", ["gone"], ["y"])], {"x": [1]}, ["y"]), tmp_path, "unchecked.onnx")
    gizmo = make_model([node("Gizmo", ["x"], ["y"], domain="acme")], {"x": [1, 4]}, ["y"])
    save(gizmo, tmp_path, "gizmo.onnx")
    big = make_model(
        [node("MatMul", ["x", "w"], ["y"])], {"x": [1, 64]}, ["y"], {"w": random(64, 64)}
    )
    onnx.save(big, tmp_path / "external.onnx", save_as_external_data=True, location="weights.bin")
    (tmp_path / "weights.bin").unlink()
    before = sorted(tmp_path.rglob("*"))
    quiet = ["-q"] if arguments[0] == "compile" else []
    check_error(call(*arguments, *quiet), code, message)
    assert sorted(tmp_path.rglob("*")) == before


def test_usage_errors_name_the_command(call: Call) -> None:
    code, out, err = call("compile")
    assert code == 2
    assert "Usage: edgec compile" in err
    assert out == ""


class TestStartUp:
    """Help and lists must not wait for TVM."""

    @pytest.mark.parametrize("arguments", [["--help"], ["compile", "--help"], ["targets"]])
    def test_loads_no_tvm(self, arguments: list[str]) -> None:
        program = (
            "import sys; from edgec.compiler.cli.main import main; main(sys.argv[1:]); "
            "print([m for m in sys.modules if m.split('.')[0] in "
            "('tvm', 'onnx', 'onnxruntime', 'onnxscript')])"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "[]"

    def test_running_a_bundle_loads_no_compiler(self, digits_bundle: Path) -> None:
        program = (
            "import sys; from edgec.compiler.cli.main import main; main(['run', sys.argv[1]]); "
            "print([m for m in sys.modules if m.split('.')[0] in ('tvm', 'onnxruntime')])"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(digits_bundle)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines()[-1] == "[]"
