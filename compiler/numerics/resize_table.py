"""Decide which pixels a resized pixel is made of, and with which weights."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


def resize_table(
    before: int, after: int, method: str, coordinates: str, rounding: str
) -> tuple[NDArray[np.int32], NDArray[np.float32]] | None:
    """Return source positions and weights of each output position along one dimension.

    Args:
        before: input extent.
        after: output extent.
        method: `nearest_neighbor` or `linear`.
        coordinates: where an output position lies in the input: `half_pixel`,
            `pytorch_half_pixel`, `asymmetric` or `align_corners`.
        rounding: the rounding of nearest: `floor`, `ceil`, `round_prefer_floor`,
            `round_prefer_ceil`, `round` (which prefers even).

    Returns:
        Positions and weights, both [after, taps]; None for a mode that is not known here.
    """
    at = np.arange(after, dtype=np.float64)
    scale = before / after
    if coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and after > 1):
        at = (at + 0.5) * scale - 0.5
    elif coordinates == "pytorch_half_pixel":
        at = at * 0
    elif coordinates == "asymmetric":
        at = at * scale
    elif coordinates == "align_corners":
        at = at * ((before - 1) / (after - 1) if after > 1 else 0)
    else:
        return None
    if method == "nearest_neighbor":
        if rounding not in _ROUNDING:
            return None
        nearest = np.clip(_ROUNDING[rounding](at), 0, before - 1)
        return nearest.astype(np.int32)[:, None], np.ones((after, 1), np.float32)
    if method != "linear":
        return None
    low = np.floor(at)
    share = at - low
    positions = np.clip(np.stack([low, low + 1], axis=1), 0, before - 1)
    weights = np.stack([1 - share, share], axis=1)
    return positions.astype(np.int32), weights.astype(np.float32)


_ROUNDING: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "": np.rint,
    "ceil": np.ceil,
    "floor": np.floor,
    "round": np.rint,
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
}
