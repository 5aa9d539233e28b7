"""Write the report of a tuning run: what each kernel gained, and the model's time meanwhile."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from edgec.compiler.tune.events import report_fields
from edgec.compiler.tune.report_data import TaskResult, TuneReport


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Conditions describe where a run was measured.

    Attributes:
        machine: its name.
        threads: the threads that the model ran on.
        peak_gflops: the peak rate of them together [GFLOP/s].
        emulated: whether the machine is an emulator.
    """

    machine: str
    threads: int
    peak_gflops: float
    emulated: bool


def write_tuning_report(
    path: Path, report: TuneReport, subject: Subject, conditions: Conditions
) -> None:
    """Write a .json or .html file.

    Raises:
        OutputError: it cannot be written.
    """
    save_report(path, report_fields(report), tune_page(report, subject, conditions))


def tune_page(report: TuneReport, subject: Subject, conditions: Conditions) -> Report:
    """Return the page of a run."""
    threads = f"{conditions.threads} thread{'s' * (conditions.threads != 1)}"
    warnings = {
        "Emulator": conditions.emulated
        and "measured in an emulator: these times say little about the real board",
        "Noise": report.noisy and "the machine was noisy while the results were compared",
    }
    return Report(
        kind="Tuning",
        subject=subject,
        facts={
            "By the default decisions": time_cell(report.before),
            "Tuned": time_cell(report.after),
            "Gain": gain_cell(report.before, report.after),
            "Measured": Cell(f"on {conditions.machine}, {threads}"),
            "Search": Cell(f"{report.trials} trials in {report.seconds:.0f} s"),
            "Ended because": Cell(report.reason),
            **{name: Cell(text, tone="warning") for name, text in warnings.items() if text},
        },
        sections=[
            Figure("Time of the model during the search", _curve(report)),
            _kernels(report, conditions.peak_gflops),
        ],
    )


_COLUMNS = (
    Column("operators"),
    Column("time in the model [µs]", numbers=True),
    Column("gain", numbers=True),
    Column("calls", numbers=True),
    Column("before [µs]", numbers=True),
    Column("after [µs]", numbers=True),
    Column("before [GFLOP/s]", numbers=True),
    Column("after [GFLOP/s]", numbers=True),
    Column("of peak [%]", numbers=True),
    Column("trials", numbers=True),
    Column("task", numbers=True),
    Column("decision", code=True),
)


def _kernels(report: TuneReport, peak_gflops: float) -> Table:
    """Return the kernels, the one that takes most time first."""
    times = {result.task.number: result.after * len(result.task.steps) for result in report.tasks}
    longest = max(times.values(), default=0.0) or 1.0

    def row(result: TaskResult) -> list[Cell]:
        total, gflops = times[result.task.number], result.gflops(result.after)
        gain = gain_cell(result.before, result.after)
        return [
            Cell(result.task.label),
            Cell(f"{total * 1e6:,.1f}", total, bar=total / longest),
            gain,
            number_cell(len(result.task.steps)),
            number_cell(result.before * 1e6, 1),
            number_cell(result.after * 1e6, 1),
            number_cell(result.gflops(result.before), 1),
            number_cell(gflops, 1),
            number_cell(100 * gflops / peak_gflops),
            number_cell(result.trials),
            number_cell(result.task.number),
            Cell(result.decision, note=result.rejected and f"rejected: {result.rejected}"),
        ]

    ranked = sorted(report.tasks, key=lambda result: -times[result.task.number])
    return Table(
        "Kernels",
        _COLUMNS,
        [row(result) for result in ranked],
        "The longest bar takes most of the model's time. Speed counts the arithmetic of the "
        "operators as they are defined; a fast algorithm may exceed the peak. Times of a kernel "
        "are those of one call inside the model.",
    )


def _curve(report: TuneReport) -> str:
    """Return time of the model against trials, as SVG."""
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(6.4, 3), layout="constrained")
    axes: Any = drawing.subplots()
    trials = [point[1] for point in report.history]
    times = [point[2] * 1e3 for point in report.history]
    axes.step(trials, times, where="post", color="#3b6fc4")
    axes.set_xlabel("trials", fontsize=12)
    axes.set_ylabel("model [ms], best so far", fontsize=12)
    axes.tick_params(labelsize=12)
    axes.grid(alpha=0.3)
    return svg_of(drawing)
