"""Run, check and measure a split model, as `--plan` of `edgec run`, `verify` and `bench` does."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.compiler.cli.options import as_path, progress_of, read_inputs
from edgec.compiler.cli.printing import figure, print_json, print_parity, print_table, size_text
from edgec.compiler.errors import UsageError

if TYPE_CHECKING:
    from edgec.compiler.distribute.bench_plan import PlanBench
    from edgec.compiler.distribute.plan_session import PlanSession

_OPTIONS = (
    click.option("--plan", type=as_path, metavar="FOLDER", help="A split model, or a cascade."),
    click.option(
        "--device",
        "devices",
        multiple=True,
        metavar="NAME=ADDRESS",
        help="Of a plan: HOST:PORT where its stage is served, or board:NAME to start it there; "
        "else it is started here.",
    ),
    click.option(
        "--key", type=as_path, metavar="FILE", help="Of a plan: what host and stages share."
    ),
)


def plan_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of split models to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def is_plan(plan: Path | None, devices: Sequence[str], key: Path | None, bundles: object) -> bool:
    """Return whether a plan is asked for.

    Raises:
        UsageError: neither or both of a plan and a bundle are given, or options of a plan alone.
    """
    if plan is None and (devices or key is not None):
        raise UsageError("--device and --key belong to --plan, which is not given")
    if plan is not None and bundles:
        raise UsageError("give a bundle or --plan FOLDER, not both")
    if plan is None and not bundles:
        raise UsageError("give a bundle, or --plan FOLDER")
    return plan is not None


@contextmanager
def opened_plan(
    plan: Path, devices: Sequence[str], key: Path | None, threads: int, quiet: bool
) -> Iterator["PlanSession"]:
    """Provide a session with the stages of a plan."""
    from edgec.compiler.distribute.plan_session import PlanSession
    from edgec.compiler.distribute.stage_places import StageOptions

    options = StageOptions(threads=threads, key_file=key)
    named = named_devices(devices)
    with PlanSession(plan, named, options=options, progress=progress_of(quiet)) as session:
        yield session


def named_devices(devices: Sequence[str]) -> Mapping[str, str]:
    """Read `NAME=ADDRESS`, each name once.

    Raises:
        UsageError: one is not of that form.
    """
    named: dict[str, str] = {}
    for text in devices:
        name, equals, address = text.partition("=")
        if not equals or not address:
            raise UsageError(f"--device {text} is not NAME=HOST:PORT or NAME=board:BOARD")
        if name in named:
            raise UsageError(f"--device {name} is given twice; write {name}=ONE,OTHER for a spare")
        named[name] = address
    return named


def run_plan(
    session: "PlanSession", inputs: Sequence[str], program: str | None, seed: int
) -> dict[str, Any]:
    """Run once, on given or generated inputs."""
    from edgec.compiler.runtime.inputs import generate_inputs

    given = read_inputs(inputs)
    if given is None:
        specs = session.plan.program(program).signature.inputs
        given = generate_inputs(specs, seed, session.index_bounds)
    return session.run(given, program)


def answered_by(session: "PlanSession") -> str:
    """Return who answered, if it was not the stages; empty if it was."""
    if not session.losses:
        return ""
    return f"{session.losses[0]}; the whole model answered on this machine"


def verify_and_print(
    session: "PlanSession", model: Path | None, seeds: tuple[int, ...], as_json: bool
) -> None:
    """Verify a plan."""
    from edgec.compiler.distribute.verify_plan import verify_plan

    report = verify_plan(session, model=model, seeds=seeds)
    if as_json:
        outputs = [dataclasses.asdict(output) for output in report.outputs]
        print_json({"plan": str(session.folder), "passed": report.passed, "outputs": outputs})
    else:
        stages = ", ".join(session.plan.devices)
        click.echo(f"{session.folder}: computed by {stages}")
        print_parity(report)
    report.check(f"for {session.folder}")


def bench_and_print(
    session: "PlanSession",
    inputs: Sequence[str],
    program: str | None,
    seconds: float,
    report: Path | None,
    as_json: bool,
) -> None:
    """Measure a plan."""
    from edgec.compiler.distribute.bench_plan import bench_plan
    from edgec.compiler.support.files import check_output_file
    from edgec.compiler.support.html_report import check_report_name

    check_report_name(report, "--report")
    if report is not None:
        check_output_file(report)

    found = bench_plan(session, read_inputs(inputs), program=program, seconds=seconds)
    if report is not None:
        from edgec.compiler.distribute.plan_report import write_plan_report

        write_plan_report(report, session, found)
    if as_json:
        from edgec.compiler.distribute.plan_report import report_fields

        print_json({"plan": str(session.folder), **report_fields(found)})
    else:
        _print_bench(found)


def _print_bench(found: "PlanBench") -> None:
    rows = [found.latency] if found.whole is None else [found.latency, found.whole]
    print_table(
        ["one at a time", *found.latency.summary()],
        [[item.name, *map(figure, item.summary().values())] for item in rows],
    )
    beside = "" if found.speedup is None else f", {found.speedup:.2f} times the whole model's"
    click.echo(f"several under way: {figure(found.per_second)} per second{beside}")
    click.echo(
        f"beside computing: {figure(found.outside_ms)} ms of a request over {found.hops} links"
    )
    print_table(
        ["stage", "bundle", "compute_ms", "busy"],
        [[s.device, s.bundle, figure(s.compute_ms), f"{s.busy:.0%}"] for s in found.stages],
    )
    print_table(
        ["from", "to", "bytes", "values"],
        [
            [link.source, link.target, size_text(link.size_bytes), ", ".join(link.values)]
            for link in found.links
        ],
    )
