"""Metrics, each at a value that is known from elsewhere."""

from typing import Any

import numpy as np
import pytest

from edgec.compiler.errors import BadInputError, UsageError
from edgec.compiler.evaluate.metrics import (
    CharacterErrors,
    MacroF1,
    MeanAveragePrecision,
    TopK,
    greedy_texts,
    make_metric,
)

SCORES = {"y": np.float32([[9, 1, 0], [1, 9, 8], [5, 6, 7], [1, 2, 3]])}


def test_top_k_counts_the_best_classes() -> None:
    # Best first: 0 1 2, 1 2 0, 2 1 0, 2 1 0.
    for k, share in ((1, 0.25), (2, 0.75), (3, 1.0)):
        metric = TopK(k)
        metric.add(SCORES, np.array([0, 2, 1, 0]))
        assert metric.result() == {f"top{k}": share}


def test_f1_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    random = np.random.default_rng(0)
    scores, labels = random.random((50, 4), np.float32), random.integers(0, 4, 50)
    metric = MacroF1()
    metric.add({"y": scores[:20]}, labels[:20])
    metric.add({"y": scores[20:]}, labels[20:])
    expected = f1_score(labels, scores.argmax(axis=1), average="macro")
    assert metric.result()["f1"] == pytest.approx(expected)


def test_character_errors_count_edits_over_characters() -> None:
    def steps(classes: list[int]) -> Any:
        return np.eye(6, dtype=np.float32)[classes]

    # "kitten" and "sitting" are three edits apart; here 1-4-2-2-3 and 5-4-2-2-4: two.
    outputs = {"y": np.stack([steps([1, 4, 2, 0, 2, 3]), steps([1, 1, 0, 0, 0, 0])])}
    assert greedy_texts(outputs) == [[1, 4, 2, 2, 3], [1]]
    metric = CharacterErrors()
    metric.add(outputs, np.array([[5, 4, 2, 2, 4], [1, -1, -1, -1, -1]]))
    assert metric.result() == {"cer": 2 / 6, "texts": 0.5}


def test_a_model_stands_in_for_labels() -> None:
    metric = make_metric("top1")
    metric.add(SCORES, metric.truth_of(SCORES))
    assert metric.result() == {"top1": 1.0}
    boxes = {"y": np.float32([[[0, 0, 4, 4, 0.9, 1], [1, 1, 2, 2, 0.1, 0]]])}
    precision = MeanAveragePrecision()
    precision.add(boxes, precision.truth_of(boxes))
    # The box that nobody is sure of is of a class that does not occur.
    assert precision.result() == pytest.approx({"map": 1.0, "map50": 1.0})


@pytest.mark.parametrize("name", ["top1", "top5", "f1"])
def test_a_label_that_is_no_class_of_the_model(name: str) -> None:
    outputs = {"y": np.eye(2, 6, dtype=np.float32)}
    make_metric(name).add(outputs, np.array([0, 5]))
    for label in (6, -1):
        message = f"a label is {label}, and the model has 6 classes: 0 to 5 are expected"
        with pytest.raises(BadInputError, match=message):
            make_metric(name).add(outputs, np.array([0, label]))


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("top1", np.zeros((3, 2)), "needs a whole number for each sample"),
        ("f1", np.zeros(3), "needs a whole number for each sample"),
        ("cer", np.zeros(3, int), "needs the classes of each text's characters"),
        ("map", np.zeros((3, 5), int), "needs boxes as labels"),
    ],
)
def test_labels_of_another_kind(name: str, labels: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        make_metric(name).check(labels)


def test_names() -> None:
    with pytest.raises(UsageError, match="did you mean top1"):
        make_metric("topp1")
    with pytest.raises(UsageError, match="has no function nothing"):
        make_metric("math:nothing")
    own = make_metric("math:hypot")
    with pytest.raises(UsageError, match="--metric math:hypot failed"):
        own.add(SCORES, None)


def test_outputs_that_hold_no_answers() -> None:
    for name in ("top1", "cer", "map"):
        with pytest.raises(BadInputError, match="--metric"):
            make_metric(name).add({"y": np.zeros(3, np.int64)}, [])
