"""Write an evaluation as a table: CSV, JSON, or a page with plots."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgec.compiler.errors import OutputError, UsageError
from edgec.compiler.evaluate.evaluation import Evaluated, Evaluation
from edgec.compiler.predict.prediction import Energy, Estimate
from edgec.compiler.support.files import check_output_file
from edgec.compiler.support.html_report import (
    Cell,
    Column,
    Figure,
    Report,
    Subject,
    Table,
    number_cell,
    render,
    svg_of,
)

SUFFIXES = (".html", ".json", ".csv")


def check_table_name(path: Path | None, option: str) -> None:
    """Refuse a report of another kind, or where it cannot be written, before any work.

    Raises:
        UsageError: names the option.
        OutputError: its folder is missing or not writable, or a folder is in the way.
    """
    if path is None:
        return
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{option} {path}: expected a name ending in .html, .json or .csv")
    check_output_file(path)


def write_evaluation(path: Path, found: Evaluation) -> None:
    """Write a .csv, .json or .html file.

    Raises:
        OutputError: it cannot be written.
    """
    if path.suffix == ".csv":
        text = csv_text(head(found), rows(found))
    elif path.suffix == ".json":
        text = json.dumps(evaluation_fields(found), indent=1)
    else:
        text = render(evaluation_page(found))
    save_text(path, text)


def save_text(path: Path, text: str) -> None:
    """Write a report.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        path.write_text(text.rstrip("\n") + "\n", encoding="utf-8", errors="replace")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None


