"""`edgec verify`."""

import shutil
from pathlib import Path

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
