"""Classifiers of exits, and the thresholds that keep their answers near the whole model's."""

import math

import numpy as np
import pytest

from edgec.compiler.errors import CalibrationError, UnsupportedModelError
from edgec.compiler.exits.heads import (
    agreement_of,
    are_probabilities,
    calibrate_thresholds,
    confidence_of,
    softmax,
    train_head,
)

RANDOM = np.random.default_rng(0)


def answers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return confidences, and whether answers agree: the surer the more often."""
    confidence = RANDOM.uniform(0.3, 1.0, count)
    return confidence, RANDOM.random(count) < confidence**0.2


def test_head_learns_the_probabilities_of_a_linear_teacher() -> None:
    weights = RANDOM.standard_normal((6, 4))
    features = RANDOM.standard_normal((400, 6)) * [1, 10, 0.1, 1, 1, 1] + 3
    targets = softmax(3 * (features - 3) / [1, 10, 0.1, 1, 1, 1] @ weights)
    head = train_head(features, targets)
    found = softmax(head.scores(features))
    assert np.mean(found.argmax(axis=1) == targets.argmax(axis=1)) > 0.97
    shuffled = train_head(features, RANDOM.permutation(targets))
    assert shuffled.loss > 2 * head.loss


def test_threshold_keeps_the_drop_on_other_samples_and_zero_does_not() -> None:
    drops = []
    for _ in range(20):
        confidence, agree = answers(500)
        (threshold,) = calibrate_thresholds([confidence], [agree], 0.02)
        confidence, agree = answers(5000)
        drops.append(np.mean((confidence >= threshold) & ~agree))
        assert np.mean((confidence >= 0) & ~agree) > 0.05
    assert np.mean(drops) < 0.022
    # It is not kept by answering nothing.
    assert np.mean(drops) > 0.01


def test_thresholds_of_several_exits_share_the_drop() -> None:
    confidence, agree = answers(2000)
    both = calibrate_thresholds([confidence] * 2, [agree] * 2, 0.04)
    first = calibrate_thresholds([confidence], [agree], 0.02)
    wrong = np.mean((confidence >= min(both)) & ~agree)
    assert both[0] == first[0] > both[1]
    assert 0.03 < wrong <= 0.04


def test_exit_that_always_errs_never_answers() -> None:
    confidence = np.linspace(0, 1, 150)
    assert calibrate_thresholds([confidence], [confidence < 0], 0.01) == [math.inf]


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(CalibrationError, match=r"from 98 samples.* 99 are needed"):
        calibrate_thresholds([np.ones(98)], [np.ones(98, bool)], 0.01)


def test_batch_is_as_sure_as_its_least_sure_sample_and_agrees_in_part() -> None:
    scores = np.log([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8], [0.4, 0.6]]).astype(np.float32)
    np.testing.assert_allclose(confidence_of(scores, False, 2), [0.7, 0.6], rtol=1e-6)
    np.testing.assert_allclose(confidence_of(np.exp(scores), True, 2), [0.7, 0.6], rtol=1e-6)
    np.testing.assert_array_equal(agreement_of(scores, scores[[0, 0, 1, 1]], 2), [0.5, 1])
    # Saturated scores are told apart in doubles, here as where a cascade runs.
    assert confidence_of(np.array([[0, 23]], np.float32), False, 1)[0] < 1


def test_what_is_not_a_number_is_never_sure() -> None:
    confidence = np.where(np.arange(400) % 2, 0.9, np.nan)
    assert calibrate_thresholds([confidence], [np.ones(400)], 0.01) == [0.9]
    assert calibrate_thresholds([confidence * np.nan], [np.ones(400)], 0.01) == [math.inf]


def test_labels_that_do_not_exclude_one_another_are_refused() -> None:
    scores = RANDOM.standard_normal((20, 4))
    assert are_probabilities(softmax(scores))
    assert not are_probabilities(scores)
    with pytest.raises(UnsupportedModelError, match="do not add up to 1"):
        are_probabilities(1 / (1 + np.exp(-scores)))
