"""Print what commands answer: JSON for programs, tables for people, both on stdout."""

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgec.compiler.bench.compare import StepTime
    from edgec.compiler.bundle.manifest import Manifest
    from edgec.compiler.exits.exits_record import ExitsRecord
    from edgec.compiler.parity.compare import ParityReport


def print_json(value: object) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(_finite(value), indent=1))


def _finite(value: Any) -> Any:
    """JSON has no infinities."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return str(value)
    return value


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns; on a terminal long cells wrap, what is piped on is never cut."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=10_000)
    table = Table(*head, box=None, show_header=any(head), pad_edge=False, header_style="")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def print_parity(report: "ParityReport") -> None:
    """Print how far each output is from what it should be."""
    print_table(
        ["output", "largest error", "of allowed", "SQNR", ""],
        [
            [
                o.name,
                f"{o.max_error:.2g}",
                f"{o.allowed_share:.1%}",
                f"{o.sqnr_db:.1f} dB",
                o.problem or "ok",
            ]
            for o in report.outputs
        ],
    )


def print_variants(manifest: "Manifest") -> None:
    """Print what a governor chooses among."""
    print_table(
        ["  variant", "accuracy", "measured by", "estimated on one core"],
        [
            [
                f"  {variant.program}",
                f"{variant.accuracy:.4f}",
                variant.accuracy_of,
                f"{variant.estimated_ms:.3g} ms",
            ]
            for variant in manifest.variants
        ],
    )


def print_profile(steps: "Sequence[StepTime]") -> None:
    """Print the time of each kernel call, the longest first."""
    total = sum(step.median_us for step in steps)
    print_table(
        ["kernel", "time", "share", "GFLOP/s", "of peak", "operators"],
        [
            [
                step.template,
                f"{step.median_us:.1f} us",
                f"{step.median_us / total:.1%}",
                f"{step.gflops:.1f}",
                f"{step.peak_share:.0%}",
                step.label,
            ]
            for step in sorted(steps, key=lambda step: -step.median_us)
        ],
    )


def plain(value: Any) -> str:
    """Return a value as text for people."""
    if isinstance(value, list) and all(isinstance(item, int) for item in value):
        return f"[{','.join(map(str, value))}]"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return " ".join(map(str, value.values()))
    return "none" if value in ("", None) else str(value)


def size_text(size: int) -> str:
    """Return a number of bytes with three digits.

    >>> size_text(54_321), size_text(812), size_text(23_456_789)
    ('54.3 kB', '812 B', '23.5 MB')
    """
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{figure(value)} {units[0]}" if units[0] != "B" else f"{size} B"


def figure(value: float) -> str:
    """Return a number with three digits, more before the point, and no exponent.

    >>> figure(2910.4), figure(0.01234), figure(54.321), figure(0)
    ('2910', '0.0123', '54.3', '0')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 12)}f}"


def warn(text: str) -> None:
    """Say on standard error what the user should know, whether or not progress is shown."""
    click.echo(f"edgec: warning: {text}", err=True)


def exit_lines(record: "ExitsRecord") -> list[str]:
    """Return what the early exits of a model are worth, in a line each."""
    lines = [
        f"exit {number}, at {one.work:.0%} of the work: answers {one.share:.1%} where its "
        f"probability is {one.threshold:.3g} or more, {one.agreement:.1%} as the whole model"
        for number, one in enumerate(record.exits, 1)
    ]
    return [
        *lines,
        f"with exits {record.work:.1%} of the multiplications and {record.agreement:.2%} of the "
        f"answers of the whole model, over {record.samples:,} samples that nothing was fitted to",
    ]
