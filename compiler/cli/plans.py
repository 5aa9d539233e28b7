"""Compile a model for several devices, as `edgec compile --devices` does, and say what came out."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgec.compiler.cli.options import progress_of
from edgec.compiler.cli.printing import exit_lines, print_json, size_text
from edgec.compiler.cli.split import numbered
from edgec.compiler.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgec.compiler.options import CompileOptions
    from edgec.compiler.split.devices import Device, StageRequest
    from edgec.compiler.split.plan import Plan
    from edgec.compiler.support.progress import Progress


def compile_plan(
    model: Path,
    options: "CompileOptions",
    *,
    devices: str,
    split: Path | None,
    parallel: str | None,
    network: Path | None,
    whole: str | None,
    encoding: str,
    min_sqnr_db: float | None,
    output: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Compile a model into a plan and its bundles, and print it; over a network several plans."""
    from edgec.compiler.split.devices import parse_devices, read_split_file
    from edgec.compiler.split.split_model import DEFAULT_SQNR_DB, split_model
    from edgec.targets import load_target

    if encoding == "none" and min_sqnr_db is not None:
        raise UsageError("--cut-min-sqnr belongs to --cut-encoding, which is not given")
    if split is not None and parallel is not None:
        raise UsageError("--split says what is shared, so --parallel is not for it: leave one out")
    parsed = parse_devices(devices)
    folder = output or Path(f"{model.stem}.plan")
    if network is not None:
        if split is not None:
            raise UsageError("--split and --network contradict each other: give one of them")
        if parallel is not None:
            raise UsageError("--parallel and --network contradict each other: give one of them")
        whole = whole or parsed[0].target.name
        requests = _requests_over(model, parsed, network, options, progress_of(quiet, verbose))
    else:
        requests = [read_split_file(split, parsed) if split is not None else ()]
    made = {}
    for number, stages in enumerate(requests, 1):
        path = numbered(folder, number)
        made[path] = split_model(
            model,
            parsed,
            options,
            output=path,
            stages=stages,
            parallel=parallel,  # type: ignore[arg-type]
            whole=None if whole is None else load_target(whole),
            encoding=encoding,  # type: ignore[arg-type]
            min_sqnr_db=DEFAULT_SQNR_DB if min_sqnr_db is None else min_sqnr_db,
            progress=progress_of(quiet, verbose),
        )
    fields = [{"folder": str(f), "plan": p.model_dump(mode="json")} for f, p in made.items()]
    if as_json:
        print_json(fields[0] if network is None else {"plans": fields})
        return
    for path, plan in made.items():
        _print_plan(path, plan)


def _requests_over(
    model: Path,
    devices: "Sequence[Device]",
    network: Path,
    options: "CompileOptions",
    progress: "Progress",
) -> "list[tuple[StageRequest, ...]]":
    """Return the plans that matter over a network; where the first device is alone, none is made.

    Raises:
        UsageError: there is no other one.
    """
    from edgec.compiler.split.advise import plan_split
    from edgec.compiler.split.link import read_network

    report = plan_split(model, devices, read_network(network), options, progress=progress)
    first = devices[0].name
    plans = [plan.requests for plan in report.plans] or [report.requests]
    found = [plan for plan in plans if {stage.device for stage in plan} != {first}]
    if not found:
        raise UsageError(
            f"over {network} {first} is fastest on its own: compile for it alone, with --target "
            f"{devices[0].target.name}"
        )
    return found


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
            exits = bundle.manifest.exits if stage is program.stages[0] else None
            for line in exit_lines(exits) if exits else ():
                click.echo(f"    {line}")
    for name, ratio in plan.sqnr_db.items():
        click.echo(f"  {name}: {ratio:.1f} dB against the model, by what is rounded on the way")
    if plan.whole:
        click.echo(f"  the whole model, to fall back on: {plan.whole}")
