"""Provide `edgec compile`: an ONNX file into a verified bundle."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.compiler.cli.options import (
    as_path,
    change_options,
    change_report_options,
    changes,
    inputs_option,
    json_option,
    model_options,
    progress_of,
    quiet_option,
    read_inputs,
    shape_options,
    target_option,
)
from edgec.compiler.cli.plans import compile_plan
from edgec.compiler.cli.printing import (
    exit_lines,
    print_json,
    print_table,
    print_variants,
    size_text,
    warn,
)
from edgec.compiler.errors import UsageError

if TYPE_CHECKING:
    from edgec.compiler.bundle.bundle import Bundle
    from edgec.compiler.bundle.manifest import CompressionRecord, QuantizationRecord
    from edgec.compiler.language.language_model import CacheDtype


@click.command(name="compile")
@click.argument("model", type=as_path)
@target_option
@click.option(
    "--output", "-o", type=as_path, metavar="PATH", help="Bundle folder, or a file ending in .tar."
)
@shape_options
@click.option(
    "--state",
    "states",
    multiple=True,
    metavar="INPUT=OUTPUT",
    help="An output that is the next value of an input: kept in the session.  "
    "[default: those of names that exporters give them]",
)
@click.option("--no-state", is_flag=True, help="Keep none: all inputs and outputs are passed.")
@click.option(
    "--cache",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    help="What a language model's cache is kept in.",
)
@click.option(
    "--lora",
    multiple=True,
    metavar="ADAPTER[:SCALE]",
    help="Merge into a language model: a folder of PEFT's or a GGUF adapter, like the model.",
)
@click.option(
    "--prefill-chunk",
    type=int,
    metavar="N",
    help="Tokens of a prompt that a language model takes at once.  [default: 64]",
)
@click.option(
    "--verify-chunk",
    type=int,
    default=4,
    show_default=True,
    help="Tokens that it checks at once where it guesses what follows; 0: never.",
)
@click.option(
    "--streams",
    type=int,
    default=1,
    show_default=True,
    help="Texts that a language model goes on with at once: 1, 2, 4, …",
)
@inputs_option
@change_options
@change_report_options
@click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="NAME=RECIPE",
    help="One of the models that a governor chooses among: fast=int8,channels-50, full=float; "
    "image=1x3x96x96 for a shape, accuracy=0.71 where you measured it.",
)
@click.option("--seed", default=0, show_default=True, help="Of the generated test inputs.")
@click.option("--no-parity", is_flag=True, help="Do not compare with the original graph.")
@click.option("--check-stages", is_flag=True, help="Compare after every stage, too.")
@click.option("--name", default="", help="Of the model in C programs; default: the file's.")
@click.option("--runner", is_flag=True, help="Add a program that runs it without Python.")
@click.option("--sign", multiple=True, metavar="KEY", help="Sign it; see edgec keys new.")
@click.option(
    "--encrypt-for",
    multiple=True,
    metavar="RECIPIENT",
    help="Only they can run it; may be repeated.",
)
@click.option("--records", type=as_path, metavar="DB", help="Use the decisions that were tuned.")
@click.option("--no-ready-records", is_flag=True, help="Not those that come with edgec.")
@click.option(
    "--records-threads", type=int, metavar="N", help="Those tuned for so many; else for the most."
)
@click.option("--dump", type=as_path, metavar="DIR", help="Write the IR after each phase.")
@click.option("--dump-weights", is_flag=True, help="There, with the values of weights.")
@click.option("--devices", metavar="a=rpi4,b=rpi5", help="Cut the model: a bundle for each.")
@click.option("--split", type=as_path, metavar="PLAN.toml", help="Where to cut, who computes what.")
@click.option("--network", type=as_path, metavar="TRACE.csv", help="Plans for links that change.")
@click.option(
    "--parallel",
    type=click.Choice(("channels", "rows", "auto")),
    help="Have devices compute parts of operators at the same time.",
)
@click.option(
    "--whole", metavar="TARGET", help="With --devices: the uncut model too, to fall back."
)
@click.option(
    "--cut-encoding",
    type=click.Choice(("none", "float16", "int8", "int4")),
    default="none",
    show_default=True,
    help="Of floats between devices.",
)
@click.option("--cut-min-sqnr", type=float, metavar="DB", help="Then, of outputs.  [default: 20]")
@quiet_option
@click.option("--verbose", "-v", is_flag=True, help="Say what runs without a kernel template.")
@json_option
def compile_command(
    model: Path,
    *,
    target: str,
    output: Path | None,
    shapes: Sequence[str],
    freeze: Sequence[str],
    limits: Sequence[str],
    context: int | None,
    cache: "CacheDtype",
    lora: tuple[str, ...],
    prefill_chunk: int | None,
    verify_chunk: int,
    streams: int,
    states: Sequence[str],
    no_state: bool,
    inputs: Sequence[str],
    compress: str | None,
    quantize: str | None,
    variants: tuple[str, ...],
    seed: int,
    no_parity: bool,
    check_stages: bool,
    name: str,
    runner: bool,
    sign: tuple[str, ...],
    encrypt_for: tuple[str, ...],
    records: Path | None,
    no_ready_records: bool,
    records_threads: int | None,
    dump: Path | None,
    dump_weights: bool,
    devices: str | None,
    split: Path | None,
    parallel: str | None,
    network: Path | None,
    whole: str | None,
    cut_encoding: str,
    cut_min_sqnr: float | None,
    quiet: bool,
    verbose: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Compile MODEL, an ONNX or GGUF file or a Hugging Face folder, for a target into a bundle."""
    from edgec.compiler.governor.variants import parse_variants
    from edgec.compiler.options import CompileOptions
    from edgec.targets import load_target

    if variants and (devices or split):
        raise UsageError("--variant and a cut model contradict each other")
    if states and no_state:
        raise UsageError("--state and --no-state contradict each other")
    options = CompileOptions(
        **model_options(shapes, freeze, limits, context),
        cache=cache,
        lora=lora,
        prefill_chunk=prefill_chunk,
        verify_chunk=verify_chunk,
        streams=streams,
        states=states if states or no_state else None,
        inputs=read_inputs(inputs),
        seed=seed,
        variants=parse_variants(variants),
        **changes(compress, quantize, settings, varied=bool(variants)),
        parity=not no_parity,
        check_stages=check_stages,
        name=name,
        runner=runner,
        sign=sign,
        encrypt_for=encrypt_for,
        records=records,
        ready_records=not no_ready_records,
        records_threads=records_threads,
        dump=dump,
        dump_weights=dump_weights,
    )
    resolved = load_target(target)
    if devices is not None:
        if resolved.name != load_target("native").name:
            raise UsageError("--target and --devices contradict each other: devices have targets")
        compile_plan(
            model,
            options,
            devices=devices,
            split=split,
            parallel=parallel,
            network=network,
            whole=whole,
            encoding=cut_encoding,
            min_sqnr_db=cut_min_sqnr,
            output=output,
            as_json=as_json,
            quiet=quiet,
            verbose=verbose,
        )
        return
    given = {"split": split, "network": network, "whole": whole, "cut-min-sqnr": cut_min_sqnr}
    given["parallel"] = parallel
    given["cut-encoding"] = None if cut_encoding == "none" else cut_encoding
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"--{option} belongs to --devices, which is not given")
    from edgec.compiler.pipeline import compile_model

    bundle = compile_model(
        model, resolved, options, output=output, progress=progress_of(quiet, verbose)
    )
    record = bundle.manifest.quantization
    if record is not None and not record.quantized:
        warn(f"{record.recipe['name']}: no operator was quantized; the bundle computes on floats")
    if as_json:
        _print_json(bundle)
    else:
        _print_bundle(bundle, show_records=records is not None)


