"""`edgec verify`."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.cli_calls import Call, check_error


@pytest.mark.parametrize("name", ["manifest.json", "model.so", "vectors/0/input-0.npy"])
def test_damaged_bundle(call: Call, digits_bundle: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(digits_bundle, tmp_path / "d.edgec"))
    data = bytearray((copy / name).read_bytes())
    data[100] ^= 1
    (copy / name).write_bytes(data)
    for verb in ("verify", "run", "inspect"):
        check_error(call(verb, copy), 1, name)


def test_a_seed_that_cannot_be(call: Call, digits_bundle: Path) -> None:
    check_error(call("verify", digits_bundle, "--seed", "-1"), 2, "--seed -1: expected 0 to")


def test_inputs_of_ones_own(call: Call, digits_bundle: Path, digits: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(3).random((1, 1, 8, 8), np.float32)
    np.save(tmp_path / "image.npy", image)
    given = ("verify", digits_bundle, "--input", "image=image.npy")
    check_error(call(*given), 2, "--input needs what to compare with: --model FILE.onnx")
    assert call(*given, "--model", digits)[0] == 0
    assert call("run", digits_bundle, *given[2:], "-o", "outputs.npz")[0] == 0
    assert call(*given, "--expected", "outputs.npz")[0] == 0
    outputs = dict(np.load(tmp_path / "outputs.npz"))
    np.save(tmp_path / "logits.npy", outputs["logits"] + np.float32(0.01))
    code, out, err = call(*given, "--expected", "logits=logits.npy")
    assert code == 1
    assert "logits" in out
    assert "times the error allowed" in err
    check_error(call(*given, "--expected", "logit=logits.npy"), 4, "did you mean logits?")
    check_error(call("verify", digits_bundle, "--expected", "outputs.npz"), 2, "--input")
