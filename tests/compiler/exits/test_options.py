"""What is said of exits before anything is compiled."""

from pathlib import Path

import pytest
from support.cli_calls import Call

from edgec.compiler.errors import UsageError
from edgec.compiler.exits.options import ExitOptions, parse_exits
from edgec.compiler.options import CompileOptions


def test_depths_are_read() -> None:
    assert parse_exits("0.3,0.6", 0.02) == ExitOptions(depths=(0.3, 0.6), drop=0.02)


@pytest.mark.parametrize(
    ("text", "drop", "message"),
    [
        ("half", None, "write shares of the model"),
        ("0.6,0.3", None, "ascending"),
        ("1.5", None, "1.5 is no depth"),
        ("0.5", 0.0, "0 is no share"),
    ],
)
def test_wrong_exits_are_refused(text: str, drop: float | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_exits(text, drop)


def test_variants_have_no_exits() -> None:
    with pytest.raises(UsageError, match="no --exits"):
        CompileOptions(variants={"a": None, "b": None}, exits=parse_exits("0.5"))  # type: ignore[dict-item]


def test_no_depths_are_not_as_if_none_had_been_asked_for(call: Call, digits: Path) -> None:
    code, _, err = call("compile", digits, "--exits", "", "-o", "x.edgec")
    assert (code, "write shares of the model" in err) == (2, True), err
