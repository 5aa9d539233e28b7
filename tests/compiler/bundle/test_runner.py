"""The program that runs a bundle without Python."""

import dataclasses
import json
import os
import shutil
import stat
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from elftools.elf.elffile import ELFFile
from onnx import TensorProto
from support.onnx_graphs import make_model, node, save

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.boards.artifacts import emulation
from edgec.compiler.bundle.npy import save_npy
from edgec.compiler.codegen.link import driver
from edgec.compiler.errors import IntegrityError
from edgec.compiler.parity.verify_bundle import verify_bundle
from edgec.compiler.support.progress import Silent
from edgec.targets import load_target

TARGET = load_target("native")
DIGITS = CompileOptions(shapes={"image": (1, 1, 8, 8)}, runner=True)


@pytest.fixture(scope="module")
def bundle(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    output = tmp_path_factory.mktemp("runner") / "digits.edgec"
    return compile_model(digits, "native", DIGITS, output=output)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model of several inputs and outputs, one of them of integers."""
    nodes = [
        node("Add", ["left", "right"], ["sum"]),
        node("Neg", ["count"], ["negative"]),
        node("ReduceSum", ["sum"], ["total"], keepdims=0),
    ]
    shapes = {"left": [2, 3], "right": [3], "count": [2]}
    dtypes = dict.fromkeys(("count", "negative"), TensorProto.INT64)
    model = make_model(nodes, shapes, ["sum", "negative", "total"], dtypes=dtypes)
    folder = tmp_path_factory.mktemp("two")
    options = CompileOptions(runner=True)
    return compile_model(save(model, folder), options=options, output=folder / "two.edgec")


def run(bundle: Path, *arguments: str | Path, prefix: tuple[str, ...] = ()) -> Any:
    """Standard output, parsed; the environment has nothing of Python's."""
    done = attempt(bundle, *arguments, prefix=prefix)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def attempt(
    bundle: Path, *arguments: str | Path, prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    command = [*prefix, str(bundle / "run"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={}, check=False, timeout=60)


def copied(bundle: Bundle, folder: Path) -> Path:
    return Path(shutil.copytree(bundle.path, folder / "copy.edgec"))


def test_verify(bundle: Bundle) -> None:
    report = run(bundle.path, "--verify")
    (expected,) = verify_bundle(bundle).outputs
    (found,) = report["verify"]
    assert report["passed"]
    assert (found["vector"], found["output"], found["passed"]) == (0, "logits", True)
    assert found["max_error"] == pytest.approx(expected.max_error, rel=1e-5)
    assert found["of_allowed"] == pytest.approx(expected.allowed_share, rel=1e-5)


def test_timing(bundle: Bundle) -> None:
    report = run(bundle.path, "--repeat", "50", "--threads", "2")
    assert (report["repeat"], report["threads"]) == (50, 2)
    assert 0 < report["min_ms"] <= report["median_ms"] <= report["p90_ms"] <= report["p99_ms"]
    assert report["min_ms"] < report["mean_ms"] < 50
    assert 0 < report["load_ms"] < report["first_result_ms"]
    assert "passed" not in report


def test_files(bundle: Bundle, tmp_path: Path) -> None:
    """The same bits as in Python, from a folder that is not the bundle's."""
    image = np.random.default_rng(3).random((1, 1, 8, 8), np.float32)
    np.save(tmp_path / "x.npy", image)
    run(bundle.path, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy")
    np.testing.assert_array_equal(
        np.load(tmp_path / "y.npy"), bundle.run({"image": image})["logits"]
    )
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "y.npy"}


def test_files_by_name(two: Bundle, tmp_path: Path) -> None:
    inputs = {
        "left": np.float32([[1, 2, 3], [4, 5, 6]]),
        "right": np.float32([0.5, 0.25, 0]),
        "count": np.array([2**62 + 1, -7]),
    }
    arguments: list[str] = []
    for name, array in inputs.items():
        np.save(tmp_path / f"{name}.npy", array)
        arguments += ["--input", f"{name}={tmp_path / name}.npy"]
    for name in ("sum", "negative", "total"):
        arguments += ["--output", f"{name}={tmp_path / name}.npy"]
    run(two.path, *arguments)
    for name, expected in two.run(inputs).items():
        found = np.load(tmp_path / f"{name}.npy")
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(found, expected)
    assert run(two.path, "--verify")["passed"]


@pytest.mark.parametrize(
    ("change", "problem", "error"),
    [
        (lambda y: y + 0.01, "the error is larger than allowed", True),
        (lambda y: np.where(y == y.max(), np.inf, y), "the error is larger than allowed", False),
        (lambda y: np.full_like(y, np.nan), "the original model itself gives NaN", False),
    ],
)
def test_a_wrong_result_fails(
    bundle: Bundle, tmp_path: Path, change: Any, problem: str, error: bool
) -> None:
    copy = copied(bundle, tmp_path)
    vector = copy / "vectors/0/output-0.npy"
    np.save(vector, change(np.load(vector)))
    done = attempt(copy, "--verify")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert not report["passed"]
    (output,) = report["verify"]
    assert output["problem"] == problem
    assert (output["max_error"] is not None) == error


def test_a_wrong_integer_fails(two: Bundle, tmp_path: Path) -> None:
    copy = copied(two, tmp_path)
    vector = copy / "vectors/0/output-1.npy"
    np.save(vector, np.load(vector) + np.array([0, 1]))
    done = attempt(copy, "--verify")
    assert done.returncode == 1
    outputs = json.loads(done.stdout)["verify"]
    assert [output["passed"] for output in outputs] == [True, False, True]
    assert outputs[1]["problem"] == "values differ that must be equal"


def test_an_output_of_codes(tmp_path: Path) -> None:
    """Codes are compared by their values, which the list of vectors holds."""
    kind = TensorProto.FLOAT8E4M3FN
    cast = node("Cast", ["x"], ["y"], to=kind)
    model = make_model([cast], {"x": [5, 7]}, ["y"], dtypes={"y": kind}, opset=19)
    options = CompileOptions(runner=True)
    bundle = compile_model(save(model, tmp_path), options=options, output=tmp_path / "x.edgec")
    (good,) = run(bundle.path, "--verify")["verify"]
    assert good["max_error"] == 0
    vector = bundle.path / "vectors/0/output-0.npy"
    codes = np.load(vector)
    np.save(vector, codes ^ 0x80)
    (bad,) = json.loads(attempt(bundle.path, "--verify").stdout)["verify"]
    largest = np.abs(codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64)).max()
    assert bad["max_error"] == 2 * largest


GOOD = np.zeros((1, 1, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            save_npy(GOOD.astype(np.float64)),
            "x.npy holds <f8 of shape (1, 1, 8, 8); image is f4 (float32) of shape (1, 1, 8, 8)",
        ),
        (save_npy(GOOD[0]), "x.npy holds <f4 of shape (1, 8, 8); image is f4"),
        (save_npy(GOOD).replace(b"<f4", b">f4"), "x.npy holds >f4 of shape"),
        (save_npy(GOOD)[:-1], "x.npy does not hold the 256 bytes that its header promises"),
        (save_npy(GOOD) + b"x", "x.npy does not hold the 256 bytes"),
        (save_npy(GOOD)[:40], "x.npy is no .npy file"),
        (save_npy(GOOD).replace(b"False", b"True "), "x.npy is in Fortran order"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "x.npy is no .npy file"),
        (b"", "x.npy is no .npy file"),
        (None, "x.npy: No such file or directory"),
    ],
)
def test_bad_input_files(
    bundle: Bundle, tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "x.npy").write_bytes(content)
    (tmp_path / "y.npy").write_bytes(b"old")
    done = attempt(
        bundle.path, "--input", tmp_path / "x.npy", "--output", f"logits={tmp_path / 'y.npy'}"
    )
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("run: error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "y.npy").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeat", "0"], "--repeat is 0; give a whole number from 1"),
        (["--repeat", "3x"], "--repeat is 3x; give a whole number"),
        (["--threads", "-1"], "--threads is -1; give a whole number from 0"),
        (["--threads", "1025"], "--threads is 1025; give a whole number from 0 to 1024"),
        (["--repeat"], "--repeat is unknown or needs a value"),
        (["--fast", "1"], "unknown option --fast; see ./run --help"),
        (["--input", "a.npy"], "write NAME=FILE.npy; the names are left right count"),
        (["--output", "z=a.npy"], "write NAME=FILE.npy; the names are sum negative total"),
        (["--input", "left=a.npy", "--input", "left=b.npy"], "--input is given twice for left"),
        (["--input", "left={left}"], "input right is missing; add --input right=FILE.npy"),
    ],
)
def test_bad_arguments(two: Bundle, arguments: list[str], message: str) -> None:
    left = two.path / "vectors/0/input-0.npy"
    done = attempt(two.path, *(argument.format(left=left) for argument in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_help(bundle: Bundle) -> None:
    done = attempt(bundle.path, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ./run")


def test_no_place_for_the_output(bundle: Bundle, tmp_path: Path) -> None:
    done = attempt(bundle.path, "--output", tmp_path / "missing" / "y.npy")
    assert done.returncode == 4
    assert "y.npy: No such file or directory" in done.stderr
    with Path("/dev/full").open("w") as full:
        command = [str(bundle.path / "run")]
        lost = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (lost.returncode, lost.stderr) == (
        4,
        "run: error: cannot write to the standard output\n",
    )


def test_damaged_vectors(bundle: Bundle, tmp_path: Path) -> None:
    copy = copied(bundle, tmp_path)
    listing = copy / "vectors/vectors.txt"
    for text, message in (
        ("tolerance x", "vectors.txt is damaged"),
        ("tolerance 1 1 inf\nvector a", "vectors.txt is damaged"),
        ("what 1", "vectors.txt is damaged"),
        ("tolerance 1 1 inf\n", "vectors.txt names no vector"),
        (None, "vectors.txt"),
    ):
        listing.unlink()
        if text is not None:
            listing.write_text(text)
        done = attempt(copy, "--verify")
        assert (done.returncode, done.stdout) == (4, "")
        assert message in done.stderr
        if text is not None:
            continue
        np.save(tmp_path / "x.npy", GOOD)
        assert run(copy, "--input", tmp_path / "x.npy")["repeat"] == 1


def test_size_and_start(bundle: Bundle) -> None:
    """Figures of the issue: 12 MB unpacked; 50 ms from nothing to the first result."""
    size = sum((bundle.path / name).stat().st_size for name in ("run", "model.so"))
    assert size < 12e6
    times = []
    for _ in range(10):
        start = time.perf_counter()
        run(bundle.path)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05


def test_bundle(bundle: Bundle, digits: Path, tmp_path: Path) -> None:
    """Digests cover the runner's files, and a tar keeps the permission to execute."""
    assert {"run", "vectors/vectors.txt", "embed/edgec.h", "embed/runner.c"} <= set(
        bundle.manifest.files
    )
    packed = compile_model(digits, "native", DIGITS, output=tmp_path / "digits.tar")
    assert packed.manifest.to_bytes() == bundle.manifest.to_bytes()
    with tarfile.open(packed.path) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    assert run(tmp_path / "unpacked", "--verify")["passed"]
    for name in ("model.so", "manifest.json"):
        assert not (tmp_path / "unpacked" / name).stat().st_mode & stat.S_IXUSR
    copy = copied(bundle, tmp_path)
    with (copy / "run").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(IntegrityError, match="run is changed"):
        Bundle.load(copy)


# ---- boards ----


@pytest.mark.parametrize("target", ["rpi3", "rpi3-32bit", "rpi4", "rpi5", "riscv64"])
def test_on_boards(digits: Path, tmp_path: Path, target: str) -> None:
    """Built and checked for each, and run under an emulator of its processor."""
    board = load_target(target)
    bundle = compile_model(digits, board, DIGITS, output=tmp_path / "x.edgec")
    assert bundle.manifest.files["run"].size_bytes < 250_000
    prefix = emulation(board, Silent()).command
    report = run(bundle.path, "--verify", "--threads", "2", "--repeat", "3", prefix=prefix)
    assert report["passed"]
    assert report["threads"] == 2


# ---- the example ----


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_example(bundle: Bundle, tmp_path: Path) -> None:
    build = tmp_path / "build"
    compiler = " ".join(driver(bundle.manifest.target))
    plus = compiler.replace(" cc ", " c++ ")
    environment = {**os.environ, "CC": compiler, "CXX": plus}
    if shutil.which("c++"):
        environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    for command in (["-S", str(bundle.path / "embed"), "-B", str(build)], ["--build", str(build)]):
        done = subprocess.run(
            ["cmake", *command], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stderr
    moved = build.rename(tmp_path / "elsewhere")
    done = subprocess.run([moved / "app"], capture_output=True, text=True, check=True)
    assert done.stdout == "logits: float32 of rank 2, 40 bytes\n"
    np.save(tmp_path / "x.npy", GOOD)
    assert run(moved, "--input", tmp_path / "x.npy")["repeat"] == 1


def first_values(bundle: Bundle) -> str:
    """What two_models.cpp prints of a model."""
    zeros = {s.name: np.zeros(s.shape, s.dtype) for s in bundle.manifest.signature.inputs}
    lines = []
    for name, array in bundle.run(zeros).items():
        values = array.ravel()[:4] if array.dtype == np.float32 else []
        lines.append(f"{name}:" + "".join(f" {value:.6g}" for value in values))
    return "\n".join(lines)


def expected_of_two(first: Bundle, second: Bundle) -> str:
    texts = [
        f"{number} {line}\n"
        for number, bundle in (("first", first), ("second", second))
        for line in first_values(bundle).splitlines()
    ]
    return "".join(texts)


@pytest.fixture(scope="module")
def named(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same model with other weights and a name that was asked for."""
    model = onnx.load(digits)
    for weight in model.graph.initializer:
        array = onnx.numpy_helper.to_array(weight)
        if array.dtype == np.float32:
            weight.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(0.5), weight.name))
    folder = tmp_path_factory.mktemp("named")
    options = dataclasses.replace(DIGITS, name="half of it", parity=False)
    return compile_model(save(model, folder), "native", options, output=folder / "x.edgec")


def dynamic_part(library: Path) -> tuple[str, set[str]]:
    """The name a library goes by, and what it shows."""
    with library.open("rb") as stream:
        file = ELFFile(stream)
        tags = file.get_section_by_name(".dynamic").iter_tags("DT_SONAME")
        symbols = file.get_section_by_name(".dynsym").iter_symbols()
        shown = {s.name for s in symbols if s["st_shndx"] != "SHN_UNDEF" and s.name}
        return next(tags).soname, shown


def test_names_of_libraries(bundle: Bundle, named: Bundle) -> None:
    (one, shown), (other, shown_too) = dynamic_part(bundle.library), dynamic_part(named.library)
    assert (one, other) == ("libedgec_digits.so", "libedgec_half_of_it.so")
    common = shown & shown_too
    assert shown - common == {"edgec_model_digits"}
    assert shown_too - common == {"edgec_model_half_of_it"}
    # For those that load one library and ask it.
    assert {n for n in common if not n.startswith("__tvm_ffi_edgec_")} == {"edgec_loaded_model"}


@pytest.mark.parametrize("order", [1, -1])
def test_two_models_in_one_program(
    bundle: Bundle, named: Bundle, tmp_path: Path, order: int
) -> None:
    """Linked by hand; each gives its own values, whichever comes first."""
    first, second = (bundle, named)[::order]
    for each in (first, second):
        soname, _ = dynamic_part(each.library)
        shutil.copyfile(each.library, tmp_path / soname)
    other = second.manifest.execution.c_name
    zig = [part.replace("cc", "c++") if part == "cc" else part for part in driver(TARGET)]
    compiler = ["c++"] if shutil.which("c++") else zig
    command = [
        *compiler,
        *("-std=c++17", f"-I{first.path}/embed", f"-I{second.path}/embed"),
        *(f'-DOTHER_HEADER="edgec_{other}.h"', f"-DOTHER_MODEL=edgec_model_{other}"),
        str(first.path / "embed/two_models.cpp"),
        *(f"libedgec_{each.manifest.execution.c_name}.so" for each in (first, second)[::order]),
        *("-Wl,-rpath,$ORIGIN", "-o", "two"),
    ]
    subprocess.run(command, cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "two"], capture_output=True, text=True, check=True)
    assert done.stdout == expected_of_two(first, second)
    assert first_values(first) != first_values(second)


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_example_of_two_models(bundle: Bundle, two: Bundle, tmp_path: Path) -> None:
    build = tmp_path / "build"
    configure = ["-S", str(bundle.path / "embed"), "-B", str(build), f"-DOTHER_BUNDLE={two.path}"]
    for command in (configure, ["--build", str(build), "--target", "two_models"]):
        done = subprocess.run(["cmake", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stderr
    moved = build.rename(tmp_path / "elsewhere")
    done = subprocess.run([moved / "two_models"], capture_output=True, text=True, check=True)
    assert done.stdout == expected_of_two(bundle, two)
