"""Calls of the command line, and what an error of it looks like."""

from collections.abc import Callable

Call = Callable[..., tuple[int, str, str]]
"""Runs a command in an empty folder; gives exit code, stdout and stderr."""

COMPILE = ["--shape", "image=1,1,8,8", "-q"]


def check_error(result: tuple[int, str, str], code: int, message: str) -> None:
    """One line on standard error, nothing on standard output, and this exit code."""
    found, out, err = result
    assert found == code, err
    assert out == ""
    assert message in err
    assert err.startswith("edgec: error: ")
    assert len(err.strip().splitlines()) == 1
