"""What a Markdown document holds: blocks to run, expected output, links, headings, paths."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LEFT_OUT = "…"

_RUN = ("sh", "python")
_FENCE = re.compile(r"^```(\w*)$")
_NOT_RUN = re.compile(r"^<!-- not run: (.+) -->$")
_NUMBER = re.compile(
    r"(?<![A-Za-z])[-+]?(?:\d+(?:,\d{3})*(?:\.\d+)*(?:e[-+]?\d+)?|\binf\b|\bnan\b)"
)
_UNIT = re.compile(r"# ?(?:(?:k|M|G)?(B)|(?:µ|m)?(s))\b")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_QUOTED = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """A block is what a reader pastes.

    Attributes:
        language: `sh` or `python`.
        text: the text of the block.
        line: the line that it begins at, from 1.
        expected: the `text` block right after it; None if there is none.
        not_run: why a test cannot run it; empty if it can.
    """

    language: str
    text: str
    line: int
    expected: str | None = None
    not_run: str = ""


def blocks_of(document: str) -> list[Block]:
    """Return the blocks that can be run, in order."""
    found: list[Block] = []
    why, after = "", False
    for language, text, line in _parts(document):
        if not language:
            comment = _NOT_RUN.match(text)
            if comment:
                why = comment[1]
            elif text.strip():
                why, after = "", False
        elif language in _RUN:
            found.append(Block(language, text, line, not_run=why))
            why, after = "", True
        elif language == "text" and after:
            last = found.pop()
            found.append(Block(last.language, last.text, last.line, text, last.not_run))
            after = False
        else:
            why, after = "", False
    return found


def _parts(document: str) -> Iterator[tuple[str, str, int]]:
    """Yield language, text and line: fenced blocks whole, other lines with an empty language."""
    language, held, begin = "", [""], 0
    inside = False
    for number, line in enumerate(document.splitlines(), 1):
        fence = _FENCE.match(line)
        if not fence:
            if inside:
                held.append(line)
            else:
                yield "", line, number
        elif inside:
            yield language, "\n".join(held) + "\n", begin
            inside = False
        else:
            inside, held, language, begin = True, [], fence[1] or "none", number


def line_shape(line: str) -> str:
    """Return a line without what differs from run to run: numbers, sizes of units, widths.

    >>> line_shape("  x: largest error 6e-08,  0.1% of 127.0.0.1:80, 0.8 MB in 3 ms")
    'x: largest error #, #% of #:#, # B in # s'
    """
    numbers = " ".join(_NUMBER.sub("#", line).split())
    return _UNIT.sub(lambda unit: f"# {unit[1] or unit[2]}", numbers)


def missing_line(expected: str, output: str) -> str | None:
    """Return the first expected line that the output has not, in order; None if it has all."""
    shapes = iter([line_shape(line) for line in output.splitlines()])
    for line in expected.splitlines():
        wanted = line_shape(line)
        if wanted and wanted != LEFT_OUT and not any(shape == wanted for shape in shapes):
            return line
    return None


def _prose(document: str) -> str:
    return "\n".join(text for language, text, _ in _parts(document) if not language)


def links_of(document: str) -> list[str]:
    """Return where links lead to, those to the web left out."""
    return [to for to in _LINK.findall(_prose(document)) if "://" not in to]


def anchors_of(document: str) -> set[str]:
    """Return the anchors of the headings, as GitHub writes them.

    >>> sorted(anchors_of("# A board's `name`"))
    ['a-boards-name']
    """
    titles = re.findall(r"^#+ (.+)$", _prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def quoted_paths(document: str, roots: tuple[str, ...]) -> list[str]:
    """Return the paths in backticks that begin with a folder of the repository."""
    quoted = [text for text in _QUOTED.findall(_prose(document)) if re.fullmatch(r"[^\s<>]+", text)]
    return [text for text in quoted if text.split("/")[0] in roots and "/" in text]


def quoted_files(document: str) -> list[str]:
    """Return names of source files in backticks that stand without a folder."""
    return re.findall(r"`(\w+\.(?:py|c|h|cpp|hpp))`", _prose(document))


def is_in(root: Path, path: str) -> bool:
    """Tell whether a path, possibly with `{a,b}` and `*`, is in a folder."""
    braces = re.search(r"\{([^}]+)\}", path)
    if braces:
        each = (path.replace(braces[0], choice, 1) for choice in braces[1].split(","))
        return all(is_in(root, choice) for choice in each)
    return any(root.glob(path.rstrip("/")))
