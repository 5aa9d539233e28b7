"""Runs of a bundle that somebody changed: what a check must notice."""

from collections.abc import Callable
from dataclasses import dataclass

from edgec.compiler.ir.signature import Tensors


@dataclass(frozen=True)
class Tampered:
    """Runs of a function in place of a model without state."""

    run: Callable[[Tensors], Tensors]

    def reset(self) -> None:
        """Do nothing: there is no state."""
