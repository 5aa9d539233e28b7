"""Every verb, and every bad input: one line, its exit code, nothing half-written."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler.cli.main import main

COMPILE = ["--shape", "image=1,1,8,8", "-q"]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Runs a command in an empty folder; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def check_error(result: tuple[int, str, str], code: int, message: str) -> None:
    found, out, err = result
    assert found == code, err
    assert out == ""
    assert message in err
    assert err.startswith("edgec: error: ")
    assert len(err.strip().splitlines()) == 1


def test_compile_run_verify(call, digits: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, err = call("compile", digits, "--shape", "image=1,1,8,8", "-o", "d.edgec")
    assert code == 0
    assert "d.edgec: digits for native" in out
    assert "[1/12] read" in err
    assert "[12/12] bundle" in err
    code, out, _ = call("run", "d.edgec", "--output", "y.npz")
    assert code == 0
    assert "logits  [1,10]  float32" in out
    assert np.load(tmp_path / "y.npz")["logits"].shape == (1, 10)
    code, out, _ = call("verify", "d.edgec", "--model", digits)
    assert code == 0
    assert "4 files are what the manifest says" in out
    assert "ok" in out


def test_verbose_names_generic_code(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = make_model(
        [node("Relu", ["x"], ["r"]), node("Transpose", ["r"], ["y"], perm=[2, 1, 0])],
        {"x": (3, 4, 5)},
        ["y"],
    )
    path = save(model, tmp_path)
    code, _, err = call("compile", path, "-v", "-o", "v.edgec")
    assert code == 0
    assert "of the estimated time: " in err
    assert "transpose" in err
    code, _, err = call("compile", path, "-o", "quiet.edgec")
    assert code == 0
    assert "estimated time" not in err


def test_threads_and_memory(call, digits_bundle: Path) -> None:  # type: ignore[no-untyped-def]
    outputs = [call("run", digits_bundle, "--threads", count, "--json") for count in (1, 3)]
    assert [code for code, _, _ in outputs] == [0, 0]
    assert outputs[0][1] == outputs[1][1]
    _, out, _ = call("inspect", digits_bundle)
    assert re.search(r"executor +static, \d+\.\d+ MB for activations", out)


def test_json(call, digits_bundle: Path, digits: Path) -> None:  # type: ignore[no-untyped-def]
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


def test_inspect_counts(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
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


def test_inspect_names_what_is_open_and_unsupported(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    nodes = [node("Gizmo", ["x"], ["a"], domain="acme"), node("Relu", ["a"], ["y"])]
    model = make_model(nodes, {"x": ["n", 4]}, ["y"])
    path = save(model, tmp_path)
    code, out, _ = call("inspect", path)
    assert code == 0
    assert "dimension 0 (n) not fixed" in out
    assert "unsupported: acme::Gizmo: the operator is not supported (a)" in out


def test_inspect_says_of_each_node_whether_it_is_supported(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
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


def test_targets(call) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = call("targets", "rpi5")
    assert code == 0
    assert "sdot" in out
    assert "cortex-a76" in out


def test_models_writes_a_file(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = call("models", "digits", "-o", "d.onnx")
    assert code == 0
    assert "edgec compile d.onnx --shape image=1,1,8,8" in out
    assert (tmp_path / "d.onnx").stat().st_size > 50_000


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
def test_bad_input(  # type: ignore[no-untyped-def]
    call, digits: Path, digits_bundle: Path, tmp_path: Path, code, arguments, message
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


@pytest.mark.parametrize("name", ["manifest.json", "model.so", "vectors/0/input-0.npy"])
def test_damaged_bundle(call, digits_bundle: Path, tmp_path: Path, name: str) -> None:  # type: ignore[no-untyped-def]
    copy = Path(shutil.copytree(digits_bundle, tmp_path / "d.edgec"))
    data = bytearray((copy / name).read_bytes())
    data[100] ^= 1
    (copy / name).write_bytes(data)
    for verb in ("verify", "run", "inspect"):
        check_error(call(verb, copy), 1, name)


def test_foreign_bundle(call, digits: Path) -> None:  # type: ignore[no-untyped-def]
    assert call("compile", digits, *COMPILE, "-t", "rpi4", "-o", "pi.edgec")[0] == 0
    check_error(call("run", "pi.edgec"), 4, "its code is for aarch64, this machine is")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
def test_the_system_linker(call, digits: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """It links against this machine's C library, which may be too new for the target."""
    from edgec.targets.target import board_folder

    text = (board_folder() / "x86-64-v2.toml").read_text()
    for glibc in ("2.10", os.confstr("CS_GNU_LIBC_VERSION").split()[1]):
        lines = [line for line in text.splitlines() if not line.startswith("glibc")]
        target = "\n".join([f'glibc = "{glibc}"', 'linker = "gcc"', *lines])
        (tmp_path / "mine.toml").write_text(target)
        result = call("compile", digits, *COMPILE, "-t", "mine.toml", "--runner", "-o", "d.edgec")
        if glibc == "2.10":
            check_error(result, 5, "model.so cannot run on target mine: it needs glibc 2.")
            assert not (tmp_path / "d.edgec").exists()
    assert result[0] == 0, result[2]
    done = subprocess.run(["d.edgec/run", "--verify"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"]
    _, out, _ = call("verify", "d.edgec")
    assert "14 files are what the manifest says" in out


def test_no_runner_for_the_virtual_machine(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    dtypes = {"y": TensorProto.INT64}
    model = make_model([node("NonZero", ["x"], ["y"])], {"x": [8]}, ["y"], dtypes=dtypes)
    result = call("compile", save(model, tmp_path), "-q", "--runner", "-o", "x.edgec")
    check_error(result, 3, "shapes in it depend on data")
    assert not (tmp_path / "x.edgec").exists()


def test_a_missing_linker(call, digits: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from edgec.targets.target import board_folder

    text = (board_folder() / "rpi4.toml").read_text()
    (tmp_path / "mine.toml").write_text('linker = "no-such-gcc"\n' + text)
    check_error(
        call("compile", digits, *COMPILE, "-t", "mine.toml"), 5, "'no-such-gcc' of target mine"
    )


def test_usage_errors_name_the_command(call) -> None:  # type: ignore[no-untyped-def]
    code, out, err = call("compile")
    assert code == 2
    assert "Usage: edgec compile" in err
    assert out == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_compile_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    from edgec.models import load_recipe

    model = load_recipe("light_inception_v1").write(tmp_path / "net.onnx")
    work = tmp_path / "work"
    work.mkdir()
    environment = {**os.environ, "TMPDIR": str(work)}
    process = subprocess.Popen(
        [sys.executable, "-m", "edgec.compiler", "compile", str(model), "-o", "out.edgec"],
        cwd=work,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines = []
    # Stop it in the longest phase.
    for line in process.stderr:
        lines.append(line)
        if "schedule" in line:
            break
    time.sleep(1)
    process.send_signal(number)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 7, rest
    assert rest.strip().splitlines()[-1] == "edgec: error: interrupted; nothing was written"
    # The hidden file is ONNX Runtime's: it writes a session number when it is imported.
    assert [path.name for path in work.iterdir() if path.name != ".ses"] == []


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
