"""Describe how far a changed model is from the original one."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgec.compiler.calibration.samples import Sample, Samples, load_callable
from edgec.compiler.errors import UsageError
from edgec.compiler.ir.signature import Tensors, TensorSpec
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
        positions: the positions that `same_top1` compared; 0 for another metric.
    """

    sqnr_db: float
    score: float
    by_output: dict[str, float]
    positions: int = 0

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
        self.positions = 0
        self.signal: dict[str, float] = {}
        self.noise: dict[str, float] = {}

    def add(self, expected: Tensors, actual: Tensors) -> None:
        """Compare one batch."""
        self.scores.append(float(self.metric(expected, actual)))
        if self.metric is same_top1:
            specs = [TensorSpec(n, a.shape, str(a.dtype)) for n, a in expected.items()]
            self.positions += class_positions(specs)
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
        return Accuracy(worst, float(np.mean(self.scores)), by_output, self.positions)


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
    """Return the share of positions whose largest class is the same.

    The classes are the last axis of the first float output that has several; of a classifier the
    positions are the images, of a text recognizer the time steps: it says nothing of whole texts.

    >>> one, two = np.float32([[1, 2], [3, 0]]), np.float32([[0, 9], [1, 2]])
    >>> same_top1({"y": one}, {"y": two})
    0.5
    """
    for name, array in expected.items():
        if is_float(array.dtype) and array.ndim and array.shape[-1] > 1:
            other = actual[name]
            return float(np.mean(array.argmax(axis=-1) == other.argmax(axis=-1)))
    return 1.0


def class_positions(outputs: Sequence[TensorSpec]) -> int:
    """Return how many answers one batch has for `same_top1`; 0 without classes.

    >>> class_positions([TensorSpec("scores", (1, 24, 97), "float32")])
    24
    """
    for spec in outputs:
        shape = [extent or 0 for extent in spec.shape]
        if is_float(np.dtype(spec.dtype)) and shape and shape[-1] > 1:
            return math.prod(shape[:-1])
    return 0


def batches_to_resolve(max_drop: float, outputs: Sequence[TensorSpec]) -> int:
    """Return the batches in which one changed answer is no larger share than a bar.

    Args:
        max_drop: the bar, 0.01 for one in a hundred.
        outputs: the outputs of the model, by which `same_top1` counts answers.

    Raises:
        UsageError: the outputs hold no classes.

    >>> batches_to_resolve(0.01, [TensorSpec("scores", (1, 1000), "float32")])
    100
    """
    positions = class_positions(outputs)
    if not positions:
        raise UsageError(
            "--max-drop: no output of this model holds classes that could be compared; give "
            "--metric module:function, or --min-sqnr"
        )
    # No bar at all is told from any number of batches.
    return math.ceil(1 / max_drop / positions - 1e-9) if max_drop else 1


def score_text(score: float, positions: int, metric: str) -> str:
    """Say what a score is the share of; empty where nothing was compared.

    >>> score_text(0.9375, 64, "")
    'the largest class agrees in 93.75% of 64 positions'
    """
    if metric:
        return f"{metric} {score:.4f}"
    return (
        f"the largest class agrees in {score:.2%} of {positions:,} positions" if positions else ""
    )


def score_name(positions: int, metric: str) -> str:
    """Say what a score is the share of, as the head of a column; empty as of `score_text`."""
    return metric or ("same largest class" if positions else "")


def load_metric(name: str | None) -> Metric:
    """Return the metric of `module:function`, top-1 agreement without a name.

    Raises:
        UsageError: there is no such function.
    """
    if name is None:
        return same_top1
    return load_callable(name)
