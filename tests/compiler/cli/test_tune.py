"""`edgec tune`: what is refused before any work; the search itself is in `tests/compiler/tune`."""

from pathlib import Path

import pytest
from support.cli_calls import Call, check_error

SHAPE = ["--shape", "image=1,1,8,8"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--trials", "5", "--seed", "-1"], 2, "--seed -1: expected 0 to"),
        (["--trials", "5", "--threads", "-1"], 2, "--threads -1: expected 0 to"),
        (["--trials", "0"], 2, "--trials 0: expected 1 to"),
        (["--time", "9" * 400 + "h"], 2, "is no time at all"),
        (["--trials", "5", "--report", "file/r.html"], 4, "file is no folder"),
        (["--trials", "5", "--board", "nowhere"], 4, "nowhere"),
    ],
)
def test_bad_arguments(
    call: Call, digits: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "file").write_text("x")
    check_error(call("tune", digits, *SHAPE, "--db", "db", *arguments), code, message)
    assert not (tmp_path / "db").exists()


def test_a_database_that_cannot_be_written(call: Call, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    arguments = ["tune", digits, *SHAPE, "--trials", "5"]
    check_error(call(*arguments, "--db", "file/db"), 4, "file")
    check_error(call(*arguments, "--db", "."), 4, "is no file")
