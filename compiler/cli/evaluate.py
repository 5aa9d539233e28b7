"""Provide `edgec evaluate` and `edgec compare`: how good and how dear bundles are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgec.compiler.cli.options import (
    as_path,
    cluster_option,
    json_option,
    progress_of,
    workers_option,
)
from edgec.compiler.cli.printing import print_json, print_table

_OPTIONS = (
    click.option(
        "--data",
        metavar="FOLDER|NPZ",
        help="Class folders of images, images, arrays, or an .npz with `labels`.",
    ),
    click.option(
        "--metric",
        default="top1",
        show_default=True,
        metavar="NAME",
        help="top1, top5, f1, map, cer, or module:function.",
    ),
    click.option("--preprocess", metavar="KEY=VALUE,…", help="Of images, as for compile."),
    click.option(
        "--model", type=as_path, metavar="FILE.onnx", help="Its answers stand in for labels."
    ),
    click.option("--limit", type=int, metavar="N", help="Batches that are looked at."),
    click.option(
        "--threads", type=int, default=1, show_default=True, help="For every bundle; 0: all cores."
    ),
    click.option("--seconds", default=2.0, show_default=True, help="Measuring time of each."),
    click.option(
        "--report", type=as_path, metavar="FILE.html|.json|.csv", help="The table, with plots."
    ),
    click.option("--board", default="", metavar="NAME", help="Run and measure there."),
    json_option,
)


def _evaluation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("bundle", type=as_path)
@_evaluation_options
def evaluate(bundle: Path, **settings: Any) -> None:
    """Say how good BUNDLE is on data, how fast, and how large."""
    _evaluate((bundle,), settings)


@click.command()
@workers_option
@cluster_option
@click.argument("bundles", nargs=-1, required=True, type=as_path)
@_evaluation_options
def compare(
    bundles: tuple[Path, ...], *, workers: int | None, cluster: str, **settings: Any
) -> None:
    """Set BUNDLES side by side: accuracy, latency, memory, size, energy.

    With workers or a cluster, bundles are scored on the data at the same time.
    """
    from edgec.compiler.jobs.pool import JobOptions

    jobs = None
    if workers is not None or cluster:
        jobs = JobOptions(cluster=cluster, workers=workers)
    _evaluate(bundles, settings | {"jobs": jobs})


def _evaluate(bundles: tuple[Path, ...], settings: dict[str, Any]) -> None:
    from edgec.compiler.evaluate.evaluation import EvaluationOptions, evaluate_bundles
    from edgec.compiler.evaluate.evaluation_report import (
        check_table_name,
        evaluation_fields,
        head,
        notes,
        rows,
        write_evaluation,
    )
    from edgec.compiler.frontend.preprocessing import parse_preprocess

    report, as_json = settings.pop("report"), settings.pop("as_json")
    check_table_name(report, "--report")
    preprocess = settings.pop("preprocess")
    options = EvaluationOptions(
        preprocess=None if preprocess is None else parse_preprocess(preprocess), **settings
    )
    found = evaluate_bundles(bundles, options, progress=progress_of(as_json))
    if report is not None:
        write_evaluation(report, found)
    if as_json:
        print_json(evaluation_fields(found))
        return
    print_table(head(found), rows(found))
    for line in notes(found):
        click.echo(line)
