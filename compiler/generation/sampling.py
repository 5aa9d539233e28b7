"""Say how the next token is chosen."""

import math
from dataclasses import dataclass

from edgec.compiler.errors import UsageError
from edgec.compiler.generation.native import SamplingStruct

_MOST = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling describes the choice of the next token; the formulas are in native/sampler.c.

    Applied in the order of the attributes, as the package `transformers` does.

    Attributes:
        repetition_penalty: logits of tokens of the context are divided by it, or multiplied where
            they are negative; 1 changes nothing.
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: only so many of the likeliest; 0 is all.
        top_p: the fewest likeliest whose shares reach this; 1 is all.
        min_p: only those at least this share as likely as the likeliest; 0 is all.
        seed: of the pseudorandom numbers.
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: one is out of its range.
        """
        ranges = {
            "repetition_penalty": (0.01, 100.0),
            "temperature": (0.0, 100.0),
            "top_k": (0, _MOST),
            "top_p": (0.0, 1.0),
            "min_p": (0.0, 1.0),
            "seed": (0, 2**64 - 1),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and least <= value <= most):
                raise UsageError(f"{name} is {value}; {least:g} to {most:g} is expected")
        if self.top_p == 0:
            raise UsageError("top_p is 0; more than 0 and at most 1 is expected")

    def struct(self) -> SamplingStruct:
        """Return the same for C."""
        return SamplingStruct(
            repetition_penalty=self.repetition_penalty,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=self.seed,
        )
