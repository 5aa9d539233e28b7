"""Provide `edgec bench`: how fast bundles are, beside other runtimes or on a board."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgec.compiler.bench.names import RIVAL_NAMES, TOKEN_RIVAL_NAMES
from edgec.compiler.cli.cascade import bench_cascade, opened_cascade, stops_early
from edgec.compiler.cli.options import (
    as_path,
    board_option,
    inputs_option,
    json_option,
    program_option,
    progress_of,
    read_inputs,
)
from edgec.compiler.cli.plan_runs import (
    bench_and_print,
    is_plan,
    named_devices,
    opened_plan,
    plan_options,
)
from edgec.compiler.cli.printing import figure, print_json, print_profile, print_table
from edgec.compiler.errors import UsageError

if TYPE_CHECKING:
    from edgec.compiler.bench.compare import BenchReport
    from edgec.compiler.bench.tokens import TokenReport
    from edgec.compiler.boards.instructions import InstructionCount
    from edgec.compiler.boards.remote_timing import BoardTimes


@click.command()
@click.argument("bundles", nargs=-1, type=as_path)
@plan_options
@click.option(
    "--report", type=as_path, metavar="FILE.html", help="Of a plan: what stages did, and when."
)
@click.option(
    "--threads",
    type=int,
    default=1,
    show_default=True,
    help="For every runtime; 0: all cores.",
)
@click.option("--seconds", default=3.0, show_default=True, help="Measuring time of each.")
@click.option(
    "--busy",
    type=int,
    default=0,
    metavar="N",
    help="Measure beside N processes that keep cores busy.",
)
@click.option(
    "--against",
    default="",
    metavar="NAME,…",
    help=f"{','.join(RIVAL_NAMES)}; with --tokens {','.join(TOKEN_RIVAL_NAMES)}.",
)
@click.option(
    "--model", type=as_path, metavar="FILE", help="The model that was compiled, for the others."
)
@click.option(
    "--tokens",
    metavar="ppN,tgN",
    help="Of a language model: read N tokens of a prompt, give N tokens.",
)
@click.option(
    "--context-depth",
    default="0",
    show_default=True,
    metavar="N,…",
    help="With --tokens: tokens that are in the cache before.",
)
@inputs_option
@program_option
@click.option("--profile", is_flag=True, help="Show the time of every kernel.")
@board_option
@json_option
def bench(
    bundles: tuple[Path, ...],
    *,
    plan: Path | None,
    devices: Sequence[str],
    key: Path | None,
    report: Path | None,
    threads: int,
    seconds: float,
    busy: int,
    against: str,
    model: Path | None,
    inputs: Sequence[str],
    program: str | None,
    tokens: str | None,
    context_depth: str,
    profile: bool,
    board: str | None,
    as_json: bool,
) -> None:
    """Time BUNDLES here, in turn with other runtimes on the same model.

    Or time one on a board; on a QEMU board, count the instructions of an inference. Or, with
    --plan, time a split model over its devices.
    """
    if is_plan(plan, devices, key, bundles):
        assert plan is not None
        if board is not None or against or model is not None or busy or profile or tokens:
            raise UsageError(
                "--plan takes no --board, --against, --model, --busy, --profile or --tokens"
            )
        if stops_early(plan, named_devices(devices)):
            with opened_cascade(plan, named_devices(devices), key, threads) as models:
                bench_cascade(models, inputs, seconds, as_json)
            return
        with opened_plan(plan, devices, key, threads, as_json) as session:
            bench_and_print(session, inputs, program, seconds, report, as_json)
        return
    if report is not None:
        raise UsageError("--report belongs to --plan, which is not given")
    if tokens is not None:
        if len(bundles) != 1 or busy or profile or inputs or program or board is not None:
            raise UsageError(
                "--tokens measures one bundle, here, by tokens of its own; of the other options "
                "--threads, --seconds, --against, --model and --json go with it"
            )
        from edgec.compiler.bench.tokens import bench_tokens, parse_tests

        found = bench_tokens(
            bundles[0],
            parse_tests(tokens, context_depth),
            threads=threads,
            seconds=seconds,
            against=[name for name in against.split(",") if name],
            model=model,
        )
        _print_tokens(found, as_json=as_json)
        return
    if board is None:
        from edgec.compiler.bench.compare import bench_bundles

        found_here = bench_bundles(
            bundles,
            threads=threads,
            seconds=seconds,
            busy=busy,
            against=[name for name in against.split(",") if name],
            model=model,
            inputs=read_inputs(inputs),
            program=program,
        )
        _print_bench(found_here, profile=profile, as_json=as_json)
        return
    if against or model is not None:
        raise UsageError("--against and --model compare on this machine, not on a board")
    if busy:
        raise UsageError("--busy keeps cores of this machine busy, not of a board")
    if len(bundles) != 1:
        raise UsageError("--board measures one bundle at a time")
    from edgec.compiler.boards.instructions import InstructionCount
    from edgec.compiler.boards.run import bench_on

    timed = bench_on(
        board,
        bundles[0],
        read_inputs(inputs),
        program=program,
        threads=threads,
        seconds=seconds,
        profile=profile,
        progress=progress_of(as_json),
    )
    if isinstance(timed, InstructionCount):
        _print_count(bundles[0], board, timed, profile=profile, as_json=as_json)
    else:
        _print_times(bundles[0], board, timed, profile=profile, as_json=as_json)


def _print_times(
    bundle: Path, board: str, times: "BoardTimes", *, profile: bool, as_json: bool
) -> None:
    summary = times.latency.summary()
    if as_json:
        print_json(
            {
                "bundle": str(bundle),
                "board": board,
                "threads": times.threads,
                "latency": summary,
                "steps": [vars(step) for step in times.steps],
            }
        )
        return
    title = f"{times.threads} thread{'s' * (times.threads != 1)} of {board}"
    print_table([title, *summary], [[times.latency.name, *map(figure, summary.values())]])
    if profile:
        print_profile(times.steps)


def _print_count(
    bundle: Path, board: str, counted: "InstructionCount", *, profile: bool, as_json: bool
) -> None:
    if as_json:
        print_json(
            {
                "bundle": str(bundle),
                "board": board,
                "threads": 1,
                "instructions": counted.total,
                "steps": [vars(step) for step in counted.steps],
            }
        )
        return
    click.echo(
        f"{bundle}: an inference executes {counted.total:,} instructions of "
        f"{board.removeprefix('qemu-')} on one thread"
    )
    click.echo("counted under QEMU, whose times say nothing of the real board")
    if profile:
        print_table(
            ["kernel", "instructions", "share", "FLOP each", "operators"],
            [
                [
                    step.template,
                    f"{step.instructions:,}",
                    f"{step.instructions / max(counted.total, 1):.1%}",
                    f"{step.flops / max(step.instructions, 1):.2f}",
                    step.label,
                ]
                for step in sorted(counted.steps, key=lambda step: -step.instructions)
            ],
        )


def _print_tokens(report: "TokenReport", *, as_json: bool) -> None:
    shares = [report.bandwidth_share(speed) for speed in report.speeds]
    ratios = [report.ratios.get((speed.runtime, speed.test)) for speed in report.speeds]
    rows = zip(report.speeds, ratios, shares, strict=True)
    if as_json:
        print_json(
            {
                "threads": report.threads,
                "read_bandwidth": report.read_bandwidth,
                "tests": [
                    {
                        "test": str(speed.test),
                        "runtime": speed.runtime,
                        "tokens_per_second": speed.median,
                        "ratio": ratio,
                        "touched_bytes": speed.touched_bytes,
                        "bandwidth_share": share,
                    }
                    for speed, ratio, share in rows
                ],
                "cannot": report.cannot,
            }
        )
        return
    head = ["test", "runtime", "tokens/s", "ratio", "MB each", "of read bandwidth"]
    print_table(
        head,
        [
            [
                str(speed.test),
                speed.runtime,
                figure(speed.median),
                "" if ratio is None else f"{ratio:.2f}",
                "" if speed.touched_bytes is None else f"{speed.touched_bytes / 1e6:.0f}",
                "" if share is None else f"{share:.0%}",
            ]
            for speed, ratio, share in rows
        ],
    )
    for name, why in report.cannot.items():
        click.echo(f"{name} cannot: {why}")
    threads = f"{report.threads} thread{'s' * (report.threads != 1)}"
    click.echo(f"{threads}, which read {report.read_bandwidth / 1e9:.1f} GB/s here")


def _print_bench(report: "BenchReport", *, profile: bool, as_json: bool) -> None:
    if as_json:
        latencies = {item.name: item.summary() for item in (*report.bundles, *report.rivals)}
        print_json(
            {
                "threads": report.threads,
                "busy": report.busy,
                "latency": latencies,
                "cannot": report.cannot,
                "ratios": report.ratios,
                "load_ms": report.load_ms,
                "memory_mib": report.memory_mib,
                "steps": [dataclasses.asdict(step) for step in report.steps],
            }
        )
        return
    rows = [*report.bundles, *report.rivals]
    columns = list(rows[0].summary())
    title = f"{report.threads} thread{'s' * (report.threads != 1)}"
    if report.busy:
        title += f", {report.busy} busy process{'es' * (report.busy != 1)}"
    print_table(
        [
            title,
            *columns,
            "ratio",
            "load",
            "memory",
        ],
        [
            [
                item.name,
                *(figure(value) for value in item.summary().values()),
                f"{report.ratios[item.name]:.2f}" if item.name in report.ratios else "",
                f"{report.load_ms[item.name]:.0f} ms" if item.name in report.load_ms else "",
                f"{report.memory_mib[item.name]:.0f} MiB" if item.name in report.memory_mib else "",
            ]
            for item in rows
        ],
    )
    for name, why in report.cannot.items():
        click.echo(f"{name} cannot: {why}")
    if profile:
        print_profile(report.steps)
