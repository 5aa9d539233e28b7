"""Provide the channel-blocked layout of images: [N, C, H, W] -> [N, ceil(C / c), H, W, c]."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]


def image(shape: Shape) -> tuple[int, int, int, int]:
    """Return [N, C, H, W] of a tensor of rank 3 or 4: a signal is an image of one line.

    >>> image((1, 8, 100))
    (1, 8, 1, 100)
    """
    n, channels, *plane = shape
    return (n, channels, plane[0], plane[1]) if len(plane) == 2 else (n, channels, 1, plane[0])


def blocked_shape(shape: Shape, lanes: int) -> Shape:
    """Return shape in memory of an image or signal.

    >>> blocked_shape((1, 9, 4, 5), 8)
    (1, 2, 4, 5, 8)
    """
    n, channels, h, w = image(shape)
    return (n, math.ceil(channels / lanes), h, w, lanes)


def block_array(array: NDArray[Any], lanes: int) -> NDArray[Any]:
    """Return an image in blocks, channels past the last 0."""
    n, channels, h, w = image(array.shape)
    blocks = math.ceil(channels / lanes)
    padded = np.zeros((n, blocks * lanes, h, w), array.dtype)
    padded[:, :channels] = array.reshape(n, channels, h, w)
    split = padded.reshape(n, blocks, lanes, h, w)
    return np.ascontiguousarray(split.transpose(0, 1, 3, 4, 2))


def by_channel(values: NDArray[Any], lanes: int) -> NDArray[Any]:
    """Return one value for each channel, [channels] filled up to whole blocks."""
    return block_array(values.reshape(1, -1, 1), lanes).reshape(-1)
