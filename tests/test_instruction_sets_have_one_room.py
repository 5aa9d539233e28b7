"""What belongs to one instruction set stands in the rooms for that, and nowhere else."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgec.compiler

ROOT = Path(edgec.compiler.__file__).parent

# Beside `edgec.targets.isa`: writers of kernels, the check of linked files, Linux's numbers.
ROOMS = ("kernels/isa/", "codegen/elf.py", "trust/system_calls.py")

WORDS = re.compile(r"llvm\.(x86|aarch64)|avx|neon|vnni|aarch64|x86_64|armv7l|vpdpbusd|smmla", re.I)
# A comparison of one of these with a constant is a branch on an instruction set.
ASKED = {"architecture", "integer_dot"}


def sources() -> Iterator[tuple[str, str]]:
    """Path below `compiler` and text of each file outside the rooms."""
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(ROOMS):
            yield name, path.read_text(encoding="utf-8")


def words(text: str) -> list[str]:
    """Lines that name an instruction set or an instruction."""
    return [line.strip() for line in text.splitlines() if WORDS.search(line)]


def branches(text: str) -> list[str]:
    """Comparisons of an architecture, or of how it multiplies, with constants; also by `match`."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Match) and _asks(node.subject):
            found.append(f"match {ast.unparse(node.subject)}")
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            has_constant = any(isinstance(n, ast.Constant) for s in sides for n in ast.walk(s))
            if has_constant and any(map(_asks, sides)):
                found.append(ast.unparse(node))
    return found


def _asks(expression: ast.expr) -> bool:
    return any(isinstance(n, ast.Attribute) and n.attr in ASKED for n in ast.walk(expression))


def test_no_other_file_names_an_instruction_set() -> None:
    assert {name: found for name, text in sources() if (found := words(text))} == {}


def test_no_other_file_branches_on_an_architecture() -> None:
    assert {name: found for name, text in sources() if (found := branches(text))} == {}


@pytest.mark.parametrize(
    "line",
    ['name = "llvm.x86.avx2.packssdw"', "# with NEON alone", 'call("aarch64.neon.sdot")'],
)
def test_a_name_is_seen(line: str) -> None:
    assert words(line)


@pytest.mark.parametrize(
    "line",
    [
        't.architecture == "x86_64"',
        't.integer_dot in ("vnni", "sdot")',
        "'none' != t.integer_dot",
        "match t.architecture:\n    case _: pass",
    ],
)
def test_a_branch_is_seen(line: str) -> None:
    assert branches(line)
    assert not branches("a.architecture != b.architecture")
