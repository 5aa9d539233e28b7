"""Tables of bundles side by side: what is measured, what is predicted, and what is not known."""

import json
from pathlib import Path

import pytest
from support.report_pages import HOSTILE, LONG, evaluation

from edgec.compiler.errors import OutputError
from edgec.compiler.evaluate.evaluation_report import (
    evaluation_page,
    head,
    notes,
    rows,
    write_evaluation,
)
from edgec.compiler.support.html_report import Figure, Table


def test_rows_say_how_a_figure_is_known() -> None:
    found = evaluation()
    measured, foreign = (dict(zip(head(found), row, strict=True)) for row in rows(found))
    assert (measured["known by"], foreign["known by"]) == ("measured", "predicted")
    assert (measured["top1"], foreign["top1"]) == ("0.7500", "")
    assert (measured["energy by"], foreign["energy [mJ]"]) == ("RAPL", "")
    assert measured["library [MB]"] == "0.099"
    assert any("never measured" in line for line in notes(found))
    assert any(line.startswith(f"{LONG}: no accuracy") for line in notes(found))


def test_plots_hold_no_text_of_a_model() -> None:
    figure, table = evaluation_page(evaluation()).sections
    assert isinstance(figure, Figure)
    assert isinstance(table, Table)
    assert HOSTILE not in figure.svg
    assert table.rows[0][0].text == HOSTILE


def test_files(tmp_path: Path) -> None:
    for suffix in ("csv", "json", "html"):
        write_evaluation(tmp_path / f"a.{suffix}", evaluation())
    assert json.loads((tmp_path / "a.json").read_text())["metric"] == "top1"
    assert (tmp_path / "a.csv").read_text().startswith("bundle,target,changes,top1,")
    assert "Comparison of" in (tmp_path / "a.html").read_text()
    with pytest.raises(OutputError, match="cannot write"):
        write_evaluation(tmp_path / "no" / "a.csv", evaluation())
