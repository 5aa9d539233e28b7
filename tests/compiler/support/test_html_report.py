"""Reports of each kind: what the page says, and how a browser shows it."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
import pytest
from support.browser import BROWSER, ask
from support.report_pages import (
    CONDITIONS,
    HOSTILE,
    LONG,
    SUBJECT,
    compression_fields,
    pages,
    quantization_fields,
    tune_report,
)

from edgec.compiler.compress.compression_report import compression_page
from edgec.compiler.errors import OutputError
from edgec.compiler.quantize.quantization_report import quantization_page
from edgec.compiler.support.html_report import (
    Cell,
    Report,
    db_cell,
    gain_cell,
    render,
    save_report,
    score_cell,
)
from edgec.compiler.tune.options import TuneOptions
from edgec.compiler.tune.tuning_report import tune_page

KINDS = ("quantization", "compression", "tuning", "prediction", "evaluation")
VOID = {"meta", "img", "rect", "br"}


class Page(HTMLParser):
    """The elements of a page: names, rows of tables as texts, and whether all are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.rows: list[list[str]] = []
        self.facts: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.addresses: list[str] = []
        self.made = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        fields = dict(attrs)
        self.addresses += [v or "" for k, v in fields.items() if k in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        for tag in ("td", "th"):
            if tag in self.open:
                self.rows[-1][-1] = (self.rows[-1][-1] + data).strip()
        if self.open[-1:] == ["p"] and not self.made:
            self.made = data
        if self.open:
            self.texts[self.open[-1]] = data
        if self.open[-1:] == ["dd"]:
            self.facts[self.texts["dt"]] = data

    def row(self, name: str) -> list[str]:
        return next(row for row in self.rows if row and row[0] == name)


def bars(text: str) -> list[float]:
    """Lengths of the bars from the top [%]."""
    return [float(width) for width in re.findall(r'<i class="\w*" style="width:([\d.]+)%"', text)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_says_what_when_and_by_which_versions(kind: str) -> None:
    report = pages()[kind]
    page = Page(render(report))
    assert page.texts["h1"] == f"{report.kind} of {SUBJECT.model} for rpi4"
    assert page.texts["title"] == f"{page.texts['h1']}, {report.date}"
    assert re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d", report.date)
    assert all(f"{name} {version}" in page.made for name, version in report.versions.items())
    assert page.made.startswith(report.date)
    assert {"edgec", "numpy", "apache-tvm"} <= set(report.versions)


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_text_and_nothing_is_loaded(kind: str) -> None:
    text = render(pages()[kind])
    page = Page(text)
    assert (page.open, page.wrong) == ([], [])
    assert "img" not in page.elements
    assert page.elements.count("script") == 1
    assert any(HOSTILE in cell for row in page.rows for cell in row)
    # Only parts of the drawing itself.
    assert all(address.startswith("#") for address in page.addresses)
    assert "@import" not in text
    assert "url(http" not in text


def test_without_escapes_a_name_would_be_an_element(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = jinja2.Environment

    def careless(**options: Any) -> jinja2.Environment:
        return environment(**{**options, "autoescape": False})

    monkeypatch.setattr(jinja2, "Environment", careless)
    assert "img" in Page(render(pages()["quantization"])).elements


def test_the_worst_operator_has_the_longest_bar() -> None:
    alone = {"good": 55.0, "bad": 12.0, "exact": math.inf, "fair": 31.0}
    fields = quantization_fields(alone, values=[], islands=[])
    text = render(quantization_page(fields, SUBJECT))
    assert [row[0] for row in Page(text).rows[1:]] == ["bad", "fair", "good", "exact"]
    lengths = bars(text)
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == 100
    # By amplitude: 19 dB less noise is a ninth.
    assert lengths[1] == pytest.approx(100 / 10 ** (19 / 20), abs=0.01)


def test_without_samples_the_weights_are_ranked() -> None:
    fields = quantization_fields({"a": 1.0, "b": 1.0}, accuracy=None, values=[], islands=[])
    for operator, weight in zip(fields["operators"], (40.0, 20.0), strict=True):
        operator.update(alone_sqnr_db=None, alone_score=None, weight_sqnr_db=weight)
    page = Page(render(quantization_page(fields, SUBJECT)))
    assert page.rows[0][:2] == ["operator", "noise of its weights"]
    assert [row[0] for row in page.rows[1:]] == ["b", "a"]
    # Columns of which nothing is known are left out.
    assert not any("metric" in head or "alone" in head for head in page.rows[0])


@pytest.mark.parametrize("positions", [64, 0])
def test_a_score_says_what_it_is_the_share_of(positions: int) -> None:
    """Of a metric of the user's it has the name; where nothing was compared it is left out."""
    own = quantization_fields({"a": 20.0})
    own["accuracy"] |= {"metric": "mine:words", "positions": 0}
    page = Page(render(quantization_page(own, SUBJECT)))
    assert page.facts["Over 64 batches"] == "mine:words 0.9375"
    assert "mine:words with it alone" in page.rows[0]
    own["accuracy"] |= {"metric": "", "positions": positions}
    page = Page(render(quantization_page(own, SUBJECT)))
    assert ("Over 64 batches" in page.facts) == (positions > 0)
    assert ("same largest class with it alone" in page.rows[0]) == (positions > 0)
    compressed = compression_fields(1.0, 0.99) | {"positions": positions}
    page = Page(render(compression_page(compressed, SUBJECT)))
    assert ("Over 16 batches" in page.facts) == (positions > 0)
    assert ("same largest class" in page.rows[0]) == (positions > 0)


def test_the_kernel_that_takes_most_time_comes_first() -> None:
    times = {"small": (2e-5, 1e-5), "large": (9e-5, 8e-5)}
    text = render(tune_page(tune_report(times), SUBJECT, CONDITIONS))
    assert [row[0] for row in Page(text).rows[1:]] == ["large", "small"]
    assert bars(text) == [100, 12.5]


def test_a_loss_is_called_a_loss() -> None:
    slower = tune_page(tune_report({"a": (1e-4, 2e-4)}), SUBJECT, CONDITIONS)
    assert slower.facts["Gain"] == Cell("0.50 times, a loss", 0.5, "loss")
    page = Page(render(slower))
    assert page.facts["Gain"] == "0.50 times, a loss"
    assert page.row("a")[2] == "0.50 times, a loss"
    assert '<dd class="loss">' in render(slower)

    compressed = compression_page(compression_fields(2.5, 0.99), SUBJECT)
    assert compressed.facts["Speed on this machine"].text == "0.80 times, a loss"
    page = Page(render(compressed))
    assert page.facts["SQNR [dB]"] == "-1.5, a loss"
    assert page.facts["Over 16 batches"] == ("the largest class agrees in 99.00% of 100 positions")
    assert 'class="loss">the largest class' in render(compressed)
    assert "0.80 times, a loss" in page.row("channels")

    quantized = Page(render(pages()["quantization"]))
    assert (
        quantized.facts["Over 64 batches"] == "the largest class agrees in 93.75% of 64 positions"
    )
    assert "-3.0, a loss" in quantized.row("lost")


def test_a_gain_is_none() -> None:
    better = tune_page(tune_report({"a": (2e-4, 1e-4)}), SUBJECT, CONDITIONS)
    compressed = compression_page(compression_fields(1.0, 1.0), SUBJECT)
    assert better.facts["Gain"].text == "2.00 times"
    assert compressed.facts["Speed on this machine"] == Cell("2.00 times", 2.0, "gain")
    assert compressed.facts["Over 16 batches"].text.startswith(
        "the largest class agrees in 100.00%"
    )
    assert "loss" not in Page(render(better)).row("a")[2]


@pytest.mark.parametrize(
    ("before", "after", "text", "tone"),
    [
        (1.0, 1.0, "1.00 times", ""),
        (1.0, 1.0001, "1.00 times", ""),
        (1.0, 1.002, "0.998 times, a loss", "loss"),
        (1.0, 0.998, "1.002 times", "gain"),
        (3.0, 1.0, "3.00 times", "gain"),
        (None, 1.0, "", ""),
        (1.0, 0.0, "", ""),
    ],
)
def test_gains(before: float | None, after: float | None, text: str, tone: str) -> None:
    cell = gain_cell(before, after)
    assert (cell.text, cell.tone) == (text, tone)


@pytest.mark.parametrize(
    ("value", "text", "key"),
    [
        (None, "", ""),
        (24.56, "24.6", "24.56"),
        (-0.5, "-0.5, a loss", "-0.5"),
        (math.inf, "exact", "Infinity"),
        (-math.inf, "no signal, a loss", "-Infinity"),
        (math.nan, "not a number, a loss", "-Infinity"),
    ],
)
def test_ratios(value: float | None, text: str, key: str) -> None:
    cell = db_cell(value)
    assert (cell.text, cell.sort_key) == (text, key)
    assert (cell.tone == "loss") == ("loss" in text)


def test_a_score_is_not_rounded_to_another() -> None:
    assert score_cell(0.9375).text == "0.9375, a loss of 0.0625"


def test_files(tmp_path: Path) -> None:
    # A file's name that is no text.
    odd = replace(pages()["tuning"], subject=replace(SUBJECT, model="\udcff.onnx"))
    save_report(tmp_path / "a.html", {}, odd)
    assert "Tuning of ?.onnx" in (tmp_path / "a.html").read_text()
    save_report(tmp_path / "a.json", {"x": math.inf, "y": [1.5]}, odd)
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "y": [1.5]}
    with pytest.raises(OutputError, match="cannot write"):
        save_report(tmp_path / "no" / "a.html", {}, odd)


def test_a_tuning_report_is_html_or_json() -> None:
    with pytest.raises(Exception, match=r"--report a\.txt: expected a name ending in \.html or"):
        TuneOptions(report=Path("a.txt"))


browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")

LAYOUT = """
  const inside = [...page.querySelectorAll("h1, h2, p, dd, .wide, svg")]
    .filter(element => !element.closest(".wide") || element.matches(".wide"))
    .every(element => element.getBoundingClientRect().right <= view.innerWidth);
  const size = parseFloat(view.getComputedStyle(page.querySelector("td")).fontSize);
  const first = page.querySelector("td");
  const wide = first.closest(".wide");
  wide.scrollLeft = 10000;
  return { width: view.innerWidth, content: page.documentElement.scrollWidth, inside, size,
    name: first.getBoundingClientRect().left - wide.getBoundingClientRect().left,
    images: page.images.length };
"""


@browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", KINDS)
def test_the_page_is_as_wide_as_the_window(kind: str, width: int, tmp_path: Path) -> None:
    seen = ask(render(pages()[kind]), width, LAYOUT, tmp_path)
    assert seen["width"] == width
    assert seen["content"] <= width
    assert seen["inside"]
    assert seen["size"] >= 12
    # The name stays in sight when a table is scrolled sideways.
    assert 0 <= seen["name"] <= 2
    assert seen["images"] == 0


@browser
def test_a_page_that_is_too_wide_is_seen(tmp_path: Path) -> None:
    page = render(pages()["compression"]).replace(".wide { overflow-x: auto;", ".wide {")
    assert ask(page, 390, LAYOUT, tmp_path)["content"] > 390


CLICKS = """
  const table = page.querySelector("table");
  const names = () => [...table.tBodies[0].rows].map(row => row.cells[0].firstChild.data.trim());
  const heads = [...table.tHead.rows[0].cells];
  const click = title => {
    const head = heads.find(head => head.textContent.trim() === title);
    head.querySelector("button").click();
    return [head.getAttribute("aria-sort"), names()];
  };
  const ratio = "SQNR of the model with it alone [dB]";
  return { before: names(), first: click(ratio), second: click(ratio), text: click("operator"),
    sorted: heads.filter(head => head.hasAttribute("aria-sort")).length };
"""


@browser
def test_a_click_on_a_head_sorts(tmp_path: Path) -> None:
    alone = {"a10": 9.5, "a9": 55.0, "B": 101.0, "none": None, "exact": math.inf, "lost": -3.0}
    fields = quantization_fields(alone)  # type: ignore[arg-type]
    seen = ask(render(quantization_page(fields, SUBJECT)), 800, CLICKS, tmp_path)
    assert seen["before"][:3] == ["lost", "a10", "a9"]
    # By value, not by letters; what is empty stays last.
    down = ["exact", "B", "a9", "a10", "lost"]
    assert seen["first"] == ["descending", [*down, "none"]]
    assert seen["second"] == ["ascending", [*down[::-1], "none"]]
    assert seen["text"] == ["ascending", ["a9", "a10", "B", "exact", "lost", "none"]]
    assert seen["sorted"] == 1


@browser
def test_hostile_names_are_shown_as_they_are(tmp_path: Path) -> None:
    script = 'return [...page.querySelectorAll("td:first-child")].map(cell => cell.textContent)'
    names = ask(render(pages()["tuning"]), 800, script, tmp_path)
    assert HOSTILE in [name.strip() for name in names]
    assert LONG in [name.strip() for name in names]


def test_every_report_has_the_same_look() -> None:
    def style(report: Report) -> str:
        text = render(report)
        return text[text.index("<style>") : text.index("</style>")]

    assert len({style(report) for report in pages().values()}) == 1
