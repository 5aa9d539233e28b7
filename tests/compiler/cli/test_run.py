"""`edgec run`: threads, inputs, outputs, and every number and file that is wrong."""

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support.cli_calls import COMPILE, Call, check_error
from support.onnx_graphs import make_model, node, save


def test_threads_and_memory(call: Call, digits_bundle: Path) -> None:
    outputs = [call("run", digits_bundle, "--threads", count, "--json") for count in (1, 3)]
    assert [code for code, _, _ in outputs] == [0, 0]
    assert outputs[0][1] == outputs[1][1]
    _, out, _ = call("inspect", digits_bundle)
    assert re.search(r"executor +static, \d+\.\d+ MB for activations", out)


def test_foreign_bundle(call: Call, digits: Path) -> None:
    assert call("compile", digits, *COMPILE, "-t", "rpi4", "-o", "pi.edgec")[0] == 0
    check_error(call("run", "pi.edgec"), 4, "its code is for aarch64, this machine is")


ODD_FILES = {
    "no archive": b"PK\x03\x04 and then nothing of an archive",
    "empty": b"",
    "text": b"hello",
    "cut short": None,
    "objects": None,
    "structured": None,
    "text array": None,
    "no arrays": None,
    "absurd shape": None,
    "negative shape": None,
    "absurd shape in an archive": None,
    "overflowing shape": None,
}


def _header(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(16)


def _odd_file(name: str, folder: Path) -> str:
    path = folder / "x.npy"
    if ODD_FILES[name] is not None:
        path.write_bytes(ODD_FILES[name])
    elif name == "cut short":
        np.save(path, np.zeros((1, 1, 8, 8), np.float32))
        path.write_bytes(path.read_bytes()[:-8])
    elif name == "objects":
        np.save(path, np.array([{}, None]), allow_pickle=True)
    elif name == "structured":
        np.save(path, np.zeros(3, [("a", "f4")]))
    elif name == "text array":
        np.save(path, np.array(["a"]))
    elif name == "no arrays":
        np.savez(folder / "x.npz")
        return str(folder / "x.npz")
    elif name == "absurd shape in an archive":
        with zipfile.ZipFile(folder / "x.npz", "w") as archive:
            archive.writestr("image.npy", _header("(1000000000, 1000000000)"))
        return str(folder / "x.npz")
    else:
        shapes = {
            "absurd shape": "(1000000000, 1000000000)",
            "negative shape": "(-4,)",
            "overflowing shape": "(4294967296, 4294967296, 4294967296)",
        }
        path.write_bytes(_header(shapes[name]))
    return f"image={path}"


@pytest.mark.parametrize("name", ODD_FILES)
def test_odd_files_are_refused_in_one_line(
    call: Call, digits_bundle: Path, tmp_path: Path, name: str
) -> None:
    check_error(call("run", digits_bundle, "--input", _odd_file(name, tmp_path)), 4, "input")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--seed", "-1"], 2, "--seed -1: expected 0 to"),
        (["--seed", str(1 << 32)], 2, "expected 0 to"),
        (["--threads", "-3"], 2, "--threads -3: expected 0 to"),
        (["--threads", "1000000"], 2, "expected 0 to"),
        (["-o", "."], 4, "cannot write .: it is a folder"),
        (["-o", "/"], 4, "cannot write /: it is a folder"),
        (["-o", ""], 4, "it is a folder"),
        (["-o", "n" * 300], 4, "File name too long"),
        (["-o", "folder"], 4, "it is a folder"),
        (["-o", "file/y.npz"], 4, "file is no folder"),
        (["--input", "image=folder"], 4, "Is a directory"),
        (["--input", f"image={'n' * 300}.npy"], 4, "File name too long"),
        (["--input", "image=/dev/zero"], 4, "no regular file"),
    ],
)
def test_odd_arguments_are_refused_in_one_line(
    call: Call,
    digits_bundle: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    check_error(call("run", digits_bundle, *arguments), code, message)


def test_a_bundle_whose_name_is_too_long(call: Call) -> None:
    check_error(call("run", "n" * 300), 4, "File name too long")


@pytest.mark.parametrize("name", ["file", "allow_pickle", "args", ".", "a/b", "arr_0"])
def test_outputs_may_have_any_name(call: Call, tmp_path: Path, name: str) -> None:
    """Some are arguments of `numpy.savez`, or no names of files."""
    path = save(make_model([node("Relu", ["x"], [name])], {"x": [4]}, [name]), tmp_path)
    assert call("compile", path, "-q", "-o", "x.edgec")[0] == 0
    code, _, err = call("run", "x.edgec", "-o", "y.npz")
    assert code == 0, err
    with np.load(tmp_path / "y.npz") as found:
        assert found.files == [name]
        assert found[name].shape == (4,)


def test_what_is_written_can_be_read_as_input(
    call: Call, digits_bundle: Path, tmp_path: Path
) -> None:
    image = np.random.default_rng(5).standard_normal((1, 1, 8, 8), np.float32)
    np.save(tmp_path / "c.npy", image)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(image))
    np.savez_compressed(tmp_path / "z.npz", image=image)
    found = [
        call("run", digits_bundle, "--json", "--input", source)[1]
        for source in ("image=c.npy", "image=fortran.npy", "z.npz")
    ]
    assert found[0] == found[1] == found[2]
    assert call("run", digits_bundle, "--json")[1] != found[0]
