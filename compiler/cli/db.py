"""Provide `edgec db …`: databases of tuning records."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgec.compiler.cli.options import json_option
from edgec.compiler.cli.printing import print_json, print_table, warn

if TYPE_CHECKING:
    from edgec.compiler.lowering.tuning_records import Record


@click.group()
def db() -> None:
    """Databases of tuning records."""


_database = click.argument("database", type=Path)


@db.command(name="list")
@_database
@json_option
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
        warn(database.warning())
    return database.records


def _short(record: "Record") -> str:
    """Return a workload in few words."""
    fields = record.workload
    sizes = [
        f"{name}={fields[name]}"
        for name in ("in_channels", "out_channels", "channels", "out_h", "out_w", "m", "n", "k")
        if name in fields
    ]
    if "kernel" in fields:
        sizes.append("x".join(map(str, fields["kernel"])))
    return " ".join([record.operator.removeprefix("edgec."), *sizes])
