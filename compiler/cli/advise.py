"""Provide `edgec advise`: which models a board can afford."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.compiler.cli.options import (
    as_path,
    json_option,
    model_options,
    progress_of,
    shape_options,
    target_option,
)
from edgec.compiler.cli.printing import print_json, print_table
from edgec.compiler.errors import UsageError

if TYPE_CHECKING:
    from edgec.compiler.evaluate.advice import Candidate

_UNITS = {"ms": 1.0, "us": 1e-3, "s": 1e3, "": 1.0}
_SIZES = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "k": 1e3, "m": 1e6, "g": 1e9, "": 1.0}


@click.command()
@click.argument("folder", required=False, type=as_path)
@click.option("--task", metavar="NAME", help="Of the catalogue: detection, classification, …")
@target_option
@click.option("--latency", metavar="TIME", help="At most, such as 100ms.")
@click.option("--memory", metavar="SIZE", help="Weights and activations, such as 8MB.")
@click.option("--size", metavar="SIZE", help="Of the library, such as 4MB.")
@click.option("--threads", type=int, default=1, show_default=True, help="0: all cores.")
@click.option("--measure", is_flag=True, help="Compile and time each here.")
@click.option("--report", type=as_path, metavar="FILE.html|.json|.csv", help="The table.")
@shape_options
@json_option
def advise(
    folder: Path | None,
    *,
    task: str | None,
    target: str,
    latency: str | None,
    memory: str | None,
    size: str | None,
    threads: int,
    measure: bool,
    report: Path | None,
    shapes: Sequence[str],
    freeze: Sequence[str],
    limits: Sequence[str],
    context: int | None,
    as_json: bool,
) -> None:
    """Rank models for a board: those of the catalogue, or the ONNX files of FOLDER."""
    from edgec.compiler.evaluate import advice
    from edgec.compiler.evaluate.evaluation_report import check_table_name, csv_text, save_text
    from edgec.compiler.options import CompileOptions
    from edgec.compiler.support.html_report import save_report
    from edgec.targets import load_target

    check_table_name(report, "--report")
    afford = advice.AdviceLimits(
        latency_ms=_amount("--latency", latency, _UNITS, "100ms"),
        memory_bytes=_whole("--memory", memory),
        size_bytes=_whole("--size", size),
    )
    loaded = load_target(target)
    options = model_options(shapes, freeze, limits, context)
    if folder is None:
        if shapes or freeze or context is not None:
            raise UsageError("models of the catalogue have their shapes; give a FOLDER of your own")
        candidates = _catalogue(options["limits"])
    else:
        if task is not None:
            raise UsageError("--task chooses from the catalogue; a FOLDER is looked at as a whole")
        candidates = advice.folder_candidates(folder, CompileOptions(**options))
    found = advice.advise(
        candidates,
        loaded,
        afford,
        task=task,
        threads=threads,
        measure=measure,
        progress=progress_of(as_json),
    )
    if report is not None and report.suffix == ".csv":
        save_text(report, csv_text(advice.HEAD, advice.rows(found)))
    elif report is not None:
        fields = {"target": loaded.name, "models": advice.advice_fields(found)}
        save_report(report, fields, advice.advice_page(found, loaded))
    if as_json:
        print_json(advice.advice_fields(found))
        return
    print_table(list(advice.HEAD), advice.rows(found))
    click.echo(f"order: {advice.ORDER}")


def _catalogue(limits: Any) -> "list[Candidate]":
    import numpy as np

    from edgec.compiler.evaluate.advice import Candidate
    from edgec.compiler.options import CompileOptions
    from edgec.models import ModelRecipe, recipes

    def candidate(recipe: ModelRecipe) -> Candidate:
        options = CompileOptions(
            shapes=dict(recipe.shapes),
            freeze={name: np.array(value) for name, value in recipe.freeze.items()},
            limits=limits,
            context=recipe.context or None,
        )
        return Candidate(
            recipe.name,
            recipe.task,
            lambda folder: recipe.write(folder / recipe.file_name),
            options,
            recipe.description,
        )

    return [candidate(recipe) for recipe in recipes()]


def _amount(option: str, text: str | None, units: dict[str, float], example: str) -> float | None:
    """Return a positive number with a unit."""
    if text is None:
        return None
    number = text.strip().lower().rstrip("bkmgsu")
    unit = text.strip().lower()[len(number) :]
    try:
        value = float(number) * units[unit]
    except (ValueError, KeyError):
        value = -1.0
    if not 0 < value < 1e15:
        raise UsageError(f"{option} {text}: write a positive number and a unit, such as {example}")
    return value


def _whole(option: str, text: str | None) -> int | None:
    value = _amount(option, text, _SIZES, "8MB")
    return None if value is None else int(value)
