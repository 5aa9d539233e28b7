"""Provide `edgec split`: where a model is best cut over devices, and why."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.compiler.cli.options import (
    as_path,
    change_options,
    changes,
    json_option,
    model_options,
    progress_of,
    quiet_option,
    shape_options,
)
from edgec.compiler.cli.printing import print_json, print_table, size_text, warn
from edgec.compiler.errors import UsageError

if TYPE_CHECKING:
    from edgec.compiler.split.advise import CutRow, SplitReport

_ROWS = 24
_OBJECTIVES = ("latency", "throughput", "memory")


@click.command()
@click.argument("model", type=as_path)
@click.option("--devices", required=True, metavar="a=rpi4,b=rpi5", help="Those that there are.")
@click.option("--link", metavar="100mbit,1ms", help="What connects them: its rate and its delay.")
@click.option("--network", type=as_path, metavar="TRACE.csv", help="Links seen: columns mbit, ms.")
@click.option("--objective", type=click.Choice(_OBJECTIVES), default="latency", show_default=True)
@click.option(
    "--parallel",
    type=click.Choice(("channels", "rows", "auto")),
    help="Have devices compute parts of operators together, where that is better.",
)
@click.option("--source", metavar="NAME", help="Where inputs are.  [default: the first device]")
@click.option("--memory", metavar="a=64M,b=1G", help="For the model.  [default: 80 % of all]")
@click.option("--records", type=as_path, metavar="DB", help="Measured times, by edgec tune.")
@click.option("--output", "-o", type=as_path, metavar="PLAN.toml", help="For compile --split.")
@shape_options
@change_options
@quiet_option
@json_option
def split(
    model: Path,
    *,
    devices: str,
    link: str | None,
    network: Path | None,
    objective: str,
    parallel: str | None,
    source: str | None,
    memory: str | None,
    records: Path | None,
    output: Path | None,
    shapes: Sequence[str],
    freeze: Sequence[str],
    limits: Sequence[str],
    context: int | None,
    compress: str | None,
    quantize: str | None,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Find where MODEL is best cut over devices; nothing is compiled."""
    if (link is None) == (network is None):
        raise UsageError("split takes --link 100mbit,1ms or --network TRACE.csv, one of them")
    from edgec.compiler.lowering.tuning_records import Database
    from edgec.compiler.options import CompileOptions
    from edgec.compiler.split.advise import plan_split
    from edgec.compiler.split.devices import parse_devices, parse_memory, split_file_text
    from edgec.compiler.split.link import Network, parse_link, read_network
    from edgec.compiler.support.files import write_atomically

    options = CompileOptions(
        **model_options(shapes, freeze, limits, context), **changes(compress, quantize, settings)
    )
    parsed = parse_devices(devices)
    database = Database.read(records) if records is not None else None
    if database is not None:
        for line in database.remarks(*(device.target for device in parsed)):
            warn(line)
    report = plan_split(
        model,
        parsed,
        read_network(network) if network else Network((parse_link(link or ""),)),
        options,
        objective=objective,  # type: ignore[arg-type]
        parallel=parallel,  # type: ignore[arg-type]
        source=source,
        memory=parse_memory(memory) if memory else None,
        database=database,
        progress=progress_of(quiet),
    )
    if output is not None:
        requests = [plan.requests for plan in report.plans] or [report.requests]
        for number, stages in enumerate(requests, 1):
            write_atomically(numbered(output, number), split_file_text(stages))
    if as_json:
        print_json(asdict(report))
    else:
        _print(report)


def numbered(path: Path, number: int) -> Path:
    """Return the path of one of several files: split.toml, split-2.toml, and so on."""
    return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")


def _print(report: "SplitReport") -> None:
    devices = tuple(report.alone)
    first, last = devices[0], devices[-1]
    chosen = [cut for cut in report.cuts if _is_chosen(report, cut)]
    shown = _smallest(report.cuts, chosen)
    rows = []
    for cut in shown:
        more = f" and {len(cut.behind) - 1} more" if len(cut.behind) > 1 else ""
        behind = f"{cut.behind[0]}{more}"
        mark = "*" if cut in chosen else ""
        before = cut.weights_before[first] + cut.activations_before
        after = cut.weights_behind[last] + cut.activations_behind
        rows.append(
            (
                mark,
                behind,
                size_text(cut.size_bytes),
                f"{cut.send_ms:.1f}",
                f"{cut.ms_before[first]:.1f}",
                f"{cut.ms_behind[last]:.1f}",
                size_text(before),
                size_text(after),
            )
        )
    columns = ("", "cut behind", "sent", "ms", f"ms before on {first}", f"ms behind on {last}")
    print_table((*columns, "memory before", "behind"), rows)
    if len(shown) < len(report.cuts):
        click.echo(f"{len(report.cuts)} cuts, those of fewest bytes are shown; --json prints all")
    click.echo(report.explain())


def _is_chosen(report: "SplitReport", cut: "CutRow") -> bool:
    return any(stage.until and set(cut.behind) <= set(stage.until) for stage in report.stages)


def _smallest(cuts: "Sequence[CutRow]", chosen: "Sequence[CutRow]") -> "list[CutRow]":
    """Return the chosen cuts, and of each group of neighbours the one of the fewest bytes."""
    size = -(-len(cuts) // _ROWS)
    groups = [cuts[n : n + size] for n in range(0, len(cuts), max(1, size))]
    smallest = [min(group, key=lambda cut: cut.size_bytes) for group in groups]
    return [cut for cut in cuts if cut in smallest or cut in chosen]
