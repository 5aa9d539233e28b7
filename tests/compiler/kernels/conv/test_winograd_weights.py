"""Winograd's changes of basis in NumPy: they give a convolution, and what they round is known."""

from collections.abc import Sequence

import numpy as np
import pytest
from support.conv_workloads import conv_workload as workload
from support.onnx_graphs import random

from edgec.compiler.kernels.conv.cost import default_decision
from edgec.compiler.kernels.conv.dense import decision_for_weights
from edgec.compiler.kernels.conv.winograd_decision import TILE_SIZES, WinogradDecision
from edgec.compiler.kernels.conv.winograd_weights import (
    OUTPUT_CHANGE,
    PATCH_CHANGE,
    WINDOW_CHANGE,
    exact_enough,
    pack_winograd,
    rounding_errors,
)
from edgec.targets import load_target


@pytest.mark.parametrize("out", TILE_SIZES)
def test_the_matrices_compute_a_convolution(out: int) -> None:
    window, patch = np.random.default_rng(0).standard_normal((2, out + 2, out + 2))
    window = window[:3, :3]
    g, b, a = WINDOW_CHANGE[out], PATCH_CHANGE[out], OUTPUT_CHANGE[out]
    found = a @ ((g @ window @ g.T) * (b @ patch @ b.T)) @ a.T
    windows = np.lib.stride_tricks.sliding_window_view(patch, (3, 3))
    np.testing.assert_allclose(found, (windows * window).sum(axis=(2, 3)), atol=1e-13)


@pytest.mark.parametrize(
    ("out", "sums"),
    [
        (2, [1, 1.5, 0.5, 1]),
        (4, [1, -1 - 2**0.5 / 3, -1 + 2**0.5 / 3, 0.5 + 2**0.5 / 6, 0.5 - 2**0.5 / 6, 1]),
    ],
)
def test_weights_of_a_constant_window(out: int, sums: Sequence[float]) -> None:
    """G g G' of all ones: the sums of the rows of G, multiplied with each other."""
    decision = WinogradDecision(register_tiles=4, vectors=1, repeats=1, out=out)
    packed = pack_winograd(workload(), decision, np.ones((64, 64, 3, 3), np.float32), 16)
    assert packed.shape == (4, (out + 2) ** 2, 64, 16)
    np.testing.assert_allclose(packed[0, :, 0, 0], np.outer(sums, sums).ravel(), rtol=1e-6)


@pytest.mark.parametrize("channels", [16, 256])
def test_weights_of_random_sign_are_exact_enough(channels: int) -> None:
    winograd, direct = rounding_errors(random(16, channels, 3, 3), 4)
    # Neither is free of rounding, and the algorithm loses more than the direct sum.
    assert 1e-8 < direct < winograd < 4 * direct < 1e-4


def test_few_products_are_not() -> None:
    """A window of one tap: the direct sum does not round, the changes of basis do as always."""
    single = np.zeros((16, 64, 3, 3), np.float32)
    single[:, 3, 1, 1] = 0.5
    winograd, direct = rounding_errors(single, 4)
    assert direct == 0 < winograd
    machine, work = load_target("x86-64-v3"), workload(out_channels=16)
    default = default_decision(work, machine)
    assert isinstance(default, WinogradDecision)
    assert default.out == 4
    other = decision_for_weights(work, default, machine, single)
    assert getattr(other, "out", 2) == 2
    assert decision_for_weights(work, default, machine, random(16, 64, 3, 3)) == default


def test_an_output_channel_without_weights_has_no_error() -> None:
    weight = random(16, 32, 3, 3)
    weight[::2] = 0
    assert exact_enough(weight, 4)
    assert exact_enough(np.zeros_like(weight), 4)


def test_small_output_channels_count_as_much_as_large_ones() -> None:
    weight = random(8, 32, 3, 3)
    scaled = np.ldexp(weight, -np.arange(0, 80, 10).reshape(8, 1, 1, 1))
    np.testing.assert_allclose(rounding_errors(scaled, 4), rounding_errors(weight, 4), rtol=1e-6)
