"""Provide `edgec run`: a bundle, once."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.compiler.cli.cascade import opened_cascade, run_cascade, stops_early
from edgec.compiler.cli.generation_options import generation_options, sampling_of
from edgec.compiler.cli.options import (
    as_path,
    board_option,
    inputs_option,
    json_option,
    program_option,
    read_inputs,
)
from edgec.compiler.cli.plan_runs import (
    answered_by,
    is_plan,
    named_devices,
    opened_plan,
    plan_options,
    run_plan,
)
from edgec.compiler.cli.printing import plain, print_json, print_table, warn
from edgec.compiler.errors import BadInputError, UsageError
from edgec.compiler.ir.early_exits import ANSWERED_BY

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgec.compiler.generation.generator import Generator
    from edgec.compiler.generation.guide import TextGuide
    from edgec.compiler.generation.sampling import Sampling


@click.command()
@click.argument("bundle", type=as_path, required=False)
@plan_options
@inputs_option
@program_option
@click.option("--pad", is_flag=True, help="Fill inputs that fit no program up with zeros.")
@click.option("--prompt", metavar="TEXT", help="Of a language model: a text to go on with.")
@click.option("--prompt-file", type=as_path, metavar="FILE", help="The same from a file.")
@click.option(
    "--prompt-cache", type=as_path, metavar="FILE", help="Begin with it, and keep what was read."
)
@click.option(
    "--json-schema", type=as_path, metavar="FILE", help="The reply is JSON that this schema allows."
)
@click.option(
    "--grammar", type=as_path, metavar="FILE", help="The reply is what this grammar (Lark) allows."
)
@generation_options
@click.option(
    "--seed", default=0, show_default=True, help="Of the generated inputs, or of the choice."
)
@click.option("--threads", type=int, default=0, show_default=True, help="0: all cores.")
@click.option("--output", "-o", type=as_path, metavar="FILE.npz", help="Save the outputs.")
@board_option
@json_option
def run(
    bundle: Path | None,
    *,
    plan: Path | None,
    devices: Sequence[str],
    key: Path | None,
    inputs: Sequence[str],
    program: str | None,
    pad: bool,
    seed: int,
    threads: int,
    output: Path | None,
    board: str | None,
    as_json: bool,
    prompt: str | None,
    prompt_file: Path | None,
    prompt_cache: Path | None,
    **generation: Any,
) -> None:
    """Run a BUNDLE here or on a board, on given or generated inputs, or go on with a text.

    With --plan run a split model over its devices.
    """
    from edgec.compiler.support.files import check_output_file

    if is_plan(plan, devices, key, bundle):
        assert plan is not None
        if pad or board is not None or prompt is not None or prompt_file is not None:
            raise UsageError("--plan takes no --pad, --board or --prompt")
        if output is not None:
            check_output_file(output, make_folders=True)
        if stops_early(plan, named_devices(devices)):
            with opened_cascade(plan, named_devices(devices), key, threads) as models:
                _show(plan, run_cascade(models, inputs, seed), output, as_json)
            return
        with opened_plan(plan, devices, key, threads, as_json) as session:
            _show(plan, run_plan(session, inputs, program, seed), output, as_json)
            if answered_by(session):
                warn(answered_by(session))
        return
    assert bundle is not None
    if prompt is not None or prompt_file is not None:
        if board is not None or inputs or output is not None or None not in (prompt, prompt_file):
            raise UsageError(
                "--prompt takes no --board, --input, --output or --prompt-file; on a board, deploy "
                "a bundle with --runner and call ./run --prompt there"
            )
        text = _read_text(prompt_file) if prompt_file is not None else prompt or ""
        _go_on(
            bundle, text, prompt_cache, sampling_of(generation, seed), threads, as_json, generation
        )
        return
    if generation["json_schema"] is not None or generation["grammar"] is not None:
        raise UsageError("--json-schema and --grammar are for the reply to a --prompt")
    from edgec.compiler.boards.run import run_bundle

    if output is not None:
        check_output_file(output, make_folders=True)
    results = run_bundle(
        bundle,
        read_inputs(inputs),
        board=board,
        seed=seed,
        threads=threads,
        program=program,
        pad=pad,
    )
    _show(bundle, results, output, as_json)


def _show(
    path: Path, results: "Mapping[str, NDArray[Any]]", output: Path | None, as_json: bool
) -> None:
    """Write outputs to a file, and print what they are."""
    from edgec.compiler.runtime.inputs import write_tensors

    if output is not None:
        write_tensors(output, results)
    if as_json:
        summary = [{"name": name, **_describe(array)} for name, array in results.items()]
        which = {ANSWERED_BY: int(results[ANSWERED_BY][0])} if ANSWERED_BY in results else {}
        print_json({"bundle": str(path), **which, "outputs": summary})
        return
    print_table(
        ["output", "shape", "dtype", "min", "max", "mean"],
        [[name, *map(plain, _describe(array).values())] for name, array in results.items()],
    )
    if ANSWERED_BY in results:
        number = int(results[ANSWERED_BY][0])
        click.echo(f"answered by {f'exit {number}' if number else 'the whole model'}")


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path} is not UTF-8: byte {error.start} belongs to none") from None


def _go_on(
    bundle: Path,
    prompt: str,
    cache: Path | None,
    sampling: "Sampling",
    threads: int,
    as_json: bool,
    generation: dict[str, Any],
) -> None:
    """Generate text, and print it as it comes, or a summary as JSON."""
    from edgec.compiler.generation.generator import Generator

    generator = Generator(bundle, threads, speculate=generation["speculate"])
    if cache is not None and cache.exists():
        generator.load(cache)
    reply = generator.generate(
        prompt,
        max_tokens=generation["max_tokens"],
        sampling=sampling,
        stop=generation["stop"],
        guide=_guide(generator, generation),
    )
    for piece in reply:
        if not as_json:
            click.echo(piece.text, nl=False)
            sys.stdout.flush()
    if cache is not None:
        generator.save(cache)
    if as_json:
        first = reply.first_token_seconds
        print_json(
            {
                "bundle": str(bundle),
                "prompt_tokens": reply.prompt_tokens,
                "cached_tokens": reply.cached_tokens,
                "tokens": reply.tokens,
                "text": reply.text,
                "reason": reply.reason,
                "first_token_ms": None if first is None else first * 1e3,
                "tokens_per_second": reply.tokens_per_second,
                "guesses": vars(generator.guesses),
            }
        )
        return
    click.echo()
    if reply.reason == "context":
        click.echo(f"edgec: the context of {generator.context} tokens is full", err=True)


def _guide(generator: "Generator", generation: dict[str, Any]) -> "TextGuide | None":
    """Return what keeps the reply to a form, if one was asked for."""
    schema, grammar = generation["json_schema"], generation["grammar"]
    if schema is None and grammar is None:
        return None
    if None not in (schema, grammar):
        raise UsageError("give --json-schema or --grammar, not both")
    from edgec.compiler.generation.guide import TextGuide, json_grammar

    text = json_grammar(_read_text(schema)) if schema is not None else _read_text(grammar)
    return TextGuide(generator.guide_tokenizer, text)


def _describe(array: "NDArray[Any]") -> dict[str, Any]:
    """Return shape, dtype and the range of values."""
    values = array.astype("float64")
    statistics = (values.min(), values.max(), values.mean()) if array.size else (None,) * 3
    numbers = dict(zip(("min", "max", "mean"), statistics, strict=True))
    return {"shape": list(array.shape), "dtype": str(array.dtype), **numbers}
