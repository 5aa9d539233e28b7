"""What a step of compression is, and what it may look at."""

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from tvm import IRModule

from edgec.compiler.calibration.accuracy import Metric
from edgec.compiler.calibration.samples import Samples
from edgec.compiler.ir.anchors import Operator, find_operators
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.signature import Signature
from edgec.compiler.support.progress import Progress
from edgec.targets import Target


@dataclass(frozen=True)
class Work:
    """What steps share.

    Attributes:
        original: the canonical module before any step; the teacher of distillation.
        signature: of the model.
        target: that the model is compressed for.
        samples: unlabelled inputs; None if none were given.
        metric: agreement of two models' outputs, 0..1.
        progress: shown what takes long.
        checkpoint: file in which training is kept; None keeps none.
    """

    original: Graph
    signature: Signature
    target: Target
    samples: Samples | None
    metric: Metric
    progress: Progress
    checkpoint: Path | None = None


class Step(BaseModel, ABC):
    """One step of a recipe: its fields are its settings.

    Attributes:
        kind: its name in recipes and reports.
        skip: globs over the names of an operator's values; those operators stay as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    skip: tuple[str, ...] = ()

    @property
    def needs_samples(self) -> bool:
        """Whether the step cannot do without samples."""
        return False

    @abstractmethod
    def apply(self, graph: Graph, work: Work) -> IRModule:
        """The module after the step; of the same signature.

        Raises:
            UnsupportedModelError: there is nothing in the model that the step could change.
        """

    def weighted(self, graph: Graph) -> list[Operator]:
        """Operators with constant weights that the step may change, in order."""
        return [
            operator
            for operator in find_operators(graph)
            if operator.weight is not None and not _matches(operator.names, self.skip)
        ]


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)
