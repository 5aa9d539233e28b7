"""Compile a model for several devices, as `edgec compile --devices` does, and say what came out."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgec.compiler.cli.options import progress_of
from edgec.compiler.cli.printing import print_json, size_text
from edgec.compiler.errors import UsageError

if TYPE_CHECKING:
    from edgec.compiler.options import CompileOptions
    from edgec.compiler.split.plan import Plan


def compile_plan(
    model: Path,
    options: "CompileOptions",
    *,
    devices: str,
    split: Path | None,
    parallel: str | None,
    whole: str | None,
    encoding: str,
    min_sqnr_db: float | None,
    output: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Compile a model into a plan and its bundles, and print it."""
    from edgec.compiler.split.devices import parse_devices, read_split_file
    from edgec.compiler.split.split_model import DEFAULT_SQNR_DB, split_model
    from edgec.targets import load_target

    if encoding == "none" and min_sqnr_db is not None:
        raise UsageError("--cut-min-sqnr belongs to --cut-encoding, which is not given")
    if split is not None and parallel is not None:
        raise UsageError("--split says what is shared, so --parallel is not for it: leave one out")
    parsed = parse_devices(devices)
    folder = output or Path(f"{model.stem}.plan")
    plan = split_model(
        model,
        parsed,
        options,
        output=folder,
        stages=read_split_file(split, parsed) if split is not None else (),
        parallel=parallel,  # type: ignore[arg-type]
        whole=None if whole is None else load_target(whole),
        encoding=encoding,  # type: ignore[arg-type]
        min_sqnr_db=DEFAULT_SQNR_DB if min_sqnr_db is None else min_sqnr_db,
        progress=progress_of(quiet, verbose),
    )
    if as_json:
        print_json({"folder": str(folder), "plan": plan.model_dump(mode="json")})
    else:
        _print_plan(folder, plan)


def _print_plan(folder: Path, plan: "Plan") -> None:
    from edgec.compiler.bundle.bundle import Bundle

    click.echo(f"{folder}: {plan.model.name} over {', '.join(plan.devices)}")
    for program in plan.programs:
        if len(plan.programs) > 1:
            click.echo(f"  program {program.name}")
        for stage in program.stages:
            bundle = Bundle.load(folder / stage.bundle)
            files = bundle.manifest.files
            size = size_text(sum(record.size_bytes for record in files.values()))
            arena = size_text(bundle.manifest.execution.arena_bytes)
            given = [program.value(name) for name in stage.outputs]
            sent = ", ".join(f"{v.name} {v.dtype} {list(v.shape)}" for v in given)
            click.echo(f"  {stage.device} ({stage.target}): {size}, {arena} to compute in")
            click.echo(f"    gives {sent}")
    for name, ratio in plan.sqnr_db.items():
        click.echo(f"  {name}: {ratio:.1f} dB against the model, by what is rounded on the way")
    if plan.whole:
        click.echo(f"  the whole model, to fall back on: {plan.whole}")
