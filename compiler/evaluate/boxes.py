"""Find boxes in the outputs of detectors, and measure how good they are as COCO does.

The definition is that of Lin et al. 2014, "Microsoft COCO: Common Objects in Context", and its
evaluation (https://cocodataset.org/#detection-eval): a box found is right if it overlaps a true box
of its class, that no surer one took, by at least a threshold; precision is made monotone and read
at 101 recalls; the mean goes over the ten thresholds 0.50, 0.55 … 0.95 and all classes that occur.
Areas and crowds are not distinguished.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import BadInputError
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.ir.storage import is_float

Array = NDArray[Any]

OVERLAPS = tuple(0.5 + 0.05 * step for step in range(10))
RECALLS = np.linspace(0, 1, 101)
# Boxes of an image that count, the surest.
MAX_BOXES = 100
# Ultralytics' defaults of `val`: what is suppressed by a surer box, and what is not looked at.
SUPPRESS_OVERLAP = 0.7
LOWEST_SCORE = 0.001
MAX_CANDIDATES = 3000


def overlaps(one: Array, other: Array) -> Array:
    """Return intersection over union of boxes [N, 4] and [M, 4] as [N, M].

    >>> overlaps(np.array([[0, 0, 2, 2.0]]), np.array([[1, 0, 3, 2.0]])).round(3)
    array([[0.333]])
    """
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:4], other[None, :, 2:4])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    areas = [np.clip(b[:, 2:4] - b[:, :2], 0, None).prod(axis=-1) for b in (one, other)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.asarray(np.where(union > 0, shared / np.where(union > 0, union, 1), 0))


def detections_of(outputs: Tensors) -> list[Array]:
    """Return the boxes of each image [K, 6]: left, top, right, bottom, score, class.

    An output [N, K, 6] holds them as they are; one [N, 4 + classes, anchors], as YOLOv8 writes it,
    holds middle, width, height and scores, and is suppressed here.

    Raises:
        BadInputError: no output is of either kind.
    """
    arrays = [np.asarray(a) for a in outputs.values() if is_float(a.dtype) and a.ndim == 3]
    for array in arrays:
        if array.shape[-1] == 6:
            return [image[image[:, 4] >= LOWEST_SCORE].astype(np.float64) for image in array]
    for array in arrays:
        if 5 <= array.shape[1] < array.shape[2]:
            return [_suppressed(image) for image in array.astype(np.float64)]
    raise BadInputError(
        "--metric map needs an output [N, boxes, 6] (left, top, right, bottom, score, class), or "
        "[N, 4 + classes, anchors] as YOLOv8 has it"
    )


def _suppressed(image: Array) -> Array:
    """Return boxes of one image without those that a surer one of their class overlaps."""
    middle, size, scores = image[:2].T, image[2:4].T, image[4:].T
    classes, best = scores.argmax(axis=1), scores.max(axis=1)
    order = np.argsort(-best, kind="stable")[:MAX_CANDIDATES]
    order = order[best[order] >= LOWEST_SCORE]
    corners = np.concatenate([middle - size / 2, middle + size / 2], axis=1)
    kept: list[int] = []
    for candidate in order:
        mine = [k for k in kept if classes[k] == classes[candidate]]
        if mine and overlaps(corners[[candidate]], corners[mine]).max() > SUPPRESS_OVERLAP:
            continue
        kept.append(int(candidate))
        if len(kept) == MAX_BOXES:
            break
    return np.concatenate([corners[kept], best[kept, None], classes[kept, None]], axis=1)


def truths_of(labels: Any) -> list[Array]:
    """Return the true boxes of each image [M, 5], class first, without those that fill up."""
    return [np.asarray(image, np.float64)[np.asarray(image)[:, 0] >= 0] for image in labels]


class MeanPrecision:
    """Sums up boxes of images, and gives the mean of their average precision."""

    def __init__(self) -> None:
        self.found: list[Array] = []
        self.true: list[Array] = []

    def add(self, found: Array, true: Array) -> None:
        """Take the boxes of one image, [K, 6] and [M, 5]."""
        order = np.argsort(-found[:, 4], kind="stable")[:MAX_BOXES]
        self.found.append(found[order])
        self.true.append(true)

    def mean(self, thresholds: Sequence[float] = OVERLAPS) -> float:
        """Return the mean over classes that occur and thresholds; 0 where nothing occurs."""
        classes = np.unique(np.concatenate([t[:, 0] for t in self.true])) if self.true else ()
        values = [self._average(number, limit) for number in classes for limit in thresholds]
        return float(np.mean(values)) if values else 0.0

    def _average(self, number: float, limit: float) -> float:
        """Return the average precision of one class at one threshold."""
        scores: list[float] = []
        right: list[bool] = []
        total = 0
        for found, true in zip(self.found, self.true, strict=True):
            mine = true[true[:, 0] == number][:, 1:]
            total += len(mine)
            boxes = found[found[:, 5] == number]
            shared = overlaps(boxes, mine)
            free = np.ones(len(mine), bool)
            for row, box in zip(shared, boxes, strict=True):
                scores.append(float(box[4]))
                best = int(np.where(free, row, -1).argmax()) if free.any() else -1
                hit = best >= 0 and row[best] >= limit
                right.append(bool(hit))
                if hit:
                    free[best] = False
        if not scores:
            return 0.0
        order = np.argsort(-np.array(scores), kind="stable")
        hits = np.cumsum(np.array(right)[order])
        recall = hits / total
        precision = hits / np.arange(1, len(hits) + 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(recall, RECALLS, side="left")
        inside = places < len(precision)
        return float(np.where(inside, precision[np.minimum(places, len(precision) - 1)], 0).mean())
