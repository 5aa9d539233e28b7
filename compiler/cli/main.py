"""The command line: arguments to options, one API call, its result printed.

Results go to stdout, progress to stderr. This is the only code that prints or exits; whatever
imports TVM is imported by the command that needs it, so that help is immediate.
"""

import dataclasses
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.compiler.cli.board import bench_on_board, board, deploy, model_on
from edgec.compiler.cli.printing import plain, print_json, print_parity, print_profile, print_table
from edgec.compiler.cli.tune import db, tune_model
from edgec.compiler.errors import EdgecError, InterruptedRunError, UsageError
from edgec.compiler.numerics.observers import OBSERVERS
from edgec.compiler.quantize.options import ROUNDINGS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgec.compiler.bench.compare import BenchReport
    from edgec.compiler.bundle.bundle import CompressionRecord, ExecutionRecord, QuantizationRecord
    from edgec.compiler.inspection import ModelReport
    from edgec.compiler.support.progress import Progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code.

    0 ok, 1 a check failed, 2 usage, 3 model not supported, 4 bad input, 5 missing dependency,
    6 board, 7 stopped by a signal.
    """
    signals: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        return _run_command(arguments)
    except BaseException:
        # A KeyboardInterrupt that crosses TVM's C++ comes back as some other error.
        if signals:
            return _fail(InterruptedRunError("interrupted; nothing was written"))
        raise


def _run_command(arguments: Sequence[str] | None) -> int:
    try:
        # The code of a command that left by `context.exit`, None of others.
        return edgec.main(args=arguments, prog_name="edgec", standalone_mode=False) or 0
    except click.exceptions.Abort:
        raise KeyboardInterrupt from None
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except EdgecError as error:
        return _fail(error)
    except BrokenPipeError:
        # The reader of our output went away.
        sys.stderr.close()
        return 0


def _fail(error: EdgecError) -> int:
    click.echo(f"edgec: error: {error}", err=True)
    return error.exit_code


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="edgec", message="%(prog)s %(version)s")
def edgec() -> None:
    """Compile ONNX models into verified bundles for named targets."""


edgec.add_command(board)
edgec.add_command(deploy)
edgec.add_command(db)


def _path(text: str) -> Path:
    return Path(text)


def _shape_options(command: Callable[..., Any]) -> Callable[..., Any]:
    shape = click.option(
        "--shape",
        "shapes",
        multiple=True,
        metavar="NAME=1,3,224,224",
        help="Full shape of an input that the model leaves open.",
    )
    freeze = click.option(
        "--freeze",
        multiple=True,
        metavar="NAME=VALUE",
        help="Make an input a constant; it leaves the interface.",
    )
    limit = click.option(
        "--limit",
        "limits",
        multiple=True,
        metavar="value=1G|file=4G|nodes=500000",
        help="Let a model ask for larger values, more data or more nodes.  "
        "[default: value=256M, file=2G, nodes=200000]",
    )
    return shape(freeze(limit(command)))


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _model_options(
    shapes: Sequence[str], freeze: Sequence[str], limits: Sequence[str]
) -> dict[str, Any]:
    from edgec.compiler.options import parse_limits, parse_shape, parse_value

    return {
        "shapes": _unique("--shape", [parse_shape(text) for text in shapes]),
        "freeze": _unique("--freeze", [parse_value(text) for text in freeze]),
        "limits": parse_limits(limits),
    }


def _unique(option: str, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise UsageError(f"{option} is given twice for the same input")
    return values


def _read_inputs(inputs: Sequence[str]) -> dict[str, Any] | None:
    """Input tensors from `NAME=file.npy` or `file.npz`; None if there are none."""
    from edgec.compiler.runtime.inputs import read_tensors

    return read_tensors(inputs) if inputs else None


_board_option = click.option("--board", metavar="NAME", help="Do it there instead of here.")

_inputs_option = click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=FILE.npy|FILE.npz",
    help="Input tensors; generated ones otherwise.",
)


def _progress(quiet: bool, verbose: bool) -> "Progress":
    from edgec.compiler.support.progress import Silent, Steps

    return Silent() if quiet else Steps(verbose)


def _change_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option(
            "--compress",
            metavar="RECIPE",
            help="channels-50, sparse-80, low-rank-50, distill, … joined by commas; or *.toml.",
        ),
        click.option(
            "--compress-report",
            type=_path,
            metavar="FILE.html|.json",
            help="What each step gained and cost.",
        ),
        click.option(
            "--checkpoint", type=_path, metavar="FILE.npz", help="Keep the training of distill."
        ),
        click.option(
            "--quantize",
            metavar="RECIPE",
            help="int8, int8-dynamic, int8-weight-only, int4-weight-only, fp16, bf16, log2, "
            "codebook-16, codebook-256, *.toml",
        ),
        click.option(
            "--calibration", metavar="DATA", help=".npy, .npz, a folder, or module:function."
        ),
        click.option(
            "--preprocess",
            metavar="KEY=VALUE,…",
            help="Of images: resize=stretch|crop|pad, mean=, std=, scale=, color=, layout=.",
        ),
        click.option(
            "--observer", type=click.Choice(OBSERVERS), help="Finds ranges.  [default: mse]"
        ),
        click.option("--calibration-limit", type=int, metavar="N", help="Batches, at most 300."),
        click.option(
            "--calibration-cache", type=_path, metavar="FILE.json", help="Keep the ranges there."
        ),
        click.option("--no-repair", is_flag=True, help="Round to the nearest, biases as they are."),
        click.option(
            "--rounding", type=click.Choice(ROUNDINGS), help="Of weights.  [default: second-order]"
        ),
        click.option("--max-drop", type=float, metavar="SHARE", help="0.01: one point of top-1."),
        click.option("--min-sqnr", type=float, metavar="DB", help="Of the worst output."),
        click.option("--metric", metavar="MODULE:FUNCTION", help="Instead of top-1 agreement."),
        click.option(
            "--report", type=_path, metavar="FILE.html|.json", help="What each operator costs."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


_SAMPLE_FIELDS = {
    "calibration": "source",
    "preprocess": "preprocess",
    "calibration_limit": "limit",
    "metric": "metric",
}
_COMPRESS_FIELDS = {"compress_report": "report", "checkpoint": "checkpoint"}
_QUANTIZE_FIELDS = {
    "observer": "observer",
    "calibration_cache": "cache",
    "no_repair": "repair",
    "rounding": "rounding",
    "max_drop": "max_drop",
    "min_sqnr": "min_sqnr_db",
    "report": "report",
}


def _fields(settings: Mapping[str, Any], names: Mapping[str, str], owner: str) -> dict[str, Any]:
    """What is given of some options, under the names of their fields.

    Args:
        settings: all options.
        names: of the fields, by option.
        owner: option that they need; empty if it is given.
    """
    given = {name: settings[name] for name in names if settings[name] not in (None, False)}
    if given and owner:
        name = next(iter(given)).replace("_", "-")
        raise UsageError(f"--{name} belongs to {owner}, which is not given")
    return {names[name]: value for name, value in given.items()}


def _changes(
    compress: str | None, quantize: str | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of a compile that changes the model's numbers."""
    from edgec.compiler.calibration.samples import SampleOptions, parse_preprocess
    from edgec.compiler.compress.options import CompressOptions
    from edgec.compiler.compress.recipe import load_compression
    from edgec.compiler.quantize.options import QuantizeOptions
    from edgec.compiler.quantize.recipe import load_recipe

    to_compress = "" if compress else "--compress RECIPE"
    to_quantize = "" if quantize else "--quantize RECIPE"
    neither = to_compress and to_quantize and f"{to_quantize} or {to_compress}"
    samples = _fields(settings, _SAMPLE_FIELDS, neither)
    compression = _fields(settings, _COMPRESS_FIELDS, to_compress)
    quantization = _fields(settings, _QUANTIZE_FIELDS, to_quantize)
    if "preprocess" in samples:
        samples["preprocess"] = parse_preprocess(samples["preprocess"])
    if "repair" in quantization:
        if "rounding" in quantization:
            raise UsageError("--rounding and --no-repair contradict each other")
        quantization["repair"] = False
    options: dict[str, Any] = {"samples": SampleOptions(**samples)}
    if compress:
        options["compress"] = CompressOptions(recipe=load_compression(compress), **compression)
    if quantize:
        options["quantize"] = QuantizeOptions(recipe=load_recipe(quantize), **quantization)
    return options


