"""Provide `edgec serve`: bundles over HTTP."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from edgec.compiler.cli.generation_options import speculate_option
from edgec.compiler.cli.options import as_path
from edgec.compiler.errors import BadInputError, UsageError


@click.command()
@click.argument("bundles", nargs=-1, required=True, metavar="[NAME=]BUNDLE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=int, default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--key-file",
    type=as_path,
    metavar="FILE",
    help="Holds the key that clients send as `Authorization: Bearer KEY`; needed beyond loopback.",
)
@click.option("--threads", type=int, default=0, show_default=True, help="Of a run; 0: all cores.")
@click.option(
    "--sessions",
    type=int,
    default=1,
    show_default=True,
    help="Runs of a model at the same time; streams, if it has state.",
)
@click.option(
    "--batch-wait",
    type=float,
    default=0.0,
    show_default=True,
    metavar="MS",
    help="How long a request waits for others to share a run with.",
)
@speculate_option
@click.option("--tls-certificate", type=as_path, metavar="FILE.pem")
@click.option("--tls-key", type=as_path, metavar="FILE.pem")
def serve(
    bundles: Sequence[str],
    *,
    host: str,
    port: int,
    key_file: Path | None,
    threads: int,
    sessions: int,
    batch_wait: float,
    speculate: str,
    tls_certificate: Path | None,
    tls_key: Path | None,
) -> None:
    """Serve BUNDLEs until Ctrl-C.

    Language models by OpenAI's interface (/v1), all others by the Open Inference Protocol (/v2).

    A bundle is called by its file's name, or by NAME.
    """
    from edgec.compiler.serve.server import ServeOptions, serve_bundles

    options = ServeOptions(
        host=host,
        port=port,
        key=None if key_file is None else read_key(key_file),
        threads=threads,
        sessions=sessions,
        batch_wait_seconds=batch_wait / 1e3,
        speculate=speculate,
        certificate=tls_certificate,
        certificate_key=tls_key,
    )
    serve_bundles(_by_name(bundles), options, listening=_say)


def _by_name(bundles: Sequence[str]) -> dict[str, Path]:
    named = {}
    for text in bundles:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = Path(text).name.removesuffix(".tar").removesuffix(".edgec"), text
        if name in named:
            raise UsageError(f"two bundles are called {name}; name them: one={path} other=...")
        named[name] = Path(path)
    return named


def read_key(file: Path) -> str:
    """Return the key that a file holds.

    Raises:
        BadInputError: it cannot be read.
    """
    try:
        return file.read_text("ascii").strip()
    except OSError as error:
        raise BadInputError(f"key file {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInputError(f"key file {file} holds more than ASCII") from None


def _say(url: str, models: Mapping[str, str]) -> None:
    for name, how in models.items():
        click.echo(f"serving {name}: {how}", err=True)
    click.echo(url)
