"""Provide images as the original model wants them.

In NumPy, apart from what is embedded in the graph.
"""

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.frontend.preprocessing import EmbeddedPreprocessing, fit
from edgec.compiler.ir.signature import Tensors


def prepared(inputs: Tensors, embedded: EmbeddedPreprocessing | None) -> Tensors:
    """Return inputs of the original model for those of the compiled one.

    Args:
        inputs: the inputs of the compiled model, by name; images are uint8 [N, height, width, C].
        embedded: what the compiled model does with them; None if it takes what the original takes.
    """
    if embedded is None:
        return inputs
    how = embedded.preprocess
    channels, *wanted = embedded.wanted
    where = fit(embedded.size, (wanted[0], wanted[1]), how.resize)
    top, left, height, width = where.crop
    pixels = inputs[embedded.name][:, top : top + height, left : left + width].astype(np.float64)
    rows, columns = (
        _shrinking(before, after)
        for before, after in zip((height, width), where.resized, strict=True)
    )
    resized = np.einsum("ih,nhwc,jw->nijc", rows, pixels, columns, optimize=True)
    result = np.zeros((len(pixels), *wanted, channels))
    y, x = where.place
    result[:, y : y + where.resized[0], x : x + where.resized[1]] = resized
    if how.color == "bgr":
        result = result[..., ::-1]
    result = (result * how.scale - np.array(how.mean)) / np.array(how.std)
    if embedded.dtype == "uint8":
        result = np.clip(np.rint(result), 0, 255)
    if how.layout == "nchw":
        result = result.transpose(0, 3, 1, 2)
    return {**inputs, embedded.name: np.ascontiguousarray(result, embedded.dtype)}


def _shrinking(before: int, after: int) -> NDArray[np.float64]:
    """Return weights [after, before] of bilinear resizing that averages over what shrinks.

    As in Pillow: pixel `i` lies at `(i + 1/2) * before / after`, and the triangle around it is as
    wide as the step where that is more than a pixel.
    """
    step = before / after
    center = (np.arange(after)[:, None] + 0.5) * step
    distance = np.abs(np.arange(before) + 0.5 - center) / max(step, 1.0)
    weights = np.clip(1 - distance, 0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
