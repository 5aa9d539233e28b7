"""`edgec compile`: what it writes, what it refuses, and that it leaves nothing."""

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
import onnx
import pytest
from onnx import TensorProto
from support.cli_calls import COMPILE, Call, check_error
from support.onnx_graphs import make_model, node, save

from edgec.compiler import (
    Bundle,
    CompileOptions,
    CompressOptions,
    QuantizeOptions,
    compile_model,
    inspect_path,
    load_compression,
    load_recipe,
)
from edgec.compiler.errors import RecipeError, TensorInputError, UsageError


def test_compile_run_verify(call: Call, digits: Path, tmp_path: Path) -> None:
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


def test_verbose_names_generic_code(call: Call, tmp_path: Path) -> None:
    model = make_model(
        [node("Relu", ["x"], ["r"]), node("CumSum", ["r", "axis"], ["y"])],
        {"x": (3, 4, 5)},
        ["y"],
        {"axis": np.array(0)},
    )
    path = save(model, tmp_path)
    code, _, err = call("compile", path, "-v", "-o", "v.edgec")
    assert code == 0
    assert "of the estimated time: " in err
    assert "cumsum" in err
    code, _, err = call("compile", path, "-o", "quiet.edgec")
    assert code == 0
    assert "estimated time" not in err


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
def test_the_system_linker(call: Call, digits: Path, tmp_path: Path) -> None:
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
    assert re.search(r"\d+ files are what the manifest says", out)


def test_no_runner_for_the_virtual_machine(call: Call, tmp_path: Path) -> None:
    dtypes = {"y": TensorProto.INT64}
    model = make_model([node("NonZero", ["x"], ["y"])], {"x": [8]}, ["y"], dtypes=dtypes)
    result = call("compile", save(model, tmp_path), "-q", "--runner", "-o", "x.edgec")
    check_error(result, 3, "shapes in it depend on data")
    assert not (tmp_path / "x.edgec").exists()


def test_a_missing_linker(call: Call, digits: Path, tmp_path: Path) -> None:
    from edgec.targets.target import board_folder

    text = (board_folder() / "rpi4.toml").read_text()
    (tmp_path / "mine.toml").write_text('linker = "no-such-gcc"\n' + text)
    check_error(
        call("compile", digits, *COMPILE, "-t", "mine.toml"), 5, "'no-such-gcc' of target mine"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_compile_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    from edgec.models import load_model_recipe

    model = load_model_recipe("light_inception_v1").write(tmp_path / "net.onnx")
    work = tmp_path / "work"
    work.mkdir()
    # No kernel is known: it has something to do.
    environment = {**os.environ, "TMPDIR": str(work), "XDG_CACHE_HOME": str(tmp_path / "cache")}
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


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-o", "no/where"], 4, "folder no does not exist"),
        (["--dump", "file"], 4, "file is no folder"),
        (["--records", "no.db"], 4, "no such file"),
        (["--quantize", "int8-dynamic", "--report", "no/r.html"], 4, "folder no does not exist"),
        (["--compress", "sparse-50", "--compress-report", "no/r.html"], 4, "no does not exist"),
        (["--compress", "distill", "--checkpoint", "file/c.npz"], 4, "file is no folder"),
        (["--quantize", "int8", "--calibration-cache", "file/c.json"], 4, "file is no folder"),
        (["--quantize", "int8-dynamic", "--metric", "no_module:f"], 2, "no_module"),
        (["-o", "n" * 300], 4, "File name too long"),
    ],
)
def test_outputs_are_checked_before_any_work(
    call: Call,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    def begun(*_: object) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr("edgec.compiler.pipeline.read_model", begun)
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    if "--metric" in arguments:
        arguments = [*arguments, "--calibration", "x.npy"]
    check_error(call("compile", digits, *COMPILE, *arguments), code, message)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(AssertionError, match="work has begun"):
        call("compile", digits, *COMPILE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "--seed -1: expected 0 to"),
        (["--records-threads", "0"], "--records-threads 0: expected 1 to"),
        (["--shape", "image=1,1,8,99999999999999999999"], "is no extent of a tensor"),
        (["--freeze", "image=99999999999999999999999"], "no tensor holds a number of that size"),
        (["--freeze", "image=[[1,2],[3]]"], "rows of equal length"),
        (["--quantize", "int8-dynamic", "--min-sqnr", "nan"], "--min-sqnr nan is no ratio"),
        (["--quantize", "int8-dynamic", "--max-drop", "nan"], "is no share"),
    ],
)
def test_numbers_that_cannot_be(
    call: Call, digits: Path, arguments: list[str], message: str
) -> None:
    check_error(call("compile", digits, "-q", *arguments), 2, message)


