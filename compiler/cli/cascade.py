"""Provide `edgec cascade`: a small model before a large one; and cascades as `--plan` has them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.compiler.cascade.cascade import is_cascade
from edgec.compiler.cli.options import as_path, json_option, progress_of, read_inputs
from edgec.compiler.cli.printing import figure, print_json, print_table
from edgec.compiler.errors import BoardError, UsageError

if TYPE_CHECKING:
    from edgec.compiler.cascade.session import CascadeSession


@click.command()
@click.argument("small", type=as_path)
@click.argument("large", type=as_path)
@click.option(
    "--data",
    required=True,
    metavar="FOLDER|NPZ",
    help="Half of it finds the threshold, half says what the cascade is worth; as for evaluate.",
)
@click.option(
    "--drop",
    default="1%",
    show_default=True,
    help="Share of other answers than those of LARGE, at most.",
)
@click.option("--output", "-o", type=as_path, metavar="FOLDER", help="Of the cascade.")
@click.option("--preprocess", metavar="KEY=VALUE,…", help="Of images, as for compile.")
@click.option("--limit", type=int, metavar="N", help="Batches that are looked at.")
@click.option("--threads", type=int, default=1, show_default=True, help="For each model.")
@json_option
def cascade(
    small: Path,
    large: Path,
    *,
    data: str,
    drop: str,
    output: Path | None,
    preprocess: str | None,
    limit: int | None,
    threads: int,
    as_json: bool,
) -> None:
    """Ask bundle SMALL first, and LARGE where SMALL is not sure enough of its answer."""
    from edgec.compiler.evaluate.make_cascade import make_cascade
    from edgec.compiler.frontend.preprocessing import parse_preprocess

    folder = output or Path(f"{small.stem}.cascade")
    made = make_cascade(
        small,
        large,
        data,
        drop=parse_share(drop),
        output=folder,
        preprocess=None if preprocess is None else parse_preprocess(preprocess),
        limit=limit,
        threads=threads,
        progress=progress_of(as_json),
    )
    if as_json:
        print_json({"cascade": str(folder), **made.model_dump(mode="json")})
        return
    click.echo(
        f"{folder}: {small.name} answers where its probability is {made.threshold:.3g} or more"
    )
    click.echo(
        f"  {made.escalated:.1%} of the samples go on to {large.name}; {made.agreement:.2%} of the "
        f"answers are its own, over {made.samples:,} samples that nothing was fitted to"
    )
    if made.accuracy:
        print_table(["top1", *made.accuracy], [["", *(f"{a:.2%}" for a in made.accuracy.values())]])


def parse_share(text: str) -> float:
    """Read `1%` or `0.01`.

    Raises:
        UsageError: it is no share.

    >>> parse_share("1%"), parse_share("0.02")
    (0.01, 0.02)
    """
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        raise UsageError(f"{text!r} is no share; write 1% or 0.01") from None
    return number / 100 if text.endswith("%") else number


def stops_early(plan: Path, devices: Mapping[str, str]) -> bool:
    """Return whether `--plan` names a cascade, or a plan whose exits are on this machine."""
    from edgec.compiler.distribute.edge_session import has_exits
    from edgec.compiler.distribute.http_stage import is_http

    return is_cascade(plan) or (has_exits(plan) and all(map(is_http, devices.values())))


@contextmanager
def opened_cascade(
    folder: Path, devices: Mapping[str, str], key: Path | None, threads: int
) -> Iterator["CascadeSession"]:
    """Provide a cascade, or a plan with exits, that `--plan` names."""
    from edgec.compiler.distribute.cascade_link import open_cascade

    with open_cascade(folder, devices, key_file=key, threads=threads) as session:
        yield session


def run_cascade(session: "CascadeSession", inputs: Sequence[str], seed: int) -> dict[str, Any]:
    """Run once, on given or generated inputs, and say which model answered."""
    outputs = session.run(_inputs(session, inputs, seed))
    (by,) = session.answers
    why = {
        "first": "the first part",
        "large": "the large model",
        "lost": "the first part, as the large model cannot be reached",
    }
    click.echo(f"edgec: answered by {why[by]}", err=True)
    return outputs


def bench_cascade(
    session: "CascadeSession", inputs: Sequence[str], seconds: float, as_json: bool
) -> None:
    """Print how long each model takes in turns, and what that makes of a request."""
    from edgec.compiler.bench.compare import take_turns

    given = _inputs(session, inputs, 0)

    handed = session.ask_first(given).handed

    def ask_first() -> None:
        session.ask_first(given)

    def ask_large() -> None:
        if session.ask_large(handed) is None:
            raise BoardError("the large model cannot be reached, so that there is nothing to time")

    first, large = take_turns(["first", "large"], [ask_first, ask_large], seconds)
    expected = first.median_ms + session.escalated * large.median_ms
    if as_json:
        fields = {"first_ms": first.median_ms, "large_ms": large.median_ms}
        print_json({**fields, "escalated": session.escalated, "expected_ms": expected})
        return
    print_table(
        ["one at a time", *first.summary()],
        [[item.name, *map(figure, item.summary().values())] for item in (first, large)],
    )
    click.echo(
        f"a request takes {figure(expected)} ms on average, as {session.escalated:.1%} of the "
        "calibration "
        f"data went on to the large model"
    )


def _inputs(session: "CascadeSession", inputs: Sequence[str], seed: int) -> dict[str, Any]:
    from edgec.compiler.runtime.inputs import generate_inputs

    given = read_inputs(inputs)
    if given is not None:
        return given
    return generate_inputs(session.signature.inputs, seed, session.index_bounds)
