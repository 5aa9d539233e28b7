"""Reduce the lanes of a vector to one value."""

from collections.abc import Callable
from typing import Any

from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.vectors import lanes_of, shuffle


def reduce_lanes(e: Emitter, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Return what all lanes of a vector make together: halves are combined, then their halves.

    Args:
        e: where to.
        vector: lanes by a power of two.
        combine: of two vectors, or of two scalars; associative.
    """
    lanes = lanes_of(vector)
    while lanes > 1:
        lanes //= 2
        halves = [
            e.let("half", shuffle([vector], range(start, start + lanes))) for start in (0, lanes)
        ]
        vector = e.let("combined", combine(*halves))
    return vector
