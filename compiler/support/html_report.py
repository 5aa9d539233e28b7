"""Write reports: JSON for programs, one HTML page without anything beside it for people.

A report is data; `report.html.j2` beside this file is the only place that knows HTML. It escapes
every text, since names come from the model's file.
"""

import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgec.compiler.errors import OutputError, UsageError
from edgec.compiler.support.versions import tool_versions

Tone = Literal["", "loss", "gain", "warning"]
"""How a text is meant; the words say the same as the colour."""


@dataclass(frozen=True)
class Subject:
    """A subject describes what a report is about.

    Attributes:
        model: name of the file or graph.
        target: name of the target.
    """

    model: str
    target: str


@dataclass(frozen=True)
class Cell:
    """A cell describes a text, and what is drawn beside it.

    Attributes:
        text: shown.
        value: what rows are sorted by; None: by the text.
        tone: how it is meant.
        note: a second line.
        bar: length of a bar from 0 to 1; None: no bar.
        span: start and end of a bar and the place of zero, each from 0 to 1.
        heights: the heights of the bars of a histogram, from 0 to 1.
        marks: places of lines across it, from 0 to 1.
    """

    text: str = ""
    value: float | None = None
    tone: Tone = ""
    note: str = ""
    bar: float | None = None
    span: tuple[float, float, float] | None = None
    heights: Sequence[float] = ()
    marks: Sequence[float] = ()

    @property
    def is_empty(self) -> bool:
        """Return whether there is nothing to see."""
        return not (self.text or self.note or self.heights or self.span or self.bar is not None)

    @property
    def sort_key(self) -> str:
        """Return the value as JavaScript reads it; NaN comes before all numbers."""
        if self.value is None:
            return ""
        if math.isinf(self.value) or math.isnan(self.value):
            return "Infinity" if self.value > 0 else "-Infinity"
        return repr(float(self.value))


@dataclass(frozen=True)
class Column:
    """A column describes the head of a column.

    Attributes:
        title: with the unit in brackets.
        numbers: whether its cells are numbers, which stand at the right.
        group: what several columns belong to.
        wide: whether its cells are long texts.
        code: whether its cells are code.
    """

    title: str
    numbers: bool = False
    group: str = ""
    wide: bool = False
    code: bool = False


@dataclass(frozen=True)
class Table:
    """A table describes rows of cells, which the reader can sort by any column.

    Attributes:
        title: above it.
        columns: the heads.
        rows: a cell for each column; the first is the row's name.
        note: below it.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    @property
    def used(self) -> list[int]:
        """Return the positions of the columns that are not empty."""
        return [
            index
            for index in range(len(self.columns))
            if any(not row[index].is_empty for row in self.rows)
        ]


@dataclass(frozen=True)
class Figure:
    """A figure describes a drawing.

    Attributes:
        title: above it.
        svg: the drawing; it is not escaped, and holds no text of a model.
    """

    title: str
    svg: str


@dataclass(frozen=True)
class Report:
    """A report describes a page.

    Attributes:
        kind: what was done, such as `Quantization`.
        subject: to which model, for which target.
        facts: what to know first, by name.
        sections: tables and figures in order.
    """

    kind: str
    subject: Subject
    facts: Mapping[str, Cell]
    sections: Sequence[Table | Figure]
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M %Z").strip())
    versions: Mapping[str, str] = field(default_factory=tool_versions)


def gain_cell(before: float | None, after: float | None) -> Cell:
    """Return how many times as fast something became; slower is called a loss.

    Args:
        before: its time.
        after: in the same unit; None for either: not measured.
    """
    if before is None or after is None or before <= 0 or after <= 0:
        return Cell()
    gain = before / after
    # A loss of a hundredth must not read "1.00"; less than half a thousandth is none.
    text = f"{gain:.{3 if abs(gain - 1) < 0.01 else 2}f} times"
    if round(gain, 3) == 1:
        return Cell("1.00 times", gain)
    return Cell(text, gain, "gain") if gain > 1 else Cell(f"{text}, a loss", gain, "loss")


def score_cell(score: float | None, text: str = "") -> Cell:
    """Return how far a model agrees with the original, 1 at best; what is missing is a loss.

    Args:
        score: how far it agrees; None: nothing was measured.
        text: says it in words; by default the number alone is shown.
    """
    if score is None:
        return Cell()
    if score >= 1:
        return Cell(text or f"{score:.4f}", score)
    return Cell(text or f"{score:.4f}, a loss of {1 - score:.4g}", score, "loss")


def db_cell(value: float | None) -> Cell:
    """Return a signal-to-noise ratio [dB]; noise above the signal is a loss."""
    if value is None:
        return Cell()
    if math.isnan(value):
        return Cell("not a number, a loss", value, "loss")
    if math.isinf(value):
        return Cell("exact", value) if value > 0 else Cell("no signal, a loss", value, "loss")
    if value < 0:
        return Cell(f"{value:.1f}, a loss", value, "loss")
    return Cell(f"{value:.1f}", value)


def time_cell(seconds: float) -> Cell:
    """Return a time of a model, with a digit more than its changes need."""
    text = f"{seconds * 1e3:,.3f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:,.2f} µs"
    return Cell(text, seconds)


def number_cell(value: float | None, digits: int = 0) -> Cell:
    """Return a number with so many digits after the point; None is empty."""
    return Cell() if value is None else Cell(f"{value:,.{digits}f}", value)


def svg_of(drawing: Any) -> str:
    """Return a figure of matplotlib as the element `svg`, the same bytes each time."""
    stream = io.StringIO()
    drawing.savefig(stream, format="svg", metadata={"Date": None})
    svg = stream.getvalue()
    return svg[svg.index("<svg") :]


def render(report: Report) -> str:
    """Return the page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(report=report)


def check_report_name(path: Path | None, option: str) -> None:
    """Refuse a report of another kind.

    Raises:
        UsageError: names the option.
    """
    if path is not None and path.suffix not in (".html", ".json"):
        raise UsageError(f"{option} {path}: expected a name ending in .html or .json")


def save_report(path: Path, fields: Mapping[str, Any], report: Report) -> None:
    """Write the fields to a .json file, or the page to any other.

    Raises:
        OutputError: it cannot be written.
    """
    text = json.dumps(_finite(fields), indent=1) if path.suffix == ".json" else render(report)
    try:
        # Names of files need not be text.
        path.write_text(text.rstrip("\n") + "\n", encoding="utf-8", errors="replace")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None


def _finite(value: Any) -> Any:
    """JSON has no infinities."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not -1e300 < value < 1e300:
        return None
    return value
