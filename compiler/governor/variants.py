"""Describe variants of one model: what a compile makes of each, in words of the command line.

`--variant fast=int8,channels-50` is a name and, joined by commas: the name of a quantization
recipe, steps of compression, shapes of inputs (`image=1x3x96x96`), and `accuracy=0.71` where the
user has measured it. `--variant full=float` changes nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgec.compiler.errors import UsageError
from edgec.compiler.quantize.quantization_recipe import RECIPES

UNCHANGED = "float"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SHAPE = re.compile(r"(.+)=(\d+(?:x\d+)*)")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A variant is one of the models of a bundle, which all compute the same thing.

    Attributes:
        quantize: name of a quantization recipe; empty to compute on floats.
        compress: names of steps of compression, joined by commas; empty for all weights.
        shapes: full shape by input name, in place of those of the compile.
        accuracy: 0 to 1, as the user measured it; None measures the agreement with the original
            model on the calibration samples.
    """

    quantize: str = ""
    compress: str = ""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    accuracy: float | None = None

    def __post_init__(self) -> None:
        """Check the accuracy.

        Raises:
            UsageError: it is no share.
        """
        if self.accuracy is not None and not 0 <= self.accuracy <= 1:
            raise UsageError(f"accuracy is a share from 0 to 1; {self.accuracy} was given")

    @property
    def changes_numbers(self) -> bool:
        """Return whether it computes other numbers than the original model."""
        return bool(self.quantize or self.compress)


def parse_variant(text: str) -> tuple[str, Variant]:
    """Read `NAME=WORD,WORD…`; see the module.

    Raises:
        UsageError: it is not of that form.

    >>> parse_variant("fast=int8,channels-50,distill")[1].compress
    'channels-50,distill'
    >>> parse_variant("small=int8,image=1x3x96x96,accuracy=0.71")[1].shapes
    {'image': (1, 3, 96, 96)}
    """
    name, equals, words = text.partition("=")
    if not equals or not words or not _NAME.fullmatch(name):
        raise UsageError(
            f"--variant {text}: write NAME=RECIPE, as fast=int8,channels-50 or full={UNCHANGED}"
        )
    quantize, compress, shapes, accuracy = [], [], {}, None
    for word in words.split(","):
        shape = _SHAPE.fullmatch(word)
        if word.startswith("accuracy="):
            accuracy = _accuracy(word.removeprefix("accuracy="), text)
        elif shape:
            shapes[shape[1]] = tuple(map(int, shape[2].split("x")))
        elif word in RECIPES:
            quantize.append(word)
        elif word != UNCHANGED:
            compress.append(word)
    if len(quantize) > 1:
        raise UsageError(f"--variant {text}: {' and '.join(quantize)} contradict each other")
    return name, Variant(
        quantize="".join(quantize),
        compress=",".join(compress),
        shapes=shapes,
        accuracy=accuracy,
    )


def parse_variants(texts: tuple[str, ...]) -> dict[str, Variant]:
    """Read variants, in order: the first is what runs where nobody chooses.

    Raises:
        UsageError: one is not of its form, or two have the same name.
    """
    pairs = [parse_variant(text) for text in texts]
    variants = dict(pairs)
    if len(variants) < len(pairs):
        raise UsageError("--variant names one twice")
    return variants


def _accuracy(number: str, text: str) -> float:
    try:
        return float(number)
    except ValueError:
        raise UsageError(f"--variant {text}: {number!r} is no number") from None
