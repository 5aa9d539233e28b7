"""Provide `edgec tune`: search for the fastest kernels of a model."""

import math
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.compiler.cli.options import (
    as_path,
    change_options,
    changes,
    cluster_option,
    model_options,
    progress_of,
    quiet_option,
    shape_options,
    target_option,
)
from edgec.compiler.cli.printing import print_json, print_table
from edgec.compiler.errors import UsageError
from edgec.compiler.tune.options import STRATEGIES, Strategy, TuneOptions

if TYPE_CHECKING:
    from edgec.compiler.tune.report_data import TuneReport, TuningObserver
    from edgec.compiler.tune.session import Tuner
    from edgec.compiler.tune.tasks import Task

_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "": 1}


def parse_time(text: str) -> float:
    """Return seconds of `8h`, `90m`, `1h30m`, `45s` or `600`.

    Raises:
        UsageError: it is not of that form.

    >>> parse_time("1h30m")
    5400.0
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(h|min|m|s|d|)", text.strip())
    if not parts or "".join(f"{n}{u}" for n, u in parts) != text.replace(" ", ""):
        raise UsageError(f"--time {text!r} is no time; write 8h, 90m, 1h30m or 600s")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not 0 < seconds < math.inf:
        raise UsageError(f"--time {text!r} is no time at all")
    return seconds


@click.command()
@click.argument("model", type=as_path)
@target_option
@click.option("--db", "database", type=as_path, metavar="FILE", help="Records: read, and added to.")
@click.option("--time", metavar="8h", help="How long to search.")
@click.option("--trials", type=int, metavar="N", help="Decisions to measure in all.")
@click.option(
    "--threads",
    type=int,
    default=1,
    show_default=True,
    help="To tune for; 0: all cores.",
)
@click.option("--board", "boards", multiple=True, metavar="NAME", help="Measure there.")
@click.option("--tasks", default="", metavar="0,2-5,…", help="Only these: numbers or operators.")
@click.option("--strategy", type=click.Choice(STRATEGIES), default=STRATEGIES[0], show_default=True)
@shape_options
@change_options
@click.option("--seed", default=0, show_default=True, help="Of everything random.")
@cluster_option
@click.option("--dry-run", is_flag=True, help="List the tasks, do nothing.")
@click.option("--report", type=as_path, metavar="FILE.html|.json", help="What each kernel gained.")
@click.option("--log", type=as_path, metavar="FILE", help="Write down every event.")
@quiet_option
@click.option("--json", "as_json", is_flag=True, help="Print every event as a line of JSON.")
def tune(
    model: Path,
    *,
    target: str,
    database: Path | None,
    time: str | None,
    trials: int | None,
    threads: int,
    boards: Sequence[str],
    tasks: str,
    strategy: Strategy,
    shapes: Sequence[str],
    freeze: Sequence[str],
    limits: Sequence[str],
    context: int | None,
    compress: str | None,
    quantize: str | None,
    seed: int,
    cluster: str,
    dry_run: bool,
    report: Path | None,
    log: Path | None,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Search for the fastest kernels of a MODEL on a target.

    Everything measured goes to the database at once; the same command goes on after a stop.
    """
    if not dry_run and database is None:
        raise UsageError("say where the records are to go: --db FILE")
    if not dry_run and time is None and trials is None:
        raise UsageError("say how long to search: --time 8h or --trials 2000")
    options = TuneOptions(
        seconds=parse_time(time) if time else None,
        trials=trials,
        threads=threads,
        boards=tuple(boards),
        tasks=tasks,
        strategy=strategy,
        seed=seed,
        cluster=cluster,
        report=report,
        log=log,
    )
    from edgec.compiler.options import CompileOptions

    compile_options = CompileOptions(
        **model_options(shapes, freeze, limits, context),
        **changes(compress, quantize, settings),
        seed=seed,
    )
    from edgec.compiler.tune.api import tune_model, tuning_tasks

    if dry_run or database is None:
        _print_tasks(tuning_tasks(model, target, compile_options, tasks), as_json=as_json)
        return
    from edgec.compiler.cli.tune_screen import JsonEvents, Screen
    from edgec.compiler.tune.events import Several

    with ExitStack() as stack:

        def watch(tuner: "Tuner") -> "TuningObserver":
            if as_json:
                return JsonEvents()
            return Several([] if quiet else [stack.enter_context(Screen(tuner))])

        found = tune_model(
            model,
            target,
            database,
            options,
            compile_options,
            watch=watch,
            progress=progress_of(quiet or as_json),
        )
    if not as_json:
        print_tuned(found, database)


def _print_tasks(tasks: "Sequence[Task]", *, as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    "number": task.number,
                    "label": task.label,
                    "operator": task.key.operator,
                    "calls": len(task.steps),
                    "share": task.share,
                    "mflop": task.flops / 1e6,
                    "decisions": len(task.estimates),
                }
                for task in tasks
            ]
        )
        return
    print_table(
        ["task", "operators", "template", "calls", "share", "MFLOP", "decisions"],
        [
            [
                str(task.number),
                task.label,
                task.key.operator.removeprefix("edgec."),
                str(len(task.steps)),
                f"{task.share:.1%}",
                f"{task.flops / 1e6:.1f}",
                str(len(task.estimates)),
            ]
            for task in tasks
        ],
    )


def print_tuned(report: "TuneReport", database: Path) -> None:
    """Print what a run found, and whether to use it."""
    rows = [r for r in report.tasks if r.after < r.before][:20]
    if rows:
        print_table(
            ["task", "operators", "calls", "before", "after", "gain"],
            [
                [
                    str(r.task.number),
                    r.task.label,
                    str(len(r.task.steps)),
                    f"{r.before * 1e6:.1f} µs",
                    f"{r.after * 1e6:.1f} µs",
                    f"{r.before / r.after:.2f}",
                ]
                for r in rows
            ],
        )
    click.echo(
        f"{report.before * 1e3:.3f} ms untuned, {report.after * 1e3:.3f} ms tuned: "
        f"{report.before / report.after:.2f} times as fast, by {report.trials} trials in "
        f"{report.seconds:.0f} s ({report.reason})"
    )
    for result in report.tasks:
        if result.rejected:
            click.echo(f"  {result.task.label}: rejected {result.rejected}")
    if report.gained:
        click.echo(f"compile with: --records {database}")
    elif report.noisy:
        click.echo(
            "this machine was too noisy to tell what is faster, so the defaults stay: run the same "
            "command again when nothing else runs"
        )
    else:
        click.echo("nothing is faster than the defaults: compile without records")