def csv_text(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table as CSV (RFC 4180)."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(lines)
    return stream.getvalue()


def evaluation_fields(found: Evaluation) -> dict[str, Any]:
    """Return an evaluation for JSON."""
    return asdict(found)


def figures(found: Evaluation) -> list[str]:
    """Return the names of the accuracy figures, the metric first."""
    return list(dict.fromkeys(name for item in found.bundles for name in item.accuracy))


def head(found: Evaluation) -> list[str]:
    """Return the heads of the table's columns."""
    return [
        "bundle",
        "target",
        "changes",
        *figures(found),
        "latency [ms]",
        "from",
        "to",
        "known by",
        *(["instructions"] if _counted(found) else []),
        "activations [MB]",
        "library [MB]",
        "bundle [MB]",
        "energy [mJ]",
        "energy by",
    ]


def rows(found: Evaluation) -> list[list[str]]:
    """Return a line of texts for each bundle; what is not known is empty."""
    return [
        [
            item.path,
            item.target,
            changes(item),
            *(f"{item.accuracy[n]:.4f}" if n in item.accuracy else "" for n in figures(found)),
            *latency_texts(item.latency),
            item.latency_source,
            *([f"{item.instructions:,}"] if _counted(found) else []),
            *(
                f"{size / 1e6:.3f}"
                for size in (item.arena_bytes, item.library_bytes, item.bundle_bytes)
            ),
            *energy_texts(item.energy),
        ]
        for item in found.bundles
    ]


def _counted(found: Evaluation) -> bool:
    return any(item.instructions for item in found.bundles)


def changes(item: Evaluated) -> str:
    """Return what was done to a model."""
    return ", ".join(filter(None, (item.quantized, item.compressed))) or "none"


def latency_texts(latency: Estimate | None) -> tuple[str, str, str]:
    """Return value and ends of a latency."""
    if latency is None:
        return "", "", ""
    value, low, high = (f"{part:.4g}" for part in (latency.value, latency.low, latency.high))
    return value, low, high


def energy_texts(energy: Energy | None) -> tuple[str, str]:
    """Return an energy, and how it is known."""
    if energy is None:
        return "", ""
    return f"{energy.millijoules:.3g}", {"rapl": "RAPL", "model": "estimated"}[energy.source]


def notes(found: Evaluation) -> list[str]:
    """Return what people must know to read the table, a line each."""
    lines = []
    if found.metric:
        better = "larger" if found.larger_is_better else "smaller"
        lines.append(
            f"{found.metric}: {better} is better; {found.samples} samples against {found.truth}"
        )
    sources = {item.latency_source for item in found.bundles}
    if "measured" in sources:
        where = f"on {found.board}" if found.board else "here, in turns"
        lines.append(f"measured: median and quartiles {where}, {_threads(found.threads)}")
        means = [item.path for item in found.bundles if item.latency_is_mean]
        if means:
            lines.append(f"{', '.join(means)}: the mean over inputs of the data, which end early")
    if _counted(found):
        lines.append(f"instructions: of one inference, counted by QEMU, which plays {found.board}")
    if "predicted" in sources:
        lines.append("predicted: when it was compiled, for one thread; never measured")
    if any(item.energy is not None and item.energy.source == "model" for item in found.bundles):
        lines.append("estimated energy ranks variants of a model; it is no measurement")
    lines += [
        f"{item.path}: no accuracy, {item.why_no_accuracy}"
        for item in found.bundles
        if item.why_no_accuracy
    ]
    return lines


def _threads(threads: int) -> str:
    if not threads:
        return "one thread for each core"
    return f"{threads} thread{'s' * (threads != 1)}"


def evaluation_page(found: Evaluation) -> Report:
    """Return the page of an evaluation."""
    names = list(dict.fromkeys(item.model for item in found.bundles))
    targets = list(dict.fromkeys(item.target for item in found.bundles))
    sections: list[Table | Figure] = []
    if any(item.latency is not None for item in found.bundles):
        sections.append(Figure("Accuracy and latency" if found.metric else "Latency", _plot(found)))
    sections.append(_table(found))
    facts = {f"Note {n}": Cell(text) for n, text in enumerate(notes(found), 1)}
    return Report(
        kind="Evaluation" if len(found.bundles) == 1 else "Comparison",
        subject=Subject(", ".join(names), ", ".join(targets)),
        facts={"Bundles": Cell(str(len(found.bundles))), **facts},
        sections=sections,
    )


def _table(found: Evaluation) -> Table:
    names = figures(found)
    slowest = max((i.latency.value for i in found.bundles if i.latency), default=0.0) or 1.0

    def row(number: int, item: Evaluated) -> list[Cell]:
        latency = item.latency
        bar = (
            Cell()
            if latency is None
            else Cell(
                f"{latency.value:.4g}",
                latency.value,
                tone="warning" if item.latency_source == "predicted" else "",
                note=f"{latency.low:.4g} to {latency.high:.4g}, {item.latency_source}",
                bar=latency.value / slowest,
            )
        )
        energy, source = energy_texts(item.energy)
        return [
            Cell(item.path, note=f"number {number}"),
            Cell(item.target),
            Cell(changes(item)),
            *(number_cell(item.accuracy.get(name), 4) for name in names),
            bar,
            *([number_cell(item.instructions, 0)] if _counted(found) else []),
            number_cell(item.arena_bytes / 1e6, 3),
            number_cell(item.library_bytes / 1e6, 3),
            number_cell(item.bundle_bytes / 1e6, 3),
            Cell(energy, item.energy.millijoules if item.energy else None, note=source),
        ]

    return Table(
        "Bundles",
        [
            Column("bundle"),
            Column("target"),
            Column("changes"),
            *(Column(name, numbers=True) for name in names),
            Column("latency [ms]", numbers=True),
            *([Column("instructions", numbers=True)] if _counted(found) else []),
            Column("activations [MB]", numbers=True),
            Column("library [MB]", numbers=True),
            Column("bundle [MB]", numbers=True),
            Column("energy [mJ]", numbers=True),
        ],
        [row(number, item) for number, item in enumerate(found.bundles, 1)],
        "Sizes are exact. A number in a plot is the number of the bundle here.",
    )


def _plot(found: Evaluation) -> str:
    """Return accuracy against latency, or latencies where no accuracy is known, as SVG.

    It holds no text of a model: bundles are numbered.
    """
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(6.4, 3.4), layout="constrained")
    axes: Any = drawing.subplots()
    name = figures(found)[0] if figures(found) else ""
    for number, item in enumerate(found.bundles, 1):
        if item.latency is None:
            continue
        height = item.accuracy.get(name) if name else float(number)
        if height is None:
            continue
        low, value, high = item.latency.low, item.latency.value, item.latency.high
        measured = item.latency_source == "measured"
        axes.errorbar(
            [value],
            [height],
            xerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
            fmt="o" if measured else "s",
            color="#3b6fc4" if measured else "#8a4b00",
            capsize=4,
        )
        axes.annotate(
            str(number), (value, height), xytext=(6, 6), textcoords="offset points", fontsize=12
        )
    axes.set_xlabel("latency [ms]; square: predicted", fontsize=12)
    axes.set_ylabel("accuracy" if name else "bundle", fontsize=12)
    axes.tick_params(labelsize=12)
    axes.grid(alpha=0.3)
    return svg_of(drawing)
