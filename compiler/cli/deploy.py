"""Provide `edgec deploy`: a bundle to a board, proved there."""

from pathlib import Path

import click

from edgec.compiler.cli.options import as_path, json_option, progress_of, quiet_option
from edgec.compiler.cli.printing import figure, print_json, print_parity, size_text


@click.command()
@click.argument("bundle", type=as_path)
@click.option("--board", "name", required=True, metavar="NAME", help="Where to.")
@click.option("--threads", type=int, default=0, show_default=True, help="0: all cores.")
@quiet_option
@json_option
def deploy(bundle: Path, *, name: str, threads: int, quiet: bool, as_json: bool) -> None:
    """Send a BUNDLE to a board, verify it there, time it there."""
    from edgec.compiler.boards.deploy import deploy_bundle

    report = deploy_bundle(bundle, name, progress_of(quiet), threads)
    milliseconds = report.median_seconds * 1e3
    if as_json:
        print_json(
            {
                "bundle": str(bundle),
                "board": name,
                "sent_bytes": report.sent_bytes,
                "passed": report.parity.passed,
                "outputs": [vars(output) for output in report.parity.outputs],
                "median_ms": milliseconds,
                "emulated": report.board.emulated,
            }
        )
    else:
        sent = f"{size_text(report.sent_bytes)} sent" if report.sent_bytes else "it was there"
        click.echo(f"{bundle}: {report.model} on board {name}, {sent}")
        print_parity(report.parity)
        note = ", under QEMU: says nothing of the real board" if report.board.emulated else ""
        click.echo(f"a run takes {figure(milliseconds)} ms{note}")
    report.parity.check(f"for {bundle} on board {name}")
