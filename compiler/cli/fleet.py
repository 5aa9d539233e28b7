"""Provide `edgec fleet …`: hear how boards are, and stop releases that fail."""

import json
from pathlib import Path

import click

from edgec.compiler.cli.options import as_path, json_option
from edgec.compiler.cli.printing import print_json, print_table
from edgec.compiler.errors import BadInputError, UsageError


@click.group()
def fleet() -> None:
    """The coordinator of boards that update: what they run, and whether a release goes on."""


_secret = click.option(
    "--secret-file", type=as_path, required=True, metavar="FILE", help="Of 32 letters or more."
)
_url = click.argument("url")


@fleet.command()
@click.argument("file", type=as_path)
@_secret
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=int, default=8100, show_default=True, help="0 takes a free one.")
@click.option("--most-failed", type=float, default=5.0, show_default=True, metavar="PERCENT")
@click.option("--allowed-failures", type=int, default=1, show_default=True, metavar="BOARDS")
@click.option("--at-once", type=int, default=20, show_default=True, metavar="BOARDS")
@click.option("--silence", type=float, default=3600.0, show_default=True, metavar="SECONDS")
@click.option("--tls-certificate", type=as_path, metavar="FILE.pem")
@click.option("--tls-key", type=as_path, metavar="FILE.pem")
def serve(
    file: Path,
    *,
    secret_file: Path,
    host: str,
    port: int,
    most_failed: float,
    allowed_failures: int,
    at_once: int,
    silence: float,
    tls_certificate: Path | None,
    tls_key: Path | None,
) -> None:
    """Serve boards until Ctrl-C, and keep what they report in FILE.

    A release is stopped when it failed on more boards than allowed and on more percent of those
    that finished. A board that installs one and is silent for that long counts as failed.
    """
    from edgec.compiler.update.coordinator import serve_fleet
    from edgec.compiler.update.fleet import Fleet, FleetLimits

    limits = FleetLimits(most_failed, allowed_failures, at_once, silence)
    if (tls_certificate is None) != (tls_key is None):
        raise UsageError("give the TLS certificate and its key, or neither")
    certificate = (tls_certificate, tls_key) if tls_certificate and tls_key else None
    secret = _read_secret(secret_file)
    serve_fleet(Fleet(file, limits), secret, host, port, certificate, listening=click.echo)


@fleet.command()
@click.argument("board")
@_secret
def key(board: str, *, secret_file: Path) -> None:
    """Print the key of a BOARD, for the file that `update init --coordinator-key` names."""
    from edgec.compiler.update.reports import board_key, check_board_name

    check_board_name(board)
    click.echo(board_key(_read_secret(secret_file), board))


@fleet.command()
@_url
@_secret
@json_option
def status(url: str, *, secret_file: Path, as_json: bool) -> None:
    """Show boards and releases that the coordinator at URL knows."""
    from edgec.compiler.update.reports import ask_coordinator

    found = json.loads(ask_coordinator(url, _read_secret(secret_file), "status"))
    if as_json:
        print_json(found)
        return
    print_table(
        ("channel", "release", "works", "installing", "failed", ""),
        [
            (
                release["channel"],
                *(str(release[count]) for count in ("number", "works", "trying", "failed")),
                f"stopped: {release['stopped']}" if release["stopped"] else "",
            )
            for release in found["releases"]
        ],
    )
    print_table(
        ("board", "channel", "runs", "seen", ""),
        [
            (
                board["board"],
                board["channel"],
                str(board["installed"] or "nothing"),
                f"{board['seen_seconds']:.0f} s ago",
                "; ".join([board["problem"] or "", *map(_failure, board["failed"].items())]),
            )
            for board in found["boards"]
        ],
    )


@fleet.command()
@_url
@click.argument("channel")
@click.argument("number", type=int)
@click.option("--reason", default="stopped by hand", show_default=True)
@_secret
def stop(url: str, channel: str, number: int, *, reason: str, secret_file: Path) -> None:
    """Let no more boards install release NUMBER of a CHANNEL."""
    _decide(url, channel, number, reason or "stopped by hand", secret_file)
    click.echo(f"{channel}: release {number} is stopped")


@fleet.command()
@_url
@click.argument("channel")
@click.argument("number", type=int)
@_secret
def resume(url: str, channel: str, number: int, *, secret_file: Path) -> None:
    """Let boards install a release whatever failed, or fails."""
    _decide(url, channel, number, "", secret_file)
    click.echo(f"{channel}: release {number} goes on, and is not stopped again by itself")


def _decide(url: str, channel: str, number: int, reason: str, secret_file: Path) -> None:
    from edgec.compiler.update.reports import ask_coordinator

    secret = _read_secret(secret_file)
    body = json.dumps({"stopped": reason})
    ask_coordinator(url, secret, f"channels/{channel}/releases/{number}", body)


def _failure(item: tuple[str, str]) -> str:
    number, reason = item
    return f"release {number} failed: {reason}"


def _read_secret(file: Path) -> str:
    try:
        return file.read_text("ascii").strip()
    except OSError as error:
        raise BadInputError(f"secret file {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInputError(f"secret file {file} holds more than ASCII") from None
