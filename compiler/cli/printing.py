"""What commands print: JSON for programs, tables for people, both on stdout."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgec.compiler.bench.compare import StepTime
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
    """Aligned columns; on a terminal long cells wrap, what is piped on is never cut."""
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
    """A value as text for people."""
    if isinstance(value, list) and all(isinstance(item, int) for item in value):
        return f"[{','.join(map(str, value))}]"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return " ".join(map(str, value.values()))
    return "none" if value in ("", None) else str(value)
