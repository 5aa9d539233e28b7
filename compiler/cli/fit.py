"""Provide `edgec fit`: the version of a model that keeps to what its user can afford."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.compiler.cli.options import (
    as_path,
    cluster_option,
    json_option,
    model_options,
    progress_of,
    quiet_option,
    sample_options,
    sample_settings,
    shape_options,
    target_option,
    workers_option,
)
from edgec.compiler.cli.printing import print_json, print_table

if TYPE_CHECKING:
    from edgec.compiler.fit.fit_report import FitReport
    from edgec.compiler.fit.search import Search, Watcher

# Options that `edgec compile` takes as well, beside those of shapes, which are written anew.
_SHARED = (
    "freeze",
    "limits",
    "context",
    "calibration",
    "preprocess",
    "embed_preprocess",
    "image_size",
    "calibration_limit",
    "metric",
    "records",
)


@click.command()
@click.argument("model", type=as_path)
@target_option
@click.option("--latency", metavar="20ms", help="Of one inference, at most.")
@click.option("--memory", metavar="8MB", help="Of activations, at most.")
@click.option("--size", metavar="4MB", help="Of the library (weights and code), at most.")
@click.option("--drop", metavar="1%", help="Of accuracy, at most.")
@click.option(
    "--output", "-o", type=as_path, metavar="PATH", help="Bundle folder, or a file ending in .tar."
)
@click.option("--trials", default=20, show_default=True, help="Versions to compile, at most.")
@click.option(
    "--recipes",
    default="",
    metavar="int8,channels,…",
    help="Use only these: quantizations, and steps of compression without their number.",
)
@click.option(
    "--data",
    metavar="DATA",
    help="Measure accuracy on this, not on the calibration; by its labels, if it has some.",
)
@sample_options
@shape_options
@click.option("--records", type=as_path, metavar="DB", help="Use the decisions that were tuned.")
@click.option("--board", default="", metavar="NAME", help="Measure the last candidates there.")
@click.option("--no-measure", is_flag=True, help="Trust the predicted latencies.")
@click.option(
    "--folder", type=as_path, metavar="DIR", help="Of what was found.  [default: OUTPUT.fit]"
)
@click.option("--report", type=as_path, metavar="FILE.html|.json", help="What was tried.")
@click.option("--seed", default=0, show_default=True, help="Of everything random.")
@workers_option
@cluster_option
@quiet_option
@json_option
@click.pass_context
def fit(
    click_context: click.Context,
    /,
    model: Path,
    *,
    target: str,
    latency: str | None,
    memory: str | None,
    size: str | None,
    drop: str | None,
    output: Path | None,
    trials: int,
    recipes: str,
    data: str | None,
    shapes: Sequence[str],
    freeze: Sequence[str],
    limits: Sequence[str],
    context: int | None,
    records: Path | None,
    board: str,
    no_measure: bool,
    folder: Path | None,
    report: Path | None,
    seed: int,
    cluster: str,
    workers: int | None,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Search for the version of a MODEL that keeps to what you can afford.

    What is found out goes to files at once; the same command goes on after a stop.
    """
    from edgec.compiler.fit.limits import Limits, parse_quantity
    from edgec.compiler.fit.options import FitOptions
    from edgec.compiler.jobs.pool import JobOptions

    options = FitOptions(
        limits=Limits(
            latency=None if latency is None else parse_quantity("latency", latency),
            memory=None if memory is None else parse_quantity("memory", memory),
            size=None if size is None else parse_quantity("size", size),
            drop=None if drop is None else parse_quantity("drop", drop),
        ),
        trials=trials,
        recipes=tuple(name.strip() for name in recipes.split(",") if name.strip()),
        data=data,
        board=board,
        measure=not no_measure,
        folder=folder,
        report=report,
        seed=seed,
        jobs=JobOptions(cluster=cluster, workers=workers),
        metric=named_metric(settings["metric"]),
        arguments=shared_arguments(click_context),
    )
    from edgec.compiler.cli.fit_screen import Screen
    from edgec.compiler.fit.api import fit_model
    from edgec.compiler.options import CompileOptions

    if options.metric:
        # A compile knows functions alone.
        settings = settings | {"metric": None}
    compile_options = CompileOptions(
        **model_options(shapes, freeze, limits, context),
        **sample_settings(settings),
        records=records,
    )
    with ExitStack() as stack:

        def watch(search: "Search") -> "Watcher":
            return stack.enter_context(Screen(search, quiet=quiet or as_json))

        found = fit_model(
            model,
            target,
            options,
            compile_options,
            output=output,
            watch=watch,
            progress=progress_of(quiet=True),
        )
    if as_json:
        from edgec.compiler.fit.fit_report import fit_fields

        print_json(fit_fields(found))
    else:
        print_fit(found)


def named_metric(text: str | None) -> str:
    """Return a metric that is no function, as `edgec evaluate` names it; else an empty text."""
    return text if text is not None and ":" not in text else ""


def shared_arguments(context: click.Context) -> tuple[str, ...]:
    """Return the options of a call that `edgec compile` takes as well, as they were given."""
    found: list[str] = []
    for parameter in context.command.params:
        if parameter.name not in _SHARED or not isinstance(parameter, click.Option):
            continue
        value = context.params[parameter.name]
        if parameter.name == "metric" and named_metric(value):
            continue
        option = max(parameter.opts, key=len)
        if parameter.is_flag:
            found += [option] * bool(value)
        elif parameter.multiple:
            found += [word for each in value for word in (option, str(each))]
        elif value is not None:
            found += [option, str(value)]
    return tuple(found)


def print_fit(report: "FitReport") -> None:
    """Print the front, what was chosen, and the command that makes it."""
    from edgec.compiler.cli.fit_screen import front_rows

    search = report.search
    print_table(*front_rows(search, report.chosen))
    click.echo(
        f"{len(search.evaluated)} versions compiled, {len(search.trials)} predicted; ended by "
        f"{search.reason}"
    )
    assert report.chosen is not None
    assert report.bundle is not None
    click.echo(f"{report.bundle.path}: {report.chosen.point.label}")
    click.echo(report.command)
