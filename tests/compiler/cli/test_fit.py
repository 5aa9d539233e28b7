"""`edgec fit`: what is refused before any work; the search itself is in `tests/compiler/fit`."""

from pathlib import Path

import pytest
from support.cli_calls import Call, check_error

SHAPE = ["--shape", "image=1,1,8,8"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--latency", "20"], 2, "--latency '20': write 20ms"),
        (["--size", "0MB"], 2, "a limit is a positive number"),
        (["--drop", "1%"], 2, "--drop is measured on samples"),
        (["--drop", "200%"], 2, "is no share"),
        (["--drop", "1%", "--data", "none.npz"], 4, "none.npz does not exist"),
        (["--drop", "1%", "--data", "os:none"], 2, "module os has no function none"),
        (["--drop", "1%", "--calibration", "none.npy"], 4, "none.npy does not exist"),
        (["--drop", "1%", "--data", ".", "--metric", "os:none"], 2, "has no function none"),
        (["--records", "none.jsonl"], 4, "none.jsonl: no such file"),
        (["--board", "none"], 4, "'none'"),
        (["--trials", "0"], 2, "--trials 0: expected 1 to"),
        (["--recipes", "int9"], 2, "did you mean int8?"),
        (["--board", "pi", "--no-measure"], 2, "contradict each other"),
        (["--report", "file/r.html"], 4, "file is no folder"),
        (["--folder", "file"], 4, "file"),
        (["--cluster", "here"], 2, "--cluster here: write tcp://HOST:PORT"),
    ],
)
def test_bad_arguments(
    call: Call, digits: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "file").write_text("x")
    check_error(call("fit", digits, *SHAPE, *arguments), code, message)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
