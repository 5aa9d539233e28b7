"""Provide `edgec inspect`: what is in a model or a bundle."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.compiler.cli.options import as_path, json_option, model_options, shape_options
from edgec.compiler.cli.printing import exit_lines, plain, print_json, print_table, size_text
from edgec.compiler.errors import UsageError

if TYPE_CHECKING:
    from edgec.compiler.bundle.bundle import Bundle
    from edgec.compiler.bundle.manifest import ExecutionRecord, Manifest
    from edgec.compiler.inspection import ModelReport

# Kernels that a prediction lists, those that take longest.
SHOWN = 10


@click.command()
@click.argument("path", type=as_path)
@shape_options
@click.option("--nodes", is_flag=True, help="Say of every node whether it is supported.")
@click.option(
    "--target", "-t", metavar="NAME", help="Predict what the model costs there; name or *.toml."
)
@click.option("--threads", type=int, help="Of the prediction; 0: all cores.  [default: 1]")
@click.option("--db", type=as_path, metavar="FILE", help="Tuning records of the target.")
@click.option("--build", is_flag=True, help="Compile the library, whose size is exact then.")
@click.option("--report", type=as_path, metavar="FILE.html|.json", help="With a roofline plot.")
@json_option
def inspect(
    path: Path,
    *,
    shapes: Sequence[str],
    freeze: Sequence[str],
    limits: Sequence[str],
    context: int | None,
    nodes: bool,
    target: str | None,
    threads: int | None,
    db: Path | None,
    build: bool,
    report: Path | None,
    as_json: bool,
) -> None:
    """Describe an ONNX model or a bundle at PATH, and what keeps it from compiling.

    With a target, predict time, memory, size and energy of a model there.
    """
    from edgec.compiler.inspection import ModelReport, inspect_path, is_bundle
    from edgec.compiler.options import CompileOptions

    needs_target = {"--threads": threads, "--db": db, "--build": build, "--report": report}
    if target is not None:
        if nodes:
            raise UsageError("--nodes and --target contradict each other")
        if is_bundle(path):
            raise UsageError(f"{path} is a bundle: edgec bench measures it, edgec compare predicts")
        _predict(
            path,
            target,
            model_options(shapes, freeze, limits, context) | {"records": db},
            1 if threads is None else threads,
            build,
            report,
            as_json,
        )
        return
    for name, value in needs_target.items():
        if value:
            raise UsageError(f"{name} belongs to --target, which is not given")
    found = inspect_path(path, CompileOptions(**model_options(shapes, freeze, limits, context)))
    if isinstance(found, ModelReport):
        _print_model(found, nodes, as_json)
    elif as_json:
        print_json(found.manifest.model_dump(mode="json"))
    else:
        _print_bundle(found)


def _predict(
    path: Path,
    target: str,
    options: dict[str, Any],
    threads: int,
    build: bool,
    report: Path | None,
    as_json: bool,
) -> None:
    from edgec.compiler.options import CompileOptions
    from edgec.compiler.predict.model import predict_model
    from edgec.compiler.predict.prediction_report import (
        fact_texts,
        prediction_fields,
        write_prediction_report,
    )
    from edgec.compiler.support.files import check_output_file
    from edgec.compiler.support.html_report import check_report_name
    from edgec.targets import load_target

    check_report_name(report, "--report")
    if report is not None:
        check_output_file(report)
    loaded = load_target(target)
    found = predict_model(
        path, loaded, CompileOptions(**options), threads=threads, compile_library=build
    )
    if report is not None:
        write_prediction_report(report, found, path.name, loaded)
    if as_json:
        print_json(prediction_fields(found))
        return
    click.echo(f"{path} on {loaded.name}, {loaded.description}")
    print_table(["", ""], [[name, text] for name, text in fact_texts(found).items()])
    for text in found.warnings:
        click.echo(f"note: {text}")
    slowest = sorted(found.operators, key=lambda item: -item.time.value)[:SHOWN]
    print_table(
        ["kernel", "ms", "from", "to", "known from", "operators"],
        [
            [
                item.operator,
                *(f"{value:.4f}" for value in (item.time.value, item.time.low, item.time.high)),
                item.source,
                item.name,
            ]
            for item in slowest
        ],
    )


def _print_bundle(bundle: "Bundle") -> None:
    manifest = bundle.manifest
    total = sum(record.size_bytes for record in manifest.files.values())
    click.echo(
        f"{bundle.path}: {manifest.model.name} for {manifest.target.name}, {size_text(total)}"
    )
    settings = manifest.settings
    share = manifest.execution.tuned_share
    print_table(
        ["", ""],
        [
            ["source", f"SHA-256 {manifest.model.sha256}, opset {manifest.model.opset}"],
            *_program_rows(manifest),
            *[
                [
                    "state",
                    f"{r.spec}, next value {r.output}, {r.size_bytes} bytes",
                ]
                for r in manifest.states
            ],
            *[["shape given", f"{name} {plain(list(s))}"] for name, s in settings.shapes.items()],
            *[
                ["frozen input", f"{name} {value.dtype} = {_shortened(str(value.values))}"]
                for name, value in settings.frozen.items()
            ],
            ["executor", _execution(manifest.execution)],
            ["tuned", f"kernels of {share:.0%} of the estimated time"],
            *_compression_rows(manifest),
            *_quantization_rows(manifest),
            *[["exits", line] for line in (exit_lines(manifest.exits) if manifest.exits else ())],
            ["parity", f"checked on {manifest.parity.checked_on}"],
            *[
                [
                    "accuracy",
                    f"{name}: largest error {error:.2g}, "
                    f"{manifest.parity.allowed_share[name]:.1%} of what is allowed",
                ]
                for name, error in manifest.parity.max_error.items()
            ],
            *[["file", f"{name}  {r.size_bytes} bytes"] for name, r in manifest.files.items()],
            *[["tool", f"{name} {version}"] for name, version in manifest.tools.items()],
        ],
    )


def _program_rows(manifest: "Manifest") -> list[list[str]]:
    rows: list[list[str]] = []
    for program in manifest.programs:
        if program.name:
            rows.append(["program", program.name])
        rows += [["input", str(record.spec())] for record in program.inputs]
        rows += [["output", str(record.spec())] for record in program.outputs]
    return rows


def _compression_rows(manifest: "Manifest") -> list[list[str]]:
    from edgec.compiler.calibration.accuracy import score_text

    record = manifest.compression
    if record is None:
        return [["compressed", "no"]]
    rows = [["compressed", str(record.recipe["name"])]]
    for step in record.steps:
        text = f"{step.kind}: {step.macs / record.macs_before:.1%} of the multiplications"
        text += f", {step.nonzeros / record.weights_before:.1%} of the weights"
        score = step.score is not None and score_text(step.score, record.positions, record.metric)
        if score:
            text += f"; {score} over {record.samples} batches"
        rows.append(["", text])
    rows += [
        ["", f"{name}: {r:.1f} dB against the original model, on the test input"]
        for name, r in record.sqnr_db.items()
    ]
    return rows


def _quantization_rows(manifest: "Manifest") -> list[list[str]]:
    from edgec.compiler.calibration.accuracy import score_text

    record = manifest.quantization
    if record is None:
        return [["quantized", "no"]]
    rows = [["quantized", f"{record.recipe['name']}: {record.quantized} operators"]]
    rows += [["", text] for text in (record.quantized_types,) if text]
    if record.calibration:
        rows.append(["", f"calibrated with {record.calibration}, observer {record.observer}"])
    rows += [
        ["", f"{name}: {ratio:.1f} dB against the original model, on the test input"]
        for name, ratio in record.sqnr_db.items()
    ]
    over = f"over {record.samples} batches of samples"
    rows += [
        ["", f"{name}: {ratio:.1f} dB against the model before quantization, {over}"]
        for name, ratio in record.samples_sqnr_db.items()
    ]
    score = record.score is not None and score_text(record.score, record.positions, record.metric)
    if score:
        rows.append(["", f"{score}, {over}"])
    if record.kept_float:
        rows.append(["", f"returned to float: {', '.join(record.kept_float)}"])
    rows += [
        ["", f"computed on floats: {name}, {why}"] for name, why in record.float_fallbacks.items()
    ]
    return rows


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


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
            ["parameters", f"{cost.parameters:,} ({size_text(cost.parameter_bytes)})"],
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