def _print_compression(record: "CompressionRecord") -> None:
    macs, weights = record.macs_before, record.weights_before
    for step in record.steps:
        line = f"  {step.kind}: {step.macs / macs:.1%} of the multiplications, "
        line += f"{step.weights / weights:.1%} of the weights"
        if step.nonzeros < step.weights:
            line += f" ({step.nonzeros / weights:.1%} nonzero)"
        if step.score is not None:
            line += f", metric {step.score:.4f} over {record.samples} batches"
        click.echo(line)


def _print_quantization(record: "QuantizationRecord") -> None:
    name = record.recipe["name"]
    click.echo(f"  {name}: {record.quantized} operators quantized; {record.codes}".rstrip("; "))
    for output, ratio in record.sqnr_db.items():
        click.echo(f"  {output}: {ratio:.1f} dB against the float model")
    if record.score is not None:
        worst = min(record.samples_sqnr_db.values(), default=0.0)
        click.echo(
            f"  over {record.samples} batches: metric {record.score:.4f}, worst output "
            f"{worst:.1f} dB"
        )
    if record.kept_float:
        click.echo(f"  returned to float: {', '.join(record.kept_float)}")
    if record.islands:
        click.echo("  computed on floats:")
        rows = [(f"    {name}", why) for name, why in record.islands.items()]
        print_table(("", ""), rows)


