"""Measure how good the answers of a model are, against labels or against another model's answers.

Each metric says where its formula is from. A metric is fed batch by batch and then asked.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.calibration.samples import load_callable
from edgec.compiler.errors import BadInputError, UsageError, did_you_mean
from edgec.compiler.evaluate.boxes import MeanPrecision, detections_of, truths_of
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.ir.storage import is_float

Array = NDArray[Any]

# Of a model that stands in for labels: boxes that it is surer of are taken for true.
TRUSTED_SCORE = 0.25


class Metric(ABC):
    """A metric sums up how good answers are.

    Attributes:
        name: what it is asked for by.
        larger_is_better: whether it grows with better answers.
    """

    name = ""
    larger_is_better = True

    @abstractmethod
    def add(self, outputs: Tensors, truth: Any) -> None:
        """Take the outputs of one batch, and what is true of it."""

    @abstractmethod
    def result(self) -> dict[str, float]:
        """Return the figures over all batches; the first is the metric itself."""

    def truth_of(self, outputs: Tensors) -> Any:
        """Return what is taken for true where another model's outputs stand in for labels."""
        return outputs

    def check(self, labels: Array) -> None:
        """Refuse labels of another kind.

        Raises:
            BadInputError: says what is expected.
        """
        del labels


def class_scores(outputs: Tensors) -> Array:
    """Return scores [N, classes] of the first float output with classes on its last axis.

    Raises:
        BadInputError: there is none.
    """
    for array in outputs.values():
        if is_float(array.dtype) and array.ndim and array.shape[-1] > 1:
            return np.asarray(array).reshape(-1, array.shape[-1])
    raise BadInputError("no output of this model holds scores of classes; give --metric another")


def _check_classes(labels: Array, name: str) -> None:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise BadInputError(
            f"--metric {name} needs a whole number for each sample as label, "
            f"{labels.dtype}{list(labels.shape)} was given"
        )


def classes_of(truth: Any, count: int) -> Array:
    """Return the class of each sample.

    Raises:
        BadInputError: the model has no such class.
    """
    classes = np.asarray(truth).reshape(-1)
    wrong = classes[(classes < 0) | (classes >= count)]
    if wrong.size:
        raise BadInputError(
            f"a label is {wrong[0]}, and the model has {count} classes: 0 to {count - 1} are "
            "expected"
        )
    return classes


class TopK(Metric):
    """The share of samples whose class is among the k that score highest.

    Russakovsky et al. 2015, "ImageNet Large Scale Visual Recognition Challenge", section 4.1, as
    one minus the error there. Of equal scores the class of the lower number comes first.
    """

    def __init__(self, k: int) -> None:
        self.name = f"top{k}"
        self.k = k
        self.right = 0
        self.count = 0

    def add(self, outputs: Tensors, truth: Any) -> None:
        """Take one batch; truth are classes [N]."""
        scores = class_scores(outputs)
        classes = classes_of(truth, scores.shape[1])
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self.k]
        self.right += int((best == classes[:, None]).any(axis=1).sum())
        self.count += len(classes)

    def result(self) -> dict[str, float]:
        """Return the share."""
        return {self.name: self.right / max(1, self.count)}

    def truth_of(self, outputs: Tensors) -> Any:
        """Return the class that scores highest."""
        return class_scores(outputs).argmax(axis=1)

    def check(self, labels: Array) -> None:
        """Refuse what are no classes."""
        _check_classes(labels, self.name)


class MacroF1(TopK):
    """The mean over classes of the harmonic mean of precision and recall.

    F1 = 2 TP / (2 TP + FP + FN) for each class that occurs (van Rijsbergen 1979, chapter 7, with
    beta 1), as `sklearn.metrics.f1_score(average="macro")`.
    """

    def __init__(self) -> None:
        super().__init__(1)
        self.name = "f1"
        self.pairs: list[Array] = []

    def add(self, outputs: Tensors, truth: Any) -> None:
        """Take one batch; truth are classes [N]."""
        scores = class_scores(outputs)
        self.pairs.append(np.stack([classes_of(truth, scores.shape[1]), scores.argmax(axis=1)]))

    def result(self) -> dict[str, float]:
        """Return the mean."""
        true, found = np.concatenate(self.pairs, axis=1) if self.pairs else np.zeros((2, 0))
        scores = []
        for number in np.union1d(true, found):
            hits = int(((true == number) & (found == number)).sum())
            scores.append(2 * hits / int((true == number).sum() + (found == number).sum()))
        return {self.name: float(np.mean(scores)) if scores else 0.0}