def _print_json(bundle: "Bundle") -> None:
    manifest = bundle.manifest
    size = sum(record.size_bytes for record in manifest.files.values())
    fields = {"bundle": str(bundle.path), "size_bytes": size}
    fields["parity"] = manifest.parity.model_dump()
    if manifest.quantization is not None:
        fields["quantization"] = manifest.quantization.model_dump()
    if manifest.exits is not None:
        fields["exits"] = manifest.exits.model_dump()
    print_json(fields)


def _print_bundle(bundle: "Bundle", *, show_records: bool) -> None:
    manifest = bundle.manifest
    size = size_text(sum(record.size_bytes for record in manifest.files.values()))
    click.echo(f"{bundle.path}: {manifest.model.name} for {manifest.target.name}, {size}")
    if manifest.variants:
        print_variants(manifest)
    elif len(manifest.programs) > 1:
        click.echo(f"  programs: {', '.join(program.name for program in manifest.programs)}")
    if manifest.states:
        kept = ", ".join(
            f"{record.input} (next: {record.output})" for record in manifest.states[:4]
        )
        more = f" and {len(manifest.states) - 4} more" if len(manifest.states) > 4 else ""
        click.echo(f"  state, kept in the session: {kept}{more}")
    share = manifest.execution.tuned_share
    if show_records or share:
        click.echo(f"  tuned: kernels of {share:.0%} of the estimated time")
    for name, error in manifest.parity.max_error.items():
        share = manifest.parity.allowed_share[name]
        click.echo(f"  {name}: largest error {error:.2g}, {share:.1%} of what is allowed")
    if manifest.compression is not None:
        _print_compression(manifest.compression)
    if manifest.quantization is not None:
        _print_quantization(manifest.quantization, exits=manifest.exits is not None)
    if manifest.exits is not None:
        for line in exit_lines(manifest.exits):
            click.echo(f"  {line}")
    notes = {
        "nothing": "  parity was not checked",
        "host": "  parity was checked on a build for this machine; verify on the board",
    }
    if manifest.parity.checked_on in notes:
        click.echo(notes[manifest.parity.checked_on])