@edgec.command()
@click.argument("model", type=_path)
@click.option("--target", "-t", default="native", show_default=True, help="Name or *.toml.")
@click.option(
    "--output", "-o", type=_path, metavar="PATH", help="Bundle folder, or a file ending in .tar."
)
@_shape_options
@_inputs_option
@_change_options
@click.option("--seed", default=0, show_default=True, help="Of the generated test inputs.")
@click.option("--no-parity", is_flag=True, help="Do not compare with the original graph.")
@click.option("--check-stages", is_flag=True, help="Compare after every stage, too.")
@click.option("--runner", is_flag=True, help="Add a program that runs it without Python.")
@click.option("--records", type=_path, metavar="DB", help="Use the decisions that were tuned.")
@click.option("--no-ready-records", is_flag=True, help="Not those that come with edgec.")
@click.option(
    "--records-threads", type=int, metavar="N", help="Those tuned for so many; else for the most."
)
@click.option("--dump", type=_path, metavar="DIR", help="Write the IR after each phase.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@click.option("--verbose", "-v", is_flag=True, help="Say what runs without a kernel template.")
@_json_option
def compile(
    model: Path,
    target: str,
    output: Path | None,
    shapes: Sequence[str],
    freeze: Sequence[str],
    limits: Sequence[str],
    inputs: Sequence[str],
    compress: str | None,
    quantize: str | None,
    seed: int,
    no_parity: bool,
    check_stages: bool,
    runner: bool,
    records: Path | None,
    no_ready_records: bool,
    records_threads: int | None,
    dump: Path | None,
    quiet: bool,
    verbose: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Compile an ONNX MODEL for a target into a bundle."""
    from edgec.compiler.options import CompileOptions
    from edgec.targets import load_target

    if no_parity and check_stages:
        raise UsageError("--check-stages and --no-parity contradict each other")
    options = CompileOptions(
        **_model_options(shapes, freeze, limits),
        inputs=_read_inputs(inputs),
        seed=seed,
        **_changes(compress, quantize, settings),
        parity=not no_parity,
        check_stages=check_stages,
        runner=runner,
        records=records,
        ready_records=not no_ready_records,
        records_threads=records_threads,
        dump=dump,
    )
    resolved = load_target(target)
    from edgec.compiler.pipeline import compile_model

    bundle = compile_model(
        model, resolved, options, output=output, progress=_progress(quiet, verbose)
    )
    manifest = bundle.manifest
    size = sum(record.size_bytes for record in manifest.files.values())
    if as_json:
        fields = {"bundle": str(bundle.path), "size_bytes": size}
        fields["parity"] = manifest.parity.model_dump()
        if manifest.quantization is not None:
            fields["quantization"] = manifest.quantization.model_dump()
        print_json(fields)
        return
    click.echo(f"{bundle.path}: {manifest.model.name} for {resolved.name}, {size / 1e6:.1f} MB")
    share = manifest.execution.tuned_share
    if records is not None or share:
        click.echo(f"  tuned: kernels of {share:.0%} of the estimated time")
    for name, error in manifest.parity.max_error.items():
        share = manifest.parity.allowed_share[name]
        click.echo(f"  {name}: largest error {error:.2g}, {share:.1%} of what is allowed")
    if manifest.compression is not None:
        _print_compression(manifest.compression)
    if manifest.quantization is not None:
        _print_quantization(manifest.quantization)
    notes = {
        "nothing": "  parity was not checked",
        "host": "  parity was checked on a build for this machine; verify on the board",
    }
    if manifest.parity.checked_on in notes:
        click.echo(notes[manifest.parity.checked_on])


@edgec.command()
@click.argument("model", type=_path)
@click.option("--target", "-t", default="native", show_default=True, help="Name or *.toml.")
@click.option("--db", "database", type=_path, metavar="FILE", help="Records: read, and added to.")
@click.option("--time", metavar="8h", help="How long to search.")
@click.option("--trials", type=int, metavar="N", help="Decisions to measure in all.")
@click.option("--threads", default=1, show_default=True, help="To tune for; 0: all cores.")
@click.option("--board", "boards", multiple=True, metavar="NAME", help="Measure there.")
@click.option("--tasks", default="", metavar="0,2-5,…", help="Only these: numbers or operators.")
@click.option(
    "--strategy",
    type=click.Choice(["evolutionary", "random", "exhaustive"]),
    default="evolutionary",
    show_default=True,
)
@_shape_options
@click.option("--seed", default=0, show_default=True, help="Of everything random.")
@click.option("--dry-run", is_flag=True, help="List the tasks, do nothing.")
@click.option("--report", type=_path, metavar="FILE.html", help="Write a report.")
@click.option("--log", type=_path, metavar="FILE", help="Write down every event.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print every event as a line of JSON.")
def tune(
    model: Path,
    target: str,
    shapes: Sequence[str],
    freeze: Sequence[str],
    limits: Sequence[str],
    **rest: Any,
) -> None:
    """Search for the fastest kernels of a MODEL on a target.

    Everything measured goes to the database at once; the same command goes on after a stop.
    """
    tune_model(model, target, _model_options(shapes, freeze, limits), **rest)


@edgec.command()
@click.argument("bundle", type=_path)
@_inputs_option
@click.option("--seed", default=0, show_default=True, help="Of the generated inputs.")
@click.option("--threads", default=0, show_default=True, help="0: all cores.")
@click.option("--output", "-o", type=_path, metavar="FILE.npz", help="Save the outputs.")
@_board_option
@_json_option
def run(
    bundle: Path,
    inputs: Sequence[str],
    seed: int,
    threads: int,
    output: Path | None,
    board: str | None,
    as_json: bool,
) -> None:
    """Run a BUNDLE here or on a board, on given or generated inputs."""
    from edgec.compiler.bundle.bundle import Bundle
    from edgec.compiler.runtime.inputs import generate_inputs, write_tensors

    loaded = Bundle.load(bundle)
    tensors = _read_inputs(inputs)
    if tensors is None:
        manifest = loaded.manifest
        bounds = manifest.settings.index_bounds
        tensors = generate_inputs(manifest.signature.inputs, seed, bounds)
    with model_on(loaded, board, threads) as model:
        results = model.run(tensors)
    if output is not None:
        write_tensors(output, results)
    if as_json:
        summary = [{"name": name, **_describe(array)} for name, array in results.items()]
        print_json({"bundle": str(bundle), "outputs": summary})
        return
    print_table(
        ["output", "shape", "dtype", "min", "max", "mean"],
        [[name, *map(plain, _describe(array).values())] for name, array in results.items()],
    )


@edgec.command()
@click.argument("bundle", type=_path)
@click.option(
    "--model",
    type=_path,
    metavar="FILE.onnx",
    help="The original: compare on fresh inputs too.",
)
@click.option("--seed", "seeds", multiple=True, type=int, default=(1,), show_default=True)
@_board_option
@_json_option
def verify(
    bundle: Path, model: Path | None, seeds: tuple[int, ...], board: str | None, as_json: bool
) -> None:
    """Check a BUNDLE's files, then its results against the original graph."""
    from edgec.compiler.bundle.bundle import Bundle
    from edgec.compiler.parity.verify_bundle import verify_bundle

    loaded = Bundle.load(bundle)
    with model_on(loaded, board) as session:
        report = verify_bundle(loaded, model=model, seeds=seeds, run=session.run)
    if as_json:
        outputs = [dataclasses.asdict(output) for output in report.outputs]
        print_json({"bundle": str(bundle), "passed": report.passed, "outputs": outputs})
    else:
        files = len(loaded.manifest.files) + 1
        click.echo(f"{bundle}: {files} files are what the manifest says")
        print_parity(report)
    report.check(f"for {bundle}")


@edgec.command()
@click.argument("bundles", nargs=-1, required=True, type=_path)
@click.option("--threads", default=1, show_default=True, help="For every runtime; 0: all cores.")
@click.option("--seconds", default=3.0, show_default=True, help="Measuring time of each.")
@click.option("--against", default="", metavar="NAME,…", help="onnxruntime,openvino,mnn,ncnn")
@click.option("--model", type=_path, metavar="FILE.onnx", help="The ONNX file, for the others.")
@_inputs_option
@click.option("--profile", is_flag=True, help="Show the time of every kernel.")
@_board_option
@_json_option
def bench(
    bundles: tuple[Path, ...],
    threads: int,
    seconds: float,
    against: str,
    model: Path | None,
    inputs: Sequence[str],
    profile: bool,
    board: str | None,
    as_json: bool,
) -> None:
    """Time BUNDLES here, in turn with other runtimes on the same model.

    Or time one on a board; on a QEMU board, count the instructions of an inference.
    """
    if board is not None:
        if against or model is not None:
            raise UsageError("--against and --model compare on this machine, not on a board")
        bench_on_board(
            bundles,
            board,
            _read_inputs(inputs),
            threads=threads,
            seconds=seconds,
            profile=profile,
            as_json=as_json,
        )
        return
    from edgec.compiler.bench.compare import bench_bundles
    from edgec.compiler.bundle.bundle import Bundle

    report = bench_bundles(
        [Bundle.load(path) for path in bundles],
        threads=threads,
        seconds=seconds,
        against=[name for name in against.split(",") if name],
        model=model,
        inputs=_read_inputs(inputs),
    )
    if as_json:
        latencies = {item.name: item.summary() for item in (*report.bundles, *report.rivals)}
        print_json(
            {
                "threads": report.threads,
                "latency": latencies,
                "ratios": report.ratios,
                "load_ms": report.load_ms,
                "memory_mib": report.memory_mib,
                "steps": [dataclasses.asdict(step) for step in report.steps],
            }
        )
    else:
        _print_bench(report, profile)


def _print_bench(report: "BenchReport", profile: bool) -> None:
    latencies = [*report.bundles, *report.rivals]
    columns = list(latencies[0].summary())
    print_table(
        [
            f"{report.threads} thread{'s' * (report.threads != 1)}",
            *columns,
            "ratio",
            "load",
            "memory",
        ],
        [
            [
                item.name,
                *(f"{value:.3g}" for value in item.summary().values()),
                f"{report.ratios[item.name]:.2f}" if item.name in report.ratios else "",
                f"{report.load_ms[item.name]:.0f} ms" if item.name in report.load_ms else "",
                f"{report.memory_mib[item.name]:.0f} MiB" if item.name in report.memory_mib else "",
            ]
            for item in latencies
        ],
    )
    if profile:
        print_profile(report.steps)


@edgec.command()
@click.argument("path", type=_path)
@_shape_options
@click.option("--nodes", is_flag=True, help="Say of every node whether it is supported.")
@_json_option
def inspect(
    path: Path,
    shapes: Sequence[str],
    freeze: Sequence[str],
    limits: Sequence[str],
    nodes: bool,
    as_json: bool,
) -> None:
    """Describe an ONNX model or a bundle at PATH, and what keeps it from compiling."""
    from edgec.compiler.inspection import ModelReport, inspect_path
    from edgec.compiler.options import CompileOptions

    found = inspect_path(path, CompileOptions(**_model_options(shapes, freeze, limits)))
    if isinstance(found, ModelReport):
        _print_model(found, nodes, as_json)
    elif as_json:
        print_json(found.manifest.model_dump(mode="json"))
    else:
        manifest = found.manifest
        click.echo(f"{path}: {manifest.model.name} for {manifest.target.name}")
        print_table(
            ["", ""],
            [
                ["source", f"SHA-256 {manifest.model.sha256}, opset {manifest.model.opset}"],
                *[["input", str(record.spec())] for record in manifest.inputs],
                *[["output", str(record.spec())] for record in manifest.outputs],
                ["executor", _execution(manifest.execution)],
                ["parity", f"checked on {manifest.parity.checked_on}"],
                *[["file", f"{name}  {r.size_bytes} bytes"] for name, r in manifest.files.items()],
                *[["tool", f"{name} {version}"] for name, version in manifest.tools.items()],
            ],
        )


@edgec.command()
@click.argument("name", required=False)
@_json_option
def targets(name: str | None, as_json: bool) -> None:
    """List the named targets, or show one (by NAME or *.toml) with its features."""
    from edgec.targets import load_target, target_names

    if name is not None:
        target = load_target(name)
        fields = target.model_dump(mode="json")
        if as_json:
            print_json(fields)
        else:
            print_table(["", ""], [[key, plain(value)] for key, value in fields.items()])
        return
    known = [load_target(known) for known in target_names()]
    if as_json:
        print_json([target.model_dump(mode="json") for target in known])
        return
    print_table(
        ["target", "cpu", "vector", "int8", "cores", "description"],
        [
            [t.name, t.cpu, f"{t.vector_bits} bit", t.integer_dot, str(t.cores), t.description]
            for t in known
        ],
    )


@edgec.command()
@click.argument("name", required=False)
@click.option("--output", "-o", type=_path, metavar="FILE.onnx", help="Default: NAME.onnx.")
@_json_option
def models(name: str | None, output: Path | None, as_json: bool) -> None:
    """List the model recipes, or fetch the one called NAME into an ONNX file."""
    from edgec.models import load_recipe, recipes

    if name is None:
        rows = recipes()
        if as_json:
            print_json([recipe.describe() for recipe in rows])
        else:
            print_table(
                ["model", "compile with", "licence", "description"],
                [[r.name, r.arguments(), r.licence, r.description] for r in rows],
            )
        return
    recipe = load_recipe(name)
    path = recipe.write(output or Path(f"{recipe.name}.onnx"))
    if as_json:
        print_json({**recipe.describe(), "path": str(path)})
    else:
        click.echo(f"{path}: {recipe.description}; licence {recipe.licence}")
        click.echo(f"compile it with: edgec compile {path} {recipe.arguments()}".rstrip())


def _print_model(report: "ModelReport", nodes: bool, as_json: bool) -> None:
    if as_json:
        fields = dataclasses.asdict(report)
        print_json({**fields, "path": str(report.path)})
        return
    cost = report.cost
    operators = ", ".join(f"{count} {name}" for name, count in cost.operators.items())
    macs = f"{cost.macs / 1e6:.1f} M" if cost.macs is not None else "unknown"
    click.echo(f"{report.path}: opset {report.opset}, SHA-256 {report.sha256}")
    print_table(
        ["", ""],
        [
            *[["input", text] for text in report.inputs],
            *[["output", text] for text in report.outputs],
            ["parameters", f"{cost.parameters:,} ({cost.parameter_bytes / 1e6:.2f} MB)"],
            ["MACs", macs + (f" ({report.open_shapes})" if report.open_shapes else "")],
            ["operators", operators],
        ],
    )
    if nodes:
        rows = [[node.name, node.operator, node.reason or "supported"] for node in report.nodes]
        print_table(["node", "operator", "support"], rows)
    if not report.unsupported:
        click.echo("every operator is supported")
    for item in report.unsupported:
        labels = ", ".join(item.nodes[:5]) + (" …" if len(item.nodes) > 5 else "")
        click.echo(f"unsupported: {item.operator}: {item.reason} ({labels})")
    for name in report.freeze:
        click.echo(f"to be fixed: --freeze {name}=…")


def _execution(record: "ExecutionRecord") -> str:
    if record.executor == "machine":
        return "TVM's virtual machine, because shapes depend on data"
    return f"static, {record.arena_bytes / 1e6:.2f} MB for activations at their peak"


def _describe(array: "NDArray[Any]") -> dict[str, Any]:
    """Shape, dtype and the range of values."""
    values = array.astype("float64")
    statistics = (values.min(), values.max(), values.mean()) if array.size else (None,) * 3
    numbers = dict(zip(("min", "max", "mean"), statistics, strict=True))
    return {"shape": list(array.shape), "dtype": str(array.dtype), **numbers}
