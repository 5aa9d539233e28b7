"""What ends a child does not end its parent, and is said."""

import os

import pytest

from edgec.compiler.support.rehearsal import rehearse


def spin() -> None:
    while True:
        pass


def fail() -> None:
    raise ValueError("it is said where it is caught")


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (list, ""),
        (fail, ""),
        (os.abort, "it ends with SIGABRT"),
        # More than may lie free among what this process has mapped already.
        (lambda: bytearray(2**40), "it takes over 100 MB"),
        (spin, "it takes over 1 s"),
    ],
)
def test_how_a_call_ends(call: object, problem: str) -> None:
    assert callable(call)
    assert rehearse(call, 1, 100) == problem