def _print_compression(record: "CompressionRecord") -> None:
    from edgec.compiler.calibration.accuracy import score_text

    macs, weights = record.macs_before, record.weights_before
    for step in record.steps:
        line = f"  {step.kind}: {step.macs / macs:.1%} of the multiplications, "
        line += f"{step.weights / weights:.1%} of the weights"
        if step.nonzeros < step.weights:
            line += f" ({step.nonzeros / weights:.1%} nonzero)"
        score = step.score is not None and score_text(step.score, record.positions, record.metric)
        if score:
            line += f"; {score} over {record.samples} batches"
        click.echo(line)


def _print_quantization(record: "QuantizationRecord", *, exits: bool) -> None:
    from edgec.compiler.calibration.accuracy import score_text

    name = record.recipe["name"]
    click.echo(
        f"  {name}: {record.quantized} operators quantized; {record.quantized_types}".rstrip("; ")
    )
    # The answer of an exit is another one.
    for output, ratio in ({} if exits else record.sqnr_db).items():
        click.echo(f"  {output}: {ratio:.1f} dB against the original model, on the test input")
    if record.samples_sqnr_db:
        worst = min(record.samples_sqnr_db, key=lambda name: record.samples_sqnr_db[name])
        click.echo(
            f"  {worst}: {record.samples_sqnr_db[worst]:.1f} dB against the model before "
            f"quantization, over {record.samples} batches of samples (the worst output)"
        )
    score = record.score is not None and score_text(record.score, record.positions, record.metric)
    if score:
        click.echo(f"  over these batches: {score}")
    if record.kept_float:
        click.echo(f"  returned to float: {', '.join(record.kept_float)}")
    if record.float_fallbacks:
        click.echo("  computed on floats:")
        rows = [(f"    {name}", why) for name, why in record.float_fallbacks.items()]
        print_table(("", ""), rows)
