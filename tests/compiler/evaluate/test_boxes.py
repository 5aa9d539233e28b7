"""Boxes as detectors write them, and their average precision as COCO defines it."""

import numpy as np
import pytest

from edgec.compiler.evaluate.boxes import MeanPrecision, detections_of, overlaps


def test_a_precision_worked_by_hand() -> None:
    """Surest first: right, wrong, right, of two true boxes.

    Precision is 1 up to recall 0.5 and 2/3 up to 1: 51 of the 101 recalls are at 1, 50 at 2/3.
    """
    sums = MeanPrecision()
    true = np.array([[0, 0, 0, 10, 10], [0, 20, 20, 30, 30.0]])
    found = np.array([[0, 0, 10, 10, 0.9, 0], [50, 50, 60, 60, 0.8, 0], [20, 20, 30, 30, 0.7, 0.0]])
    sums.add(found, true)
    assert sums.mean() == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_the_overlap_decides_by_threshold() -> None:
    """Two thirds of overlap are right up to the threshold 0.65: four of ten."""
    sums = MeanPrecision()
    sums.add(np.array([[0, 0, 10, 8, 0.9, 0]]), np.array([[0, 0, 0, 10, 12.0]]))
    assert sums.mean() == pytest.approx(0.4)
    assert sums.mean((0.5,)) == 1


def test_a_true_box_is_found_once_and_classes_count_alike() -> None:
    sums = MeanPrecision()
    box = [0, 0, 10, 10]
    sums.add(np.array([[*box, 0.9, 0], [*box, 0.8, 0.0]]), np.array([[0, *box], [1, *box]]))
    # Class 0 is found, the second box comes after full recall; class 1 is not.
    assert sums.mean() == pytest.approx(0.5)


def test_as_pycocotools() -> None:
    """Known value: pycocotools 2.0.11 on these boxes gives the same to the last digit."""
    random = np.random.default_rng(7)
    sums = MeanPrecision()
    for _ in range(6):
        true, found = [], []
        for _ in range(random.integers(1, 6)):
            number = float(random.integers(0, 3))
            x, y, w, h = (*random.uniform(0, 300, 2), *random.uniform(10, 90, 2))
            true.append([number, x, y, x + w, y + h])
            corners = np.array(true[-1][1:]) + random.normal(0, 4, 4)
            found.append([*corners, random.random(), number])
        sums.add(np.array(found), np.array(true))
    assert sums.mean() == pytest.approx(KNOWN_MAP, abs=1e-12)
    assert sums.mean((0.5,)) == pytest.approx(KNOWN_MAP50, abs=1e-12)


KNOWN_MAP, KNOWN_MAP50 = 0.41451078441177447, 0.8208820882088208


def test_yolo_writes_middles_and_sizes() -> None:
    """Anchors in columns; of two boxes on one spot the surer stays."""
    anchors = np.zeros((1, 6, 8), np.float32)
    anchors[0, :, 0] = [5, 5, 10, 10, 0.1, 0.9]
    anchors[0, :, 1] = [5, 6, 10, 10, 0.2, 0.8]
    anchors[0, :, 2] = [50, 50, 4, 2, 0.7, 0.1]
    (boxes,) = detections_of({"y": anchors})
    assert boxes[:2].tolist() == pytest.approx(
        np.array([[0, 0, 10, 10, 0.9, 1], [48, 49, 52, 51, 0.7, 0]]), abs=1e-6
    )
    assert len(boxes) == 2


def test_boxes_without_an_area_overlap_nothing() -> None:
    point = np.array([[1.0, 1, 1, 1]])
    assert overlaps(point, point).tolist() == [[0.0]]
