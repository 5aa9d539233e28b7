"""Train the classifier of an early exit on what the whole model answers, and say when it is sure.

The classifier is linear in a pooled value. Its loss, the cross-entropy with the probabilities of
the whole model (Hinton et al. 2015), is convex; labels are not needed.

It answers where its largest probability is at least a threshold: the lowest one of which

    (wrong + 1) / (samples + 1) <= drop

holds on samples that it was not trained on, wrong being how often it would answer otherwise than
the whole model. By conformal risk control (Angelopoulos et al. 2022) the expected share of such
answers on further samples of the same kind is then at most `drop`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.compress.training import State
from edgec.compiler.errors import CalibrationError, UnsupportedModelError

Floats = NDArray[np.float64]

# Steps of Adam on all samples at once, and after how many without gain they end.
_STEPS, _PATIENCE = 600, 60
_RATE, _CLIP = 0.05, 10.0
# Of the squares of the weights.
_DECAY = 1e-4
_SEED = 0
# One of so many samples says when to stop.
_HELD_OUT = 5


@dataclass(frozen=True)
class Head:
    """A head is a linear classifier.

    Attributes:
        weights: [features, classes].
        bias: [classes].
        loss: cross-entropy on samples that it was not trained on.
    """

    weights: Floats
    bias: Floats
    loss: float

    def scores(self, features: Floats) -> Floats:
        """Return the scores of the classes, [samples, classes]."""
        return np.asarray(features @ self.weights + self.bias)


def train_head(features: Floats, targets: Floats) -> Head:
    """Return the head whose probabilities are nearest to those of the whole model.

    Args:
        features: [samples, features].
        targets: probabilities of the whole model, [samples, classes].
    """
    held_out = parts(len(features), _HELD_OUT) == 0
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    scale = 1 / np.maximum(deviation, 1e-6 * max(1.0, float(deviation.max())))
    x, y = (features - mean) * scale, targets
    shape = (features.shape[1], targets.shape[1])
    state = State([np.zeros(shape), np.zeros(shape[1])])
    best, smallest, since = list(state.values), math.inf, 0
    inputs, wanted = x[~held_out], y[~held_out]
    for _ in range(_STEPS):
        loss = cross_entropy(x[held_out] @ state.values[0] + state.values[1], y[held_out])
        since += 1
        if loss < smallest:
            best, smallest, since = list(state.values), loss, 0
        if since > _PATIENCE:
            break
        error = (softmax(inputs @ state.values[0] + state.values[1]) - wanted) / len(inputs)
        gradient = inputs.T @ error + _DECAY * state.values[0]
        state.descend([gradient, error.sum(axis=0)], _RATE, _CLIP)
    weights = best[0] * scale[:, None]
    return Head(weights, best[1] - mean @ weights, smallest)


def parts(count: int, among: int) -> NDArray[np.int64]:
    """Return to which of some equal parts each sample belongs, by a fixed chance.

    Data have orders of their own: every second digit of a file may be an even one.
    """
    return np.random.default_rng(_SEED).permutation(np.arange(count) % among)


def softmax(scores: Floats) -> Floats:
    """Return the probabilities of the classes, [samples, classes]."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def are_probabilities(answers: Floats) -> bool:
    """Tell whether a model ends with a softmax, by what it gives, [samples, classes].

    Raises:
        UnsupportedModelError: these are shares of labels that do not exclude one another.
    """
    if not (answers.min() >= 0 and answers.max() <= 1 + 1e-3):
        return False
    if not np.allclose(answers.sum(axis=1), 1, atol=1e-3):
        raise UnsupportedModelError(
            "the model gives numbers of 0 to 1 that do not add up to 1, as for labels that do not "
            "exclude one another; exits and cascades are for classifiers of one class each"
        )
    return True


def confidence_of(scores: Floats, probabilities: bool, batch: int) -> Floats:
    """Return how sure a classifier is of each batch, [batches].

    A batch is answered as a whole, so it is the largest probability of the sample that it is
    least sure of.

    Args:
        scores: [batches * batch, classes].
        probabilities: whether they are.
        batch: samples in a batch.
    """
    wide = np.asarray(scores, np.float64)
    largest = (wide if probabilities else softmax(wide)).max(axis=1)
    return np.asarray(largest.reshape(-1, batch).min(axis=1))


def agreement_of(given: Floats, wanted: Floats, batch: int) -> Floats:
    """Return the share of samples whose largest class is the same, by batch, [batches]."""
    same = given.argmax(axis=1) == wanted.argmax(axis=1)
    return np.asarray(same.reshape(-1, batch).mean(axis=1))


def cross_entropy(scores: Floats, targets: Floats) -> float:
    """Return the mean cross-entropy of scores with probabilities."""
    return float(-(targets * np.log(softmax(scores) + 1e-12)).sum(axis=1).mean())


def calibrate_thresholds(
    confidences: Sequence[Floats], agrees: Sequence[NDArray[Any]], drop: float
) -> list[float]:
    """Return the threshold of each exit; infinite of one that never may answer.

    Args:
        confidences: of each exit, by batch; not a number is never sure.
        agrees: share of its answers that are the whole model's, likewise.
        drop: share of other answers that all exits together may give; the first one of n may give
            one n-th of them, and so on.

    Raises:
        CalibrationError: there are too few samples to tell.
    """
    count, exits = len(confidences[0]), len(confidences)
    check_enough(count, exits, drop)
    left = np.ones(count, bool)
    thresholds, wrong = [], 0.0
    for number, (confidence, agree) in enumerate(zip(confidences, agrees, strict=True), 1):
        allowed = drop * number / exits * (count + 1) - 1 - wrong
        threshold = _lowest(confidence[left], agree[left], allowed)
        answered = left & (confidence >= threshold)
        wrong += float((1.0 - agree[answered]).sum())
        left &= ~answered
        thresholds.append(threshold)
    return thresholds


def check_enough(count: int, exits: int, drop: float) -> None:
    """Refuse to find thresholds of so many exits on too few samples.

    Raises:
        CalibrationError: says how many it takes.
    """
    needed = math.ceil(exits / drop - 1e-9) - 1
    if count < needed:
        raise CalibrationError(
            f"a drop of {drop:g} cannot be told from {count} samples, which is what is left for "
            f"thresholds; at least {needed} are needed: give more data, or allow more"
        )


def _lowest(confidence: Floats, agree: NDArray[Any], allowed: float) -> float:
    """Return the lowest threshold above which at most so many do not agree."""
    values = np.unique(confidence[~np.isnan(confidence)])[::-1]
    lowest = math.inf
    for value in values:
        if (1.0 - agree[confidence >= value]).sum() > allowed + 1e-9:
            break
        lowest = float(value)
    # Between the last one that may answer and the first one that may not, for other roundings.
    below = values[values < lowest]
    return lowest if lowest == math.inf or not len(below) else (lowest + float(below[0])) / 2
