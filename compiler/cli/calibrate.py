"""Provide `edgec calibrate …`: ranges from data that stay with several clients."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgec.compiler.cli.options import as_path, progress_of, quiet_option, target_option
from edgec.compiler.cli.printing import warn
from edgec.compiler.cli.serve import read_key
from edgec.compiler.errors import KeyFileError, UsageError

if TYPE_CHECKING:
    from edgec.compiler.numerics.observers import ObserverName
    from edgec.compiler.trust.keys import PublicKey


@click.group()
def calibrate() -> None:
    """Calibrate on data of several clients, of which the server sees only sums."""


_roster = click.option(
    "--roster", type=as_path, metavar="FILE", help="Public keys of all clients, one a line."
)
_key_file = click.option(
    "--key-file", type=as_path, metavar="FILE", help="Holds the key that clients send."
)


@calibrate.command()
@click.argument("model", type=as_path)
@click.option("--clients", type=int, required=True, metavar="N", help="How many take part.")
@click.option(
    "--threshold", type=int, metavar="T", help="How many must remain.  [default: two thirds, + 1]"
)
@click.option("--output", "-o", type=as_path, required=True, metavar="FILE.json")
@click.option("--quantize", default="int8", show_default=True, help="The recipe that needs them.")
@target_option
@click.option("--shape", "shapes", multiple=True, metavar="NAME=1,3,224,224")
@click.option(
    "--observer",
    type=click.Choice(("mse", "min-max", "percentile")),
    default="mse",
    show_default=True,
)
@click.option("--epsilon", type=float, help="Differential privacy: ε, for all data of a client.")
@click.option("--delta", type=float, default=1e-5, show_default=True)
@click.option(
    "--noise",
    type=click.Choice(("clients", "server")),
    default="clients",
    show_default=True,
    help="Who adds it.",
)
@click.option("--clip", default="-6,6", show_default=True, help="log2 of the largest values.")
@click.option("--wait", type=float, default=300.0, show_default=True, help="Seconds, each stage.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=int, default=8000, show_default=True, help="0 takes a free one.")
@_key_file
@_roster
@click.option("--tls-certificate", type=as_path, metavar="FILE.pem")
@click.option("--tls-key", type=as_path, metavar="FILE.pem")
def serve(
    model: Path,
    *,
    clients: int,
    threshold: int | None,
    output: Path,
    quantize: str,
    target: str,
    shapes: Sequence[str],
    observer: "ObserverName",
    epsilon: float | None,
    delta: float,
    noise: str,
    clip: str,
    wait: float,
    host: str,
    port: int,
    key_file: Path | None,
    roster: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
) -> None:
    """Collect what clients count of MODEL's values, and write the ranges."""
    from edgec.compiler.options import parse_shapes
    from edgec.compiler.private_calibration.calibrate import calibrate_over_clients, make_session
    from edgec.compiler.quantize.quantization_recipe import load_recipe
    from edgec.compiler.serve.server import ServeOptions
    from edgec.compiler.support.files import check_output_file
    from edgec.targets import load_target

    allowed = None if roster is None else _read_roster(roster)
    check_output_file(output, make_folders=True)
    common, programs = parse_shapes(shapes)
    if programs:
        raise UsageError("edgec calibrate takes one set of shapes")
    options = ServeOptions(
        host=host,
        port=port,
        key=None if key_file is None else read_key(key_file),
        certificate=tls_certificate,
        certificate_key=tls_key,
    )
    noise_fields = None
    if epsilon is not None:
        low, _, high = clip.partition(",")
        try:
            bounds = (float(low), float(high))
        except ValueError:
            raise UsageError(f"--clip {clip!r}: LOW,HIGH is expected, as -6,6") from None
        noise_fields = {
            "epsilon": epsilon,
            "delta": delta,
            "added_by": noise,
            "low_log2": bounds[0],
            "high_log2": bounds[1],
        }
    session = make_session(
        model,
        load_recipe(quantize),
        load_target(target),
        clients=clients,
        threshold=threshold,
        shapes=common,
        wait_seconds=wait,
        noise=noise_fields,
    )
    if allowed is None:
        warn(
            f"without --roster the first {clients} that come take part, whoever they are: clients "
            "must trust that they are not all of this server's making"
        )
    file = calibrate_over_clients(
        session, model, output, options, observer, allowed, listening=click.echo
    )
    click.echo(f"{output}: {len(file.ranges)} ranges over {file.source.summed} clients")
    if file.source.privacy is not None:
        privacy = file.source.privacy
        click.echo(f"  epsilon {privacy.epsilon:g}, delta {privacy.delta:g}: {privacy.accounting}")


@calibrate.command()
@click.argument("url")
@click.option(
    "--data", required=True, metavar="DATA", help=".npy, .npz, a folder, or module:function."
)
@click.option("--model", type=as_path, metavar="FILE.onnx", help="Instead of fetching it.")
@click.option("--key", metavar="NAME", help="Of edgec keys new; one for this time otherwise.")
@_roster
@_key_file
@click.option("--limit", type=int, default=300, show_default=True, help="Batches, at most.")
@click.option("--max-epsilon", type=float, help="Take part only with so much noise of clients.")
@quiet_option
def join(
    url: str,
    *,
    data: str,
    model: Path | None,
    key: str | None,
    roster: Path | None,
    key_file: Path | None,
    limit: int,
    max_epsilon: float | None,
    quiet: bool,
) -> None:
    """Count what MODEL's values are on own data, and send that masked to the server at URL."""
    from edgec.compiler.calibration.samples import SampleOptions
    from edgec.compiler.private_calibration.calibrate import take_part
    from edgec.compiler.private_calibration.join import Connection
    from edgec.compiler.trust.keys import load_signing_key

    take_part(
        Connection(url, None if key_file is None else read_key(key_file)),
        SampleOptions(source=data, limit=limit),
        model=model,
        identity=None if key is None else load_signing_key(key),
        allowed=None if roster is None else _read_roster(roster),
        most_epsilon=max_epsilon,
        progress=progress_of(quiet),
    )
    click.echo("sent, masked; the server has the sum")


def _read_roster(path: Path) -> "frozenset[PublicKey]":
    from edgec.compiler.trust.keys import PublicKey

    try:
        lines = path.read_text("ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"roster {path} cannot be read: {error}") from None
    return frozenset(PublicKey.parse(line) for line in lines)
