"""Describe what a step of compression is, and what it may look at."""

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from tvm import IRModule

from edgec.compiler.calibration.context import ModelContext
from edgec.compiler.ir.anchors import Operator, find_operators
from edgec.compiler.ir.graph import Graph


@dataclass(frozen=True, kw_only=True)
class StepContext(ModelContext):
    """A step context describes what steps share.

    Attributes:
        original: the canonical module before any step; the teacher of distillation.
        checkpoint: file in which training is kept; None keeps none.
    """

    original: Graph
    checkpoint: Path | None = None

    @classmethod
    def of(
        cls, context: ModelContext, original: Graph, checkpoint: Path | None = None
    ) -> "StepContext":
        """Add to a context what steps share."""
        shared = {f.name: getattr(context, f.name) for f in fields(ModelContext)}
        return cls(**shared, original=original, checkpoint=checkpoint)


class CompressionStep(BaseModel, ABC):
    """A compression step describes one step of a recipe: its fields are its settings.

    Attributes:
        kind: its name in recipes and reports.
        skip: globs over the names of an operator's values; those operators stay as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    skip: tuple[str, ...] = ()

    @property
    def needs_samples(self) -> bool:
        """Return whether the step cannot do without samples."""
        return False

    @abstractmethod
    def apply(self, graph: Graph, context: StepContext) -> IRModule:
        """Return the module after the step; of the same signature.

        Raises:
            UnsupportedModelError: there is nothing in the model that the step could change.
        """

    def weighted(self, graph: Graph) -> list[Operator]:
        """Return operators with constant weights that the step may change, in order."""
        return [
            operator
            for operator in find_operators(graph)
            if operator.weight is not None and not _matches(operator.names, self.skip)
        ]


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)
