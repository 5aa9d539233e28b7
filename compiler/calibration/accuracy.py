"""Describe how far a changed model is from the original one."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgec.compiler.calibration.samples import Sample, Samples, load_callable
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.ir.storage import is_float
from edgec.compiler.support.progress import Progress, Silent

Metric = Callable[[Tensors, Tensors], float]

# Batches that accuracy is measured on.
MAX_MEASURED = 64

# JSON has no infinity; rounding of float32 alone gives some 140 dB.
HIGHEST_DB = 200.0


@dataclass(frozen=True)
class Accuracy:
    """An accuracy says how far a changed model is off, over some samples.

    Attributes:
        sqnr_db: signal-to-noise ratio of the worst float output [dB].
        score: mean of the metric, 1 is best.
        by_output: signal-to-noise ratio by output [dB].
    """

    sqnr_db: float
    score: float
    by_output: dict[str, float]

    def reaches(self, max_drop: float | None, min_sqnr_db: float | None) -> bool:
        """Return whether both bars hold, where given."""
        return (max_drop is None or 1 - self.score <= max_drop + 1e-9) and (
            min_sqnr_db is None or self.sqnr_db >= min_sqnr_db
        )


class Comparison:
    """Adds up signal, noise and metric, batch by batch."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.scores: list[float] = []
        self.signal: dict[str, float] = {}
        self.noise: dict[str, float] = {}

    def add(self, expected: Tensors, actual: Tensors) -> None:
        """Compare one batch."""
        self.scores.append(float(self.metric(expected, actual)))
        for name, array in expected.items():
            if is_float(array.dtype):
                wide = array.astype(np.float64)
                difference = actual[name].astype(np.float64) - wide
                self.signal[name] = self.signal.get(name, 0.0) + float(np.square(wide).sum())
                self.noise[name] = self.noise.get(name, 0.0) + float(np.square(difference).sum())

    def result(self) -> Accuracy:
        """Return the accuracy over all that was added."""
        by_output = {name: _ratio_db(self.signal[name], self.noise[name]) for name in self.signal}
        worst = min(by_output.values(), default=HIGHEST_DB)
        return Accuracy(worst, float(np.mean(self.scores)), by_output)


def _ratio_db(signal: float, noise: float) -> float:
    if noise == 0:
        return HIGHEST_DB
    if signal == 0:
        return -HIGHEST_DB
    return float(np.clip(10 * np.log10(signal / noise), -HIGHEST_DB, HIGHEST_DB))


def measure(
    original: Callable[[Sample], Tensors],
    changed: Callable[[Sample], Tensors],
    samples: Samples,
    metric: Metric,
    progress: Progress | None = None,
) -> tuple[Accuracy, int]:
    """Measure the accuracy of what two models give for each batch, and count the batches.

    Memory holds one.
    """
    comparison = Comparison(metric)
    with (progress or Silent()).parts("accuracy", samples.count) as advance:
        for sample in samples:
            comparison.add(original(sample), changed(sample))
            advance()
    return comparison.result(), len(comparison.scores)


def same_top1(expected: Tensors, actual: Tensors) -> float:
    """Return share of equal answers.

    The largest value along the last axis of the first float output.

    >>> one, two = np.float32([[1, 2], [3, 0]]), np.float32([[0, 9], [1, 2]])
    >>> same_top1({"y": one}, {"y": two})
    0.5
    """
    for name, array in expected.items():
        if is_float(array.dtype) and array.ndim and array.shape[-1] > 1:
            other = actual[name]
            return float(np.mean(array.argmax(axis=-1) == other.argmax(axis=-1)))
    return 1.0


def load_metric(name: str | None) -> Metric:
    """Return the metric of `module:function`, top-1 agreement without a name.

    Raises:
        UsageError: there is no such function.
    """
    if name is None:
        return same_top1
    return load_callable(name)
