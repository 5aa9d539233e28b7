"""Provide `edgec chat`: a conversation with the language model of a bundle."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.compiler.cli.generation_options import generation_options, sampling_of
from edgec.compiler.cli.options import as_path

if TYPE_CHECKING:
    from edgec.compiler.generation.generator import Generator
    from edgec.compiler.generation.sampling import Sampling
    from edgec.compiler.tokenizer.chat_pieces import Message


@click.command()
@click.argument("bundle", type=as_path)
@click.option("--system", metavar="TEXT", help="What the conversation begins with.")
@generation_options
@click.option("--seed", default=0, show_default=True, help="Of the choice of tokens.")
@click.option("--threads", type=int, default=0, show_default=True, help="0: all cores.")
@click.option(
    "--prompt-cache", type=as_path, metavar="FILE", help="Begin with it, and keep what was read."
)
def chat(
    bundle: Path,
    *,
    system: str | None,
    seed: int,
    threads: int,
    prompt_cache: Path | None,
    **options: Any,
) -> None:
    """Talk with the language model of a BUNDLE. /reset begins anew, /exit ends."""
    from edgec.compiler.generation.generator import Generator

    sampling = sampling_of(options, seed)
    generator = Generator(bundle, threads, speculate=options["speculate"])
    if prompt_cache is not None and prompt_cache.exists():
        generator.load(prompt_cache)
    _converse(generator, system, sampling, options)
    if prompt_cache is not None:
        generator.save(prompt_cache)


def _converse(
    generator: "Generator", system: str | None, sampling: "Sampling", options: dict[str, Any]
) -> None:
    beginning = [] if system is None else [{"role": "system", "content": system}]
    messages: list[Message] = list(beginning)
    while (line := _next_line()) not in (None, "/exit"):
        if line == "/reset":
            messages = list(beginning)
        elif line:
            messages.append({"role": "user", "content": line})
            if not _answer(generator, messages, sampling, options):
                messages.pop()


def _next_line() -> str | None:
    """Return what the user says, None at the end of the input."""
    if sys.stdin.isatty():
        click.echo("> ", nl=False, err=True)
    line = sys.stdin.readline()
    return line.strip() if line else None


def _answer(
    generator: "Generator",
    messages: list["Message"],
    sampling: "Sampling",
    options: dict[str, Any],
) -> bool:
    """Answer the last message, and append the answer; False if the message does not fit."""
    from edgec.compiler.generation.generator import ContextFullError

    try:
        reply = generator.generate(
            messages, max_tokens=options["max_tokens"], sampling=sampling, stop=options["stop"]
        )
    except ContextFullError as error:
        click.echo(f"edgec: {error}; /reset begins anew", err=True)
        return False
    for piece in reply:
        click.echo(piece.text, nl=False)
        sys.stdout.flush()
    click.echo()
    if reply.reason == "context":
        click.echo(f"edgec: the context of {generator.context} tokens is full", err=True)
    messages.append({"role": "assistant", "content": reply.text})
    return True