def test_a_table_is_frozen_from_a_file_or_as_rows(call: Call, tmp_path: Path) -> None:
    model = make_model([node("Add", ["x", "t"], ["y"])], {"x": [2, 3], "t": [2, 3]}, ["y"])
    path = save(model, tmp_path)
    table = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "t.npy", table)
    results = []
    for number, value in enumerate(("t.npy", "[[0,1,2],[3,4,5]]")):
        bundle = f"{number}.edgec"
        assert call("compile", path, "-q", "--freeze", f"t={value}", "-o", bundle)[0] == 0
        x = np.ones((2, 3), np.float32)
        results.append(Bundle.load(tmp_path / bundle).run({"x": x})["y"])
    for result in results:
        np.testing.assert_array_equal(result, table + 1)
    _, out, _ = call("inspect", "0.edgec")
    assert re.search(r"frozen input +t float32 = \[\[0.0, 1.0", out)
    check_error(call("compile", path, "-q", "--freeze", "t=no.npy"), 4, "No such file")


def test_quantizing_nothing_is_said(call: Call, tmp_path: Path) -> None:
    path = save(make_model([node("Sin", ["x"], ["y"])], {"x": [4]}, ["y"]), tmp_path)
    code, _, err = call("compile", path, "-q", "--quantize", "int8-dynamic", "-o", "x.edgec")
    assert code == 0
    assert "edgec: warning: int8-dynamic: no operator was quantized" in err


class TestApi:
    """Plain values where the meaning is clear, one clear error where it is not."""

    def test_a_model_in_memory(self, digits: Path, tmp_path: Path) -> None:
        options = CompileOptions(shapes={"image": [1, 1, 8, 8]})  # type: ignore[dict-item]
        bundle = compile_model(onnx.load(digits), "native", options, output=tmp_path / "d.edgec")
        image = np.ones((1, 1, 8, 8), np.float32)
        named = bundle.run({"image": image})["logits"]
        alone = bundle.run(image)["logits"]
        np.testing.assert_array_equal(named, alone)
        with pytest.raises(TensorInputError, match=r"by name, \{'image': array\}; list was given"):
            bundle.run([image])  # type: ignore[arg-type]

    def test_what_is_no_model(self) -> None:
        with pytest.raises(UsageError, match=r"inspect_path takes .* or of a bundle; ModelProto"):
            inspect_path(onnx.ModelProto())  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"takes the path .*ModelProto; int was given"):
            compile_model(3)  # type: ignore[arg-type]

    def test_recipes_by_name(self) -> None:
        options = CompileOptions(quantize="int8", compress="sparse-80")
        assert options.quantize == QuantizeOptions(recipe=load_recipe("int8"))
        assert options.compress == CompressOptions(recipe=load_compression("sparse-80"))
        assert QuantizeOptions(recipe="int8") == options.quantize  # type: ignore[arg-type]
        with pytest.raises(RecipeError, match="did you mean int8"):
            CompileOptions(quantize="int9")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"name of a recipe: int8, .*; int was given"):
            CompileOptions(quantize=8)  # type: ignore[arg-type]
