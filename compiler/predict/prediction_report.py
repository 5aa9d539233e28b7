"""Write a prediction as a page: figures, a roofline, and a table of kernels."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgec.compiler.kernels.emit.machine_model import FAR_BYTES_PER_CYCLE
from edgec.compiler.predict.prediction import Estimate, OperatorTime, Prediction
from edgec.compiler.support.html_report import (
    Cell,
    Column,
    Figure,
    Report,
    Subject,
    Table,
    number_cell,
    save_report,
    svg_of,
)
from edgec.targets import Target

MARGIN = 3.0


def write_prediction_report(path: Path, found: Prediction, model: str, target: Target) -> None:
    """Write a .json or .html file.

    Raises:
        OutputError: it cannot be written.
    """
    save_report(path, prediction_fields(found), prediction_page(found, model, target))


def prediction_fields(found: Prediction) -> dict[str, Any]:
    """Return a prediction for JSON."""
    return {**asdict(found), "recorded_share": found.recorded_share}


def estimate_text(estimate: Estimate, unit: str = "ms") -> str:
    """Return a number with its bar.

    >>> estimate_text(Estimate(12.34, 11.0, 14.0))
    '12.3 ms (11.0 to 14.0)'
    """
    digits = 1 if estimate.value >= 10 else 3 if estimate.value >= 0.1 else 4
    value, low, high = (f"{v:,.{digits}f}" for v in (estimate.value, estimate.low, estimate.high))
    return f"{value} {unit} ({low} to {high})"


def size_of(number: int) -> str:
    """Return a size exactly, and in MB."""
    return f"{number:,} bytes ({number / 1e6:.2f} MB)"


def fact_texts(found: Prediction) -> dict[str, str]:
    """Return what to know first, by name, as the command line and the page show it."""
    energy = {"rapl": "measured by RAPL", "model": "estimated by a model"}[found.energy.source]
    how = "exact" if found.library_source == "compiled" else "estimated"
    facts = {
        "latency": f"{estimate_text(found.latency)}, predicted for {found.threads} "
        f"thread{'s' * (found.threads != 1)}",
        "activations": f"{size_of(found.arena_bytes)} at their peak, exact",
        "weights": f"{size_of(found.weight_bytes)}, exact",
        "library": f"{size_of(found.library_bytes)}, {how}",
        "energy": f"{found.energy.millijoules:.3g} mJ an inference, {energy}",
    }
    if found.instructions:
        facts["instructions"] = f"{found.instructions:,.0f} an inference, predicted"
    facts["tuned"] = f"records hold {found.recorded_share:.0%} of the time"
    if found.fit:
        facts["correction"] = found.fit
    return facts


def prediction_page(found: Prediction, model: str, target: Target) -> Report:
    """Return the page of a prediction."""
    facts = {name.capitalize(): Cell(text) for name, text in fact_texts(found).items()}
    for number, text in enumerate(found.warnings):
        facts[f"Note {number + 1}" if number else "Note"] = Cell(text, tone="warning")
    return Report(
        kind="Prediction",
        subject=Subject(model, found.target),
        facts=facts,
        sections=[
            Figure("Roofline", roofline(found.operators, target, found.threads)),
            _kernels(found),
        ],
    )


_COLUMNS = (
    Column("operators"),
    Column("time [ms]", numbers=True),
    Column("from [ms]", numbers=True),
    Column("to [ms]", numbers=True),
    Column("kernel"),
    Column("known from"),
    Column("MFLOP", numbers=True),
    Column("kB moved", numbers=True),
    Column("instructions", numbers=True),
)


def _kernels(found: Prediction) -> Table:
    longest = max((item.time.value for item in found.operators), default=0.0) or 1.0

    def row(item: OperatorTime) -> list[Cell]:
        return [
            Cell(item.name),
            Cell(f"{item.time.value:,.4f}", item.time.value, bar=item.time.value / longest),
            number_cell(item.time.low, 4),
            number_cell(item.time.high, 4),
            Cell(item.operator),
            Cell({"model": "model", "record": "tuning record"}[item.source]),
            number_cell(item.flops / 1e6, 3),
            number_cell(item.bytes / 1e3, 1),
            number_cell(item.instructions or None),
        ]

    ranked = sorted(found.operators, key=lambda item: -item.time.value)
    return Table(
        "Kernels",
        _COLUMNS,
        [row(item) for item in ranked],
        "Times are predicted, not measured, but for those of tuning records. Where times of such a "
        "processor were fitted, 8 of 10 calls of models that were left out lay between the ends.",
    )


def roofline(operators: Sequence[OperatorTime], target: Target, threads: int) -> str:
    """Return the roofline plot (Williams, Waterman and Patterson 2009) as SVG.

    The roof is the float32 peak of the cores and what one gets from memory; a kernel of integers,
    or of a fast algorithm, may stand above it.
    """
    from matplotlib.figure import Figure as Drawing

    peak = target.peak_gflops * threads
    bandwidth = FAR_BYTES_PER_CYCLE * target.clock_ghz * threads
    points = [
        (item.flops / item.bytes, item.flops / (item.time.value * 1e6), item.time.value)
        for item in operators
        if item.flops and item.bytes and item.time.value > 0
    ]
    ridge = peak / bandwidth
    x_values = [x for x, _, _ in points] + [ridge]
    left, right = min(x_values) / MARGIN, max(x_values) * MARGIN
    drawing = Drawing(figsize=(6.4, 4), layout="constrained")
    axes: Any = drawing.subplots()
    axes.plot([left, ridge, right], [left * bandwidth, peak, peak], color="#1d2229")
    total = sum(time for _, _, time in points) or 1.0
    axes.scatter(
        [x for x, _, _ in points],
        [y for _, y, _ in points],
        s=[20 + 600 * time / total for _, _, time in points],
        color="#3b6fc4",
        alpha=0.5,
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations for each byte [FLOP/B]", fontsize=12)
    axes.set_ylabel("speed [GFLOP/s], predicted", fontsize=12)
    axes.set_title(f"peak {peak:.0f} GFLOP/s, memory {bandwidth:.0f} GB/s; area: time", fontsize=11)
    axes.tick_params(labelsize=12)
    axes.grid(alpha=0.3)
    return svg_of(drawing)
