"""Provide `edgec install`: verify and measure a bundle's variants on this machine."""

from dataclasses import asdict
from pathlib import Path

import click

from edgec.compiler.cli.options import as_path, json_option
from edgec.compiler.cli.printing import print_json, print_table, warn


@click.command()
@click.argument("bundle", type=as_path)
@click.option("--threads", type=int, default=0, help="At most so many.  [default: all cores]")
@json_option
def install(bundle: Path, *, threads: int, as_json: bool) -> None:
    """Verify and measure the variants of a BUNDLE here, once, and keep that for this machine."""
    from edgec.compiler.installation import install_bundle

    installed = install_bundle(bundle, threads)
    for name, why in installed.refused.items():
        warn(f"variant {name} is not used on this machine: {why}")
    pairs = list(zip(installed.names, installed.options, strict=True))
    if as_json:
        options = [{"variant": name, **asdict(option)} for name, option in pairs]
        print_json({"options": options, "refused": installed.refused})
        return
    print_table(
        ["variant", "threads", "accuracy", "latency"],
        [
            [name, str(o.threads), f"{o.accuracy:.4f}", f"{o.latency_ms:.4g} ms"]
            for name, o in pairs
        ],
    )
