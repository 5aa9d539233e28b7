"""No class is above 400 lines, and no Python file above 500 that does not say why."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("compiler", "models", "targets", "tests")
FILE_LINES = 500
CLASS_LINES = 400
REASON = "This file is long because"


def long_parts(name: str, text: str) -> list[str]:
    """Return what of a file is too long: the file itself, classes of it."""
    tree = ast.parse(text)
    reasons = (ast.get_docstring(tree) or "").splitlines()
    found = []
    if len(text.splitlines()) > FILE_LINES and not any(r.startswith(REASON) for r in reasons):
        found.append(name)
    found += [
        f"{name}:{node.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno >= CLASS_LINES
    ]
    return found


def files() -> Iterator[Path]:
    """Yield every Python file of the package and the tests."""
    for folder in FOLDERS:
        yield from (ROOT / folder).rglob("*.py")


def test_nothing_is_long() -> None:
    found = [
        part
        for path in files()
        for part in long_parts(path.relative_to(ROOT).as_posix(), path.read_text())
    ]
    assert sorted(found) == [], "split it, or say why in its docstring"


LINES = "x = 1\n" * FILE_LINES
CLASS = "class Long:\n" + "    x = 1\n" * (CLASS_LINES - 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LINES, []),
        (LINES + "y = 2\n", ["a.py"]),
        (f'"""A table.\n\n{REASON} it is one table.\n"""\n{LINES}', []),
        (f'"""A table that says: {REASON}."""\n{LINES}', ["a.py"]),
        (CLASS, []),
        (CLASS + "    y = 2\n", ["a.py:Long"]),
        (f'"""A.\n\n{REASON} so.\n"""\n{CLASS}    y = 2\n', ["a.py:Long"]),
    ],
    ids=["at-limit", "file", "reason", "no-line", "class-at-limit", "class", "no-reason-for-class"],
)
def test_negative_control(text: str, expected: list[str]) -> None:
    assert long_parts("a.py", text) == expected
