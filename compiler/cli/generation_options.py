"""Provide options of verbs that generate text."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgec.compiler.generation.sampling import Sampling

speculate_option = click.option(
    "--speculate",
    default="auto",
    show_default=True,
    metavar="N|auto|off",
    help="Guess up to N tokens where text repeats; auto: as long as that is faster.",
)
_OPTIONS = (
    speculate_option,
    click.option(
        "--max-tokens", type=int, default=256, show_default=True, help="At most so many tokens."
    ),
    click.option(
        "--temperature",
        type=float,
        default=0.0,
        show_default=True,
        help="0: always the likeliest token.",
    ),
    click.option("--top-k", type=int, default=0, help="Of so many likeliest tokens; 0: of all."),
    click.option("--top-p", type=float, default=1.0, help="Of the likeliest with this share."),
    click.option(
        "--min-p", type=float, default=0.0, help="Of those this likely beside the likeliest."
    ),
    click.option(
        "--repetition-penalty",
        type=float,
        default=1.0,
        help="Above 1: tokens that were there are less likely.",
    ),
    click.option("--stop", multiple=True, metavar="TEXT", help="End before this text."),
)
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def generation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command with the options of generation; `sampling_of` reads them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def sampling_of(options: dict[str, Any], seed: int) -> "Sampling":
    """Return how tokens are chosen.

    Raises:
        UsageError: a value is out of its range.
    """
    from edgec.compiler.generation.sampling import Sampling

    return Sampling(seed=seed, **{name: options[name] for name in _SAMPLING})
