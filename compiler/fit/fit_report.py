"""Write the report of a search: the front, and what was tried."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.fit.limits import QUANTITIES, Costs, Quantity, quantity_text
from edgec.compiler.fit.search import Search, Trial
from edgec.compiler.support.html_report import (
    Cell,
    Column,
    Figure,
    Report,
    Subject,
    Table,
    save_report,
    svg_of,
)


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """A fit report describes what a search found.

    Attributes:
        model: name of the file.
        target: name of the target.
        search: all trials, the front and the limits.
        work: pieces of work that this run did, by kind; others were known.
        chosen: the best version that keeps the limits; None if there is none.
        bundle: its bundle.
        command: the command that makes the same bundle.
    """

    model: str
    target: str
    search: Search
    work: Mapping[str, int]
    chosen: Trial | None
    bundle: Bundle | None
    command: str


def fit_fields(report: FitReport) -> dict[str, Any]:
    """Return a report as numbers and text."""
    search = report.search
    front = {trial.point for trial in search.front}
    return {
        "model": report.model,
        "target": report.target,
        "limits": dict(search.limits.given),
        "goal": search.goal,
        "reason": search.reason,
        "work": dict(report.work),
        "chosen": report.chosen.point.label if report.chosen else None,
        "bundle": str(report.bundle.path) if report.bundle else None,
        "command": report.command,
        "trials": [
            {
                "version": trial.point.label,
                "compress": trial.point.compress,
                "quantize": trial.point.quantize,
                "program": trial.point.program,
                "predicted": trial.predicted.fields() if trial.predicted else None,
                "costs": trial.costs.fields() if trial.costs else None,
                "measured": trial.measured,
                "on_front": trial.point in front,
                "keeps_limits": trial.costs is not None and search.limits.keeps(trial.costs),
                "failure": trial.failure,
            }
            for trial in search.trials.values()
        ],
    }


def write_fit_report(path: Path, report: FitReport) -> None:
    """Write a .json or .html file.

    Raises:
        OutputError: it cannot be written.
    """
    save_report(path, fit_fields(report), fit_page(report))


def fit_page(report: FitReport) -> Report:
    """Return the page of a search."""
    search = report.search
    facts = {
        f"Limit of {quantity}": Cell(quantity_text(quantity, limit))
        for quantity, limit in search.limits.given.items()
    }
    facts["Made small"] = Cell(search.goal)
    if report.chosen is not None:
        facts["Chosen"] = Cell(report.chosen.point.label, tone="gain")
        facts["Command"] = Cell(report.command)
    else:
        facts["Chosen"] = Cell("no version keeps the limits", tone="loss")
    facts["Search"] = Cell(
        f"{len(search.evaluated)} versions compiled, {len(search.trials)} predicted; ended by "
        f"{search.reason}"
    )
    sections: list[Table | Figure] = []
    if search.knows_drop and search.evaluated:
        sections.append(Figure("Latency and accuracy of what was compiled", _plot(search)))
    return Report(
        kind="Fit",
        subject=Subject(report.model, report.target),
        facts=facts,
        sections=[*sections, _table(search)],
    )


_TITLES: Mapping[Quantity, str] = {
    "latency": "latency [ms]",
    "drop": "drop [%]",
    "size": "library [kB]",
    "memory": "activations [kB]",
}
_SCALES: Mapping[Quantity, float] = {"latency": 1, "drop": 100, "size": 1e-3, "memory": 1e-3}


def _table(search: Search) -> Table:
    front = {trial.point for trial in search.front}
    columns = [Column("version"), *(Column(_TITLES[q], numbers=True) for q in QUANTITIES)]
    columns += [Column("source"), Column("remark", wide=True)]

    def cell(quantity: Quantity, costs: Costs | None) -> Cell:
        if costs is None or math.isnan(costs[quantity]):
            return Cell()
        value = costs[quantity] * _SCALES[quantity]
        exceeds = quantity in search.limits.excess(costs)
        return Cell(f"{value:,.4g}", value, "loss" if exceeds else "")

    def row(trial: Trial) -> list[Cell]:
        costs = trial.costs or trial.predicted
        source = "predicted" if trial.costs is None else "compiled"
        remark = trial.failure or ("on the front" if trial.point in front else "")
        return [
            Cell(trial.point.label),
            *(cell(quantity, costs) for quantity in QUANTITIES),
            Cell("measured" if trial.measured else source),
            Cell(remark, tone="warning" if trial.failure else ""),
        ]

    ranked = [*search.front, *(t for t in search.trials.values() if t.point not in front)]
    return Table(
        "Versions",
        columns,
        [row(trial) for trial in ranked],
        "Red numbers exceed a limit. The latency of what was compiled is predicted unless it says "
        "measured; its other numbers are exact. Of what was predicted only, the library's size is "
        "that of its weights.",
    )


def _plot(search: Search) -> str:
    """Return drop against latency, as SVG."""
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(6.4, 3.6), layout="constrained")
    axes: Any = drawing.subplots()
    front = {trial.point for trial in search.front}
    for chosen, color, label in ((False, "#9aa4b2", "others"), (True, "#3b6fc4", "front")):
        trials = [t for t in search.evaluated if (t.point in front) == chosen]
        costs = [t.costs for t in trials if t.costs is not None]
        axes.scatter(
            [c.latency for c in costs], [100 * c.drop for c in costs], color=color, label=label
        )
    limits = search.limits
    if limits.latency is not None:
        axes.axvline(limits.latency, color="#b4453c", linestyle="--", linewidth=1)
    if limits.drop is not None:
        axes.axhline(100 * limits.drop, color="#b4453c", linestyle="--", linewidth=1)
    axes.set_xlabel("latency [ms]", fontsize=12)
    axes.set_ylabel("drop [%]", fontsize=12)
    axes.tick_params(labelsize=12)
    axes.legend()
    axes.grid(alpha=0.3)
    return svg_of(drawing)
