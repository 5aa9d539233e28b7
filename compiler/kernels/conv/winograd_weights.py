"""Provide the changes of basis of Winograd's algorithm, the weights after theirs, and its error.

The matrices are those of `winograd.py`, which derives them and spells B' and A' in code.

F(4x4, 3x3) loses digits: its changes of basis multiply by up to 2.5 and subtract what they have
added. By how much depends on the weights, so `exact_enough` measures it on those of the layer:
root mean square errors against double precision, for random activations of unit scale, beside those
of the direct sum in float32. Weights of random sign lose a factor of 1.5 (512 input channels) to
2.5 (16), equal weights 2 to 5, sums of a few products, which the direct sum hardly rounds, 6 and
more. F(6x6, 3x3) loses 7 to 16 for random signs with the points of the literature (0, 1, -1, 2, -2,
1/2, -1/2): it has no kernel.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.kernels.conv.winograd_decision import WinogradDecision
from edgec.compiler.kernels.conv.workload import ConvWorkload

R, S = math.sqrt(0.5), math.sqrt(2)
WINDOW_CHANGE = {
    2: np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
    4: np.array(
        [
            [6, 0, 0],
            [-4, -4 * R, -2],
            [-4, 4 * R, -2],
            [1, S, 2],
            [1, -S, 2],
            [0, 0, 6],
        ]
    )
    / 6,
}
"""G by rows of output pixels in a tile."""
PATCH_CHANGE = {
    2: np.array([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    4: np.array(
        [
            [1, 0, -2.5, 0, 1, 0],
            [0, -2 * R, -2, R, 1, 0],
            [0, 2 * R, -2, -R, 1, 0],
            [0, -R, -0.5, S, 1, 0],
            [0, R, -0.5, -S, 1, 0],
            [0, 1, 0, -2.5, 0, 1],
        ]
    ),
}
"""B' likewise."""
OUTPUT_CHANGE = {
    2: np.array([[1.0, 1, 1, 0], [0, 1, -1, -1]]),
    4: np.array(
        [
            [1, 1, 1, 1, 1, 0],
            [0, R, -R, S, -S, 0],
            [0, R**2, R**2, S**2, S**2, 0],
            [0, R**3, -(R**3), S**3, -(S**3), 1],
        ]
    ),
}
"""A' likewise."""

# Times the error of the direct sum that are allowed. Two right implementations in float32
# differ by as much: a sum of 64 input channels one after the other loses 5 times what a pairwise
# one does, of 256 channels 9 times, of 512 channels 12 times.
ERROR_RATIO = 6.0
# What the error is measured on: output channels, and tiles of each. 512 errors of F(4x4, 3x3) give
# their root mean square within a tenth.
SAMPLED_CHANNELS = 8
SAMPLED_TILES = 4


def pack_winograd(
    workload: ConvWorkload, decision: WinogradDecision, weight: NDArray[Any], c: int
) -> NDArray[Any]:
    """Return G g G' of every window, in the order in which the kernel reads it.

    Args:
        workload: the convolution.
        decision: its register tile.
        weight: [out_channels, in_channels, 3, 3].
        c: lanes.

    Returns:
        [tiles of output channels, positions, in_channels, vectors * c], zero past the last channel.
    """
    width, positions = decision.vectors * c, decision.positions
    g = WINDOW_CHANGE[decision.out]
    tiles = math.ceil(workload.out_channels / width)
    changed = np.einsum("ai,ocij,bj->oabc", g, weight.astype(np.float64), g, optimize=True)
    padded = np.zeros((tiles * width, positions, workload.in_channels), weight.dtype)
    padded[: workload.out_channels] = changed.reshape(-1, positions, workload.in_channels)
    order = padded.reshape(tiles, width, positions, workload.in_channels)
    return np.ascontiguousarray(order.transpose(0, 2, 3, 1))


def winograd_size(workload: ConvWorkload, decision: WinogradDecision, c: int) -> int:
    """Return values in a packed weight."""
    width = decision.vectors * c
    return (
        math.ceil(workload.out_channels / width) * decision.positions * workload.in_channels * width
    )


def exact_enough(weight: NDArray[np.float32], out: int) -> bool:
    """Return whether tiles of `out` rows lose at most `ERROR_RATIO` times what the direct sum does.

    Args:
        weight: [out_channels, in_channels, 3, 3].
        out: rows and columns of output pixels in a tile.
    """
    winograd, direct = rounding_errors(weight, out)
    return winograd <= ERROR_RATIO * direct


def rounding_errors(weight: NDArray[np.float32], out: int) -> tuple[float, float]:
    """Return root mean square errors by Winograd's algorithm and by the direct sum.

    Both add the products of one input channel after the other in float32, as the kernels do; the
    error of an output channel is a part of its own root mean square.

    Args:
        weight: [out_channels, in_channels, 3, 3]; a sample of the output channels is taken.
        out: rows and columns of output pixels in a tile.
    """
    nonzero = np.flatnonzero(np.abs(weight).max(axis=(1, 2, 3)) > 0)
    if not nonzero.size:
        return 0.0, 0.0
    count = min(SAMPLED_CHANNELS, nonzero.size)
    w = weight[nonzero[np.linspace(0, nonzero.size - 1, count).astype(int)]]
    patches = _activations(w.shape[1], out + 2)
    windows = np.lib.stride_tricks.sliding_window_view(patches, (3, 3), axis=(2, 3))
    exact = np.einsum(
        "tcyxij,ocij->otyx", windows.astype(np.float64), w.astype(np.float64), optimize=True
    )
    scale = np.sqrt(np.square(exact).mean(axis=(1, 2, 3), keepdims=True))

    def error(found: NDArray[np.float32]) -> float:
        return float(np.sqrt(np.square((found - exact) / scale).mean()))

    return error(_by_winograd(patches, w, out)), error(_by_direct_sum(windows, w))


@lru_cache(maxsize=8)
def _activations(channels: int, patch: int) -> NDArray[np.float32]:
    """Return random patches, [tiles, channels, patch, patch]."""
    shape = (SAMPLED_TILES, channels, patch, patch)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _by_direct_sum(windows: NDArray[np.float32], w: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sum over channels and taps, [o, tiles, y, x], one product after the other."""
    tiles, channels, rows, columns = windows.shape[:4]
    x = windows.transpose(1, 4, 5, 0, 2, 3).reshape(channels * 9, 1, -1)
    # A reduction over the first axis adds whole rows, one after the other.
    total = np.add.reduce(x * w.transpose(1, 2, 3, 0).reshape(channels * 9, -1, 1), axis=0)
    return np.asarray(total.reshape(-1, tiles, rows, columns))


def _by_winograd(
    patches: NDArray[np.float32], w: NDArray[np.float32], out: int
) -> NDArray[np.float32]:
    """Return A' [sum over channels of (G g G') * (B' d B)] A, [o, tiles, y, x]."""
    g, b, a = WINDOW_CHANGE[out], np.float32(PATCH_CHANGE[out]), np.float32(OUTPUT_CHANGE[out])
    u = np.einsum("pi,ocij,qj->cpqo", g, w.astype(np.float64), g, optimize=True).astype(np.float32)
    v = np.einsum("qj,ctpj->cpqt", b, np.einsum("pi,tcij->ctpj", b, patches))
    products = np.add.reduce(u[..., :, None] * v[..., None, :], axis=0)
    result = np.einsum("xq,yqot->otyx", a, np.einsum("yp,pqot->yqot", a, products))
    return np.asarray(result)
