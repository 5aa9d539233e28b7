"""Describe low-rank adapters: what is added to a matrix is a product of two narrow ones.

LoRA: Hu et al., 2021, arXiv:2106.09685; scaled by the root of the rank: Kalajdzievski, 2023,
arXiv:2312.03732.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edgec.compiler.errors import ModelFileError


class AdapterRecord(BaseModel):
    """An adapter record describes what was merged into a language model's weights.

    Attributes:
        name: of the file or folder.
        sha256: of the file, or of its files' digests.
        scale: what it was multiplied by, beside its own scale.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str
    scale: float


@dataclass(frozen=True)
class Factors:
    """Factors describe what an adapter adds to one matrix of a model: `scale * up @ down`.

    Attributes:
        name: the matrix, as the model's file calls it.
        down: [rank, inputs], which PEFT calls A.
        up: [outputs, rank], which PEFT calls B.
        scale: alpha by the rank, or by its root.
    """

    name: str
    down: NDArray[np.float32]
    up: NDArray[np.float32]
    scale: float

    def check(self, path: object) -> None:
        """Make sure that both fit each other and are numbers.

        Raises:
            ModelFileError: they do not, or are not.
        """
        shapes = f"A {list(self.down.shape)} and B {list(self.up.shape)}"
        ranks = self.down.shape[:1], self.up.shape[1:]
        if self.down.ndim != 2 or self.up.ndim != 2 or ranks[0] != ranks[1] or not all(ranks[0]):
            raise ModelFileError(
                f"{path}: {self.name} has {shapes}; [rank, inputs] and [outputs, rank] are expected"
            )
        if not (np.isfinite(self.down).all() and np.isfinite(self.up).all()):
            raise ModelFileError(f"{path}: {self.name} has values that are no numbers")
