"""What is counted, and how many samples it takes."""

import numpy as np
import pytest

from edgec.compiler.calibration.accuracy import (
    Comparison,
    batches_to_resolve,
    same_top1,
    score_text,
)
from edgec.compiler.errors import UsageError
from edgec.compiler.ir.signature import TensorSpec

TEXTS = TensorSpec("classes", (2, 8, 5), "float32")


def test_time_steps_are_counted_one_by_one() -> None:
    """One wrong time step of each text: no text is right, and 7 of 8 positions are."""
    expected = np.eye(5, dtype=np.float32)[np.zeros((2, 8), int)]
    actual = expected.copy()
    actual[:, 3] = np.eye(5)[4]
    comparison = Comparison(same_top1)
    for _ in range(3):
        comparison.add({"classes": expected}, {"classes": actual})
    result = comparison.result()
    assert (result.score, result.positions) == (0.875, 3 * 2 * 8)
    text = score_text(result.score, result.positions, "")
    assert text == "the largest class agrees in 87.50% of 48 positions"


def test_a_metric_of_ones_own_is_named() -> None:
    comparison = Comparison(lambda expected, actual: 0.5)
    comparison.add({"y": np.ones((1, 3))}, {"y": np.ones((1, 3))})
    result = comparison.result()
    assert result.positions == 0
    assert score_text(result.score, result.positions, "mine:words") == "mine:words 0.5000"


def test_without_classes_nothing_is_said() -> None:
    comparison = Comparison(same_top1)
    comparison.add({"y": np.ones((1, 4, 1))}, {"y": np.zeros((1, 4, 1))})
    assert score_text(comparison.result().score, comparison.result().positions, "") == ""


@pytest.mark.parametrize(
    ("bar", "batches"), [(0.01, 7), (0.0625, 1), (0.05, 2), (0.001, 63), (0, 1), (1, 1)]
)
def test_a_bar_takes_so_many_batches(bar: float, batches: int) -> None:
    assert batches_to_resolve(bar, [TEXTS]) == batches


def test_a_bar_needs_classes() -> None:
    with pytest.raises(UsageError, match="holds classes"):
        batches_to_resolve(0.01, [TensorSpec("boxes", (1, 4, 1), "float32")])
