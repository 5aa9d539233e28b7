"""`edgec tune` and `edgec db …`: arguments to one call each, the result printed."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.compiler.cli.printing import print_json, print_table
from edgec.compiler.errors import InterruptedRunError, UsageError

if TYPE_CHECKING:
    from edgec.compiler.boards.config import Board
    from edgec.compiler.lowering.tuning_records import Record
    from edgec.compiler.tune.devices import Device
    from edgec.compiler.tune.session import TuneReport
    from edgec.compiler.tune.tasks import Task

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_SCRATCH = "edgec-tune-"
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "": 1}


def parse_time(text: str) -> float:
    """Seconds of `8h`, `90m`, `1h30m`, `45s` or `600`.

    Raises:
        UsageError: it is not of that form.

    >>> parse_time("1h30m")
    5400.0
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(h|min|m|s|d|)", text.strip())
    if not parts or "".join(f"{n}{u}" for n, u in parts) != text.replace(" ", ""):
        raise UsageError(f"--time {text!r} is no time; write 8h, 90m, 1h30m or 600s")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if seconds <= 0:
        raise UsageError(f"--time {text!r} is no time at all")
    return seconds


def tune_model(
    model: Path,
    target_name: str,
    model_options: dict[str, Any],
    *,
    database: Path | None,
    time: str | None,
    trials: int | None,
    threads: int,
    boards: Sequence[str],
    tasks: str,
    strategy: str,
    seed: int,
    dry_run: bool,
    report: Path | None,
    log: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """What `edgec tune` does with its arguments."""
    if not dry_run and database is None:
        raise UsageError("say where the records are to go: --db FILE")
    if not dry_run and time is None and trials is None:
        raise UsageError("say how long to search: --time 8h or --trials 2000")
    if trials is not None and trials < 1:
        raise UsageError(f"--trials {trials}: at least one")
    seconds = parse_time(time) if time else None
    from edgec.targets import load_target

    target = load_target(target_name)
    from edgec.compiler.options import CompileOptions
    from edgec.compiler.tune.tasks import make_plan, select_tasks

    plan = make_plan(model, target, CompileOptions(**model_options, seed=seed))
    chosen = select_tasks(plan.tasks, tasks)
    if dry_run:
        _print_tasks(chosen, as_json=as_json)
        return
    assert database is not None
    from edgec.compiler.boards.qemu import find_board
    from edgec.compiler.boards.relay import count_boards
    from edgec.compiler.runtime.session import why_not_here
    from edgec.compiler.tune.devices import BoardDevice, CountingDevice, Host
    from edgec.compiler.tune.rounds import KernelBuilder
    from edgec.compiler.tune.session import TuneOptions, Tuner
    from edgec.compiler.tune.view import JsonEvents, LogFile, Screen, Several

    reason = why_not_here(target)
    if reason and not boards:
        raise UsageError(
            f"target {target.name}: {reason}, so there is nothing to measure on; name a board with "
            "--board (edgec board list)"
        )
    found = [find_board(name) for name in boards]
    for board in found:
        if load_target(board.target).architecture != target.architecture:
            raise UsageError(f"board {board.name} is for {board.target}, not for {target.name}")
    _check_some_answer(found)
    options = TuneOptions(
        seconds=seconds,
        trials=trials,
        strategy=strategy,  # type: ignore[arg-type]
        seed=seed,
    )
    places: list[Device] = []

    def devices(kernels: KernelBuilder) -> "Sequence[Device]":
        if found:
            for board in found:
                if board.is_qemu:
                    places.append(CountingDevice(board, target))
                    continue
                count = count_boards(board)
                numbers = range(1, count + 1) if count > 1 else (0,)
                places.extend(BoardDevice(board, threads or 1, number) for number in numbers)
        else:
            places.append(Host(threads, kernels))
        return places

    observers = Several()
    with _scratch_folder() as folder, ExitStack() as stack:
        tuner = Tuner(plan, chosen, target, database, options, folder, observers)
        if log is not None:
            observers.observers.append(stack.enter_context(LogFile(log)))
        if as_json:
            observers.observers.append(JsonEvents())
        screen = Screen(tuner, options, quiet=quiet or as_json)
        observers.observers.append(stack.enter_context(screen))
        try:
            result = tuner.run(devices)
        except KeyboardInterrupt:
            raise InterruptedRunError(
                f"interrupted; {tuner.measured} trials of this run are in {database}, the "
                "same command goes on from there"
            ) from None
    if not as_json:
        print_tuned(result, database)
    if report is not None:
        from edgec.compiler.tune.report import write_report

        first = places[0]
        write_report(
            report,
            result,
            model.name,
            target,
            first.machine,
            first.threads,
            emulated=first.emulated,
        )


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """A temporary folder; those of runs that were killed are removed."""
    from edgec.compiler.errors import OutputError

    parent = Path(tempfile.gettempdir())
    for old in parent.glob(f"{_SCRATCH}*"):
        pid = old.name.removeprefix(_SCRATCH).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(old, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f"{_SCRATCH}{os.getpid()}-") as name:
            yield Path(name)
    except OSError as error:
        raise OutputError(f"cannot write to {parent}: {error.strerror or error}") from None


def _check_some_answer(boards: "Sequence[Board]") -> None:
    """Fail at once where no board is there; one that is away may come back later."""
    from edgec.compiler.boards.rpc import open_session
    from edgec.compiler.errors import BoardError

    problems: list[BoardError] = []
    for board in boards:
        try:
            with open_session(board):
                pass
        except BoardError as error:
            problems.append(error)
    if problems and len(problems) == len(boards):
        raise problems[0]


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


@click.group()
def db() -> None:
    """Databases of tuning records."""


_database = click.argument("database", type=Path)


@db.command(name="list")
@_database
@_json_option
def list_records(database: Path, as_json: bool) -> None:
    """Show the best record for each kernel of a DATABASE."""
    from edgec.compiler.lowering.tuning_records import prune

    records = prune(_read(database))
    if as_json:
        print_json([record.model_dump(mode="json") for record in records])
        return
    print_table(
        ["target", "threads", "kernel", "time", "", "measured on", "date"],
        [
            [
                record.target,
                str(record.threads),
                _short(record),
                f"{(record.seconds or 0) * 1e6:.1f} µs",
                "confirmed" if record.confirmed else "",
                record.machine + (" (emulated)" if record.emulated else ""),
                f"{record.date:%Y-%m-%d}",
            ]
            for record in records
        ],
    )


@db.command()
@click.argument("databases", nargs=-1, required=True, type=Path)
@click.option("--output", "-o", required=True, type=Path, metavar="FILE", help="Where to.")
def merge(databases: tuple[Path, ...], output: Path) -> None:
    """Put the records of DATABASES into one; the better ones count."""
    from edgec.compiler.lowering.tuning_records import replace

    merged = {record.model_dump_json(): record for path in databases for record in _read(path)}
    replace(output, merged.values())
    click.echo(f"{output}: {len(merged)} records of {len(databases)} databases")


@db.command(name="prune")
@_database
def prune_records(database: Path) -> None:
    """Keep only the best record for each kernel of a DATABASE."""
    from edgec.compiler.lowering.tuning_records import prune, replace

    records = _read(database)
    kept = prune(records)
    replace(database, kept)
    click.echo(f"{database}: {len(kept)} of {len(records)} records kept")


@db.command()
@_database
@click.option("--target", "-t", required=True, help="Whose records.")
@click.option("--output", "-o", required=True, type=Path, metavar="FILE", help="Where to.")
def export(database: Path, target: str, output: Path) -> None:
    """Write the best records for one target of a DATABASE to a file."""
    from edgec.compiler.errors import BadInputError
    from edgec.compiler.lowering.tuning_records import Database, prune, replace
    from edgec.targets import load_target

    loaded = Database.read(database)
    resolved = load_target(target)
    kept = prune(loaded.fitting(resolved))
    if not kept:
        why = loaded.why_unfit(resolved) or f"{database} is empty"
        raise BadInputError(f"nothing to export: {why}")
    replace(output, kept)
    click.echo(f"{output}: {len(kept)} records for {resolved.name}")


def _read(path: Path) -> "Sequence[Record]":
    from edgec.compiler.lowering.tuning_records import Database

    database = Database.read(path)
    if database.warning():
        click.echo(f"edgec: warning: {database.warning()}", err=True)
    return database.records


def _short(record: "Record") -> str:
    """A workload in few words."""
    fields = record.workload
    sizes = [
        f"{name}={fields[name]}"
        for name in ("in_channels", "out_channels", "channels", "out_h", "out_w", "m", "n", "k")
        if name in fields
    ]
    if "kernel" in fields:
        sizes.append("x".join(map(str, fields["kernel"])))
    return " ".join([record.operator.removeprefix("edgec."), *sizes])