class CharacterErrors(Metric):
    """Edits that turn the texts found into the true ones, as a share of the true characters.

    CER = (substitutions + deletions + insertions) / characters of the truth, over all texts
    together; the edits are Levenshtein's (1966). A text is the greedy path of CTC: the best class
    of each step, repeats merged, class 0, the blank, left out (Graves et al. 2006, section 3.2).
    """

    name = "cer"
    larger_is_better = False

    def __init__(self) -> None:
        self.edits = 0
        self.characters = 0
        self.right = 0
        self.texts = 0

    def add(self, outputs: Tensors, truth: Any) -> None:
        """Take one batch; truth are classes [N, L], filled up with negative numbers."""
        for found, true in zip(greedy_texts(outputs), truth, strict=True):
            wanted = [int(c) for c in true if c >= 0]
            self.edits += edit_distance(found, wanted)
            self.characters += len(wanted)
            self.right += found == wanted
            self.texts += 1

    def result(self) -> dict[str, float]:
        """Return the rate, and the share of texts without an error."""
        rate = self.edits / self.characters if self.characters else float(self.edits > 0)
        return {self.name: rate, "texts": self.right / max(1, self.texts)}

    def truth_of(self, outputs: Tensors) -> Any:
        """Return the texts that were found."""
        return greedy_texts(outputs)

    def check(self, labels: Array) -> None:
        """Refuse what are no texts."""
        if labels.dtype.kind not in "iu" or labels.ndim != 2:
            raise BadInputError(
                "--metric cer needs the classes of each text's characters as labels [N, L], "
                f"filled up with -1; {labels.dtype}{list(labels.shape)} was given (texts need an "
                "array `characters` beside them, whose character i is class i)"
            )


def greedy_texts(outputs: Tensors) -> list[list[int]]:
    """Return the classes of the greedy path of CTC for each sample.

    Raises:
        BadInputError: no output is [N, steps, classes].

    >>> steps = np.eye(3, dtype="float32")[None, [1, 1, 0, 1, 2]]
    >>> greedy_texts({"y": steps})
    [[1, 1, 2]]
    """
    for array in outputs.values():
        if is_float(array.dtype) and array.ndim == 3 and array.shape[-1] > 1:
            best = np.asarray(array).argmax(axis=-1)
            changed = np.diff(best, axis=1, prepend=-1) != 0
            return [
                [int(c) for c in row[keep]]
                for row, keep in zip(best, changed & (best != 0), strict=True)
            ]
    raise BadInputError("--metric cer needs an output [N, steps, classes] of scores")


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Return Levenshtein's distance.

    >>> edit_distance([ord(c) for c in "kitten"], [ord(c) for c in "sitting"])
    3
    """
    previous = list(range(len(other) + 1))
    for row, left in enumerate(one, 1):
        current = [row]
        for column, right in enumerate(other, 1):
            cost = previous[column - 1] + (left != right)
            current.append(min(cost, previous[column] + 1, current[-1] + 1))
        previous = current
    return previous[-1]


class MeanAveragePrecision(Metric):
    """The mean over classes and overlaps of the average precision of boxes; see `boxes.py`."""

    name = "map"

    def __init__(self) -> None:
        self.sums = MeanPrecision()

    def add(self, outputs: Tensors, truth: Any) -> None:
        """Take one batch; truth are boxes [N, M, 5]: class, left, top, right, bottom."""
        for found, true in zip(detections_of(outputs), truths_of(truth), strict=True):
            self.sums.add(found, true)

    def result(self) -> dict[str, float]:
        """Return mAP over overlaps of 0.50 to 0.95, and at 0.50."""
        return {"map": self.sums.mean(), "map50": self.sums.mean((0.5,))}

    def truth_of(self, outputs: Tensors) -> Any:
        """Return the boxes that a model is sure of."""
        boxes = []
        for found in detections_of(outputs):
            sure = found[found[:, 4] >= TRUSTED_SCORE]
            boxes.append(sure[:, [5, 0, 1, 2, 3]])
        return boxes

    def check(self, labels: Array) -> None:
        """Refuse what are no boxes."""
        if labels.dtype.kind not in "iuf" or labels.ndim != 3 or labels.shape[-1] != 5:
            raise BadInputError(
                "--metric map needs boxes as labels [N, M, 5]: class, left, top, right, bottom in "
                "the pixels of the outputs, filled up with class -1; "
                f"{labels.dtype}{list(labels.shape)} was given"
            )


class OwnMetric(Metric):
    """A function of the user's: called with the truth and the outputs of a batch, 0..1."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.function = load_callable(name)
        self.scores: list[float] = []

    def add(self, outputs: Tensors, truth: Any) -> None:
        """Take one batch; truth are its labels, or the other model's outputs."""
        try:
            self.scores.append(float(self.function(truth, outputs)))
        except Exception as error:
            why = str(error) or type(error).__name__
            raise UsageError(f"--metric {self.name} failed: {why}") from None

    def result(self) -> dict[str, float]:
        """Return the mean over batches."""
        return {self.name: float(np.mean(self.scores)) if self.scores else 0.0}


METRICS: Mapping[str, Callable[[], Metric]] = {
    "top1": lambda: TopK(1),
    "top5": lambda: TopK(5),
    "f1": MacroF1,
    "map": MeanAveragePrecision,
    "cer": CharacterErrors,
}


def make_metric(name: str) -> Metric:
    """Return a new metric of this name, or of `module:function`.

    Raises:
        UsageError: there is none.
    """
    if ":" in name:
        return OwnMetric(name)
    if name not in METRICS:
        raise UsageError(
            f"--metric {name}: unknown{did_you_mean(name, METRICS)} Known: {', '.join(METRICS)}, "
            "module:function"
        )
    return METRICS[name]()
