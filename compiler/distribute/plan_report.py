"""Write the report of a split model: what its stages and links did, and when."""

import dataclasses
from pathlib import Path
from typing import Any

from edgec.compiler.distribute.bench_plan import PlanBench
from edgec.compiler.distribute.plan_session import PlanSession
from edgec.compiler.support.html_report import (
    Cell,
    Column,
    Figure,
    Report,
    Subject,
    Table,
    gain_cell,
    number_cell,
    save_report,
    svg_of,
    time_cell,
)

# What is drawn of a throughput test, and the links that a request's bytes are laid out for.
_SHOWN_REQUESTS = 12
_LINKS_MBIT = (1000, 100, 10)


def report_fields(found: PlanBench) -> dict[str, Any]:
    """Return what was measured, as plain values."""
    return {
        **dataclasses.asdict(found),
        "latency": found.latency.summary(),
        "whole": None if found.whole is None else found.whole.summary(),
        "speedup": found.speedup,
    }


def write_plan_report(path: Path, session: PlanSession, found: PlanBench) -> None:
    """Write a .json or .html file.

    Raises:
        OutputError: it cannot be written.
    """
    save_report(path, report_fields(found), plan_page(session, found))


def plan_page(session: PlanSession, found: PlanBench) -> Report:
    """Return the page."""
    whole = None if found.whole is None else found.whole.median_ms / 1e3
    targets = ", ".join(dict.fromkeys(s.target for s in session.plan.programs[0].stages))
    return Report(
        kind="Split",
        subject=Subject(session.plan.model.name, targets),
        facts={
            "One request": time_cell(found.latency.median_ms / 1e3),
            "Of it no stage computes": time_cell(found.outside_ms / 1e3),
            "Several under way": Cell(f"{found.per_second:,.1f} per second"),
            "The whole model here": Cell() if whole is None else time_cell(whole),
            "Throughput beside it": Cell()
            if whole is None
            else gain_cell(whole, 1 / found.per_second),
        },
        sections=[
            Figure("Stages during the throughput test", _timeline(found)),
            _stages(found),
            _links(found),
            _slower_links(found),
        ],
    )


def _stages(found: PlanBench) -> Table:
    columns = (
        Column("device"),
        Column("bundle"),
        Column("computes [ms]", numbers=True),
        Column("busy", numbers=True),
    )
    rows = [
        [
            Cell(stage.device),
            Cell(stage.bundle),
            number_cell(stage.compute_ms, 3),
            Cell(f"{stage.busy:.0%}", stage.busy, bar=min(1.0, stage.busy)),
        ]
        for stage in found.stages
    ]
    return Table("Stages", columns, rows, "Busy is the share of the throughput test.")


def _links(found: PlanBench) -> Table:
    most = max((link.size_bytes for link in found.links), default=1) or 1
    columns = (
        Column("from"),
        Column("to"),
        Column("bytes of a request", numbers=True),
        Column("used [Mbit/s]", numbers=True),
        Column("values", wide=True),
    )
    rows = [
        [
            Cell(link.source),
            Cell(link.target),
            Cell(f"{link.size_bytes:,}", link.size_bytes, bar=link.size_bytes / most),
            number_cell(link.size_bytes * 8e-6 * found.per_second, 1),
            Cell(", ".join(link.values)),
        ]
        for link in found.links
    ]
    note = "What is used, with several requests under way, follows from bytes and throughput."
    return Table("Links", columns, rows, note)


def _slower_links(found: PlanBench) -> Table:
    """Return what slower links would cost, by arithmetic."""
    slowest = max(stage.compute_ms for stage in found.stages)
    columns = (
        Column("links of"),
        Column("one request at least [ms]", numbers=True),
        Column("at most per second", numbers=True),
        Column("the whole model here, per second", numbers=True),
    )
    rows = []
    for mbit in _LINKS_MBIT:
        sending = [link.size_bytes * 8e-3 / mbit for link in found.links]
        rows.append(
            [
                Cell(f"{mbit} Mbit/s", mbit),
                number_cell(sum(stage.compute_ms for stage in found.stages) + sum(sending), 2),
                number_cell(1e3 / max(slowest, *sending), 1),
                Cell() if found.whole is None else number_cell(1e3 / found.whole.median_ms, 1),
            ]
        )
    note = (
        "Not measured: stages as measured one after the other and the bytes of each link at full "
        "speed; the slowest stage or link limits the throughput."
    )
    return Table("Over other links", columns, rows, note)


def _timeline(found: PlanBench) -> str:
    """Return what each stage computed when, for some requests of the throughput test, as SVG."""
    from matplotlib.figure import Figure as Drawing

    numbers = sorted({t.request for t in found.times})
    middle = len(numbers) // 2
    shown = set(numbers[middle : middle + _SHOWN_REQUESTS])
    times = [t for t in found.times if t.request in shown]
    start = min((t.arrived for t in times), default=0)
    drawing = Drawing(figsize=(9, 0.8 + 0.55 * len(found.stages)), layout="constrained")
    axes: Any = drawing.subplots()
    for t in times:
        row, color = len(found.stages) - 1 - t.stage, f"C{t.request % 10}"
        waits = [((t.arrived - start) / 1e6, (t.began - t.arrived) / 1e6)]
        axes.broken_barh(waits, (row - 0.06, 0.12), color=color, alpha=0.4)
        axes.broken_barh(
            [((t.began - start) / 1e6, (t.ended - t.began) / 1e6)], (row - 0.3, 0.6), color=color
        )
        sends = [((t.ended - start) / 1e6, (t.sent - t.ended) / 1e6)]
        axes.broken_barh(sends, (row - 0.15, 0.3), color=color, alpha=0.6)
    names = [stage.device for stage in reversed(found.stages)]
    axes.set_yticks(range(len(names)), names, fontsize=12)
    axes.set_xlabel("time [ms]; a colour is a request: waits, computes, sends", fontsize=12)
    axes.tick_params(labelsize=12)
    axes.grid(alpha=0.3, axis="x")
    return svg_of(drawing)
