"""Provide what a manifest says of early exits. Needs no TVM."""

from pydantic import BaseModel, ConfigDict


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ExitRecord(_Record):
    """An exit record describes where a model may end early.

    Attributes:
        work: share of the model's multiplications that are before it.
        threshold: the largest probability from which on it answers.
        share: of the samples that were kept back, answered here.
        agreement: share of these with the answer of the whole model.
    """

    work: float
    threshold: float
    share: float
    agreement: float


class ExitsRecord(_Record):
    """An exits record describes the early exits of a model.

    Attributes:
        exits: in order.
        drop: share of other answers that thresholds were calibrated for.
        agreement: share of the samples that were kept back with the answer of the whole model.
        samples: how many these were.
        work: multiplications of an inference over them, as a share of the model's.
        sqnr_db: by float output, of the test vector against the original graph [dB].
    """

    exits: tuple[ExitRecord, ...]
    drop: float
    agreement: float
    samples: int
    work: float
    sqnr_db: dict[str, float]
