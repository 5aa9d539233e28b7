"""Both systems of least squares have the same solution."""

import numpy as np
import pytest

from edgec.compiler.compress.least_squares import Fit, PatchFit, SumFit, fit_of

LENGTH, OUTPUTS, PATCHES, BATCHES = 24, 5, 3, 3


def seen(fit: Fit, groups: int, seed: int) -> Fit:
    """Return a fit that has seen batches of patches, inputs and outputs with means."""
    values = np.random.default_rng(seed)
    for _ in range(BATCHES):
        x = values.standard_normal((groups, LENGTH, PATCHES)).astype(np.float32) + 1
        fit.add(x, values.standard_normal((groups, PATCHES, OUTPUTS)).astype(np.float32) + 2)
    return fit


@pytest.mark.parametrize("about_mean", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_few_patches_give_the_weights_that_sums_give(about_mean: bool, groups: int) -> None:
    old = np.random.default_rng(2).standard_normal((groups, OUTPUTS, LENGTH))
    dampings = (0.001, 1.0)
    found = []
    for kind in (SumFit, PatchFit):
        fit, held_out = (seen(kind(about_mean), groups, seed) for seed in (0, 1))
        candidates = list(fit.adjusted(old, dampings))
        best = held_out.nearest([old, *candidates])
        found.append((*candidates, best, fit.bias(best)))
    for by_sums, by_patches in zip(*found, strict=True):
        np.testing.assert_allclose(by_patches, by_sums, rtol=1e-4, atol=1e-5)
    assert np.abs(found[0][0] - found[0][1]).max() > 0.01
    assert np.abs(found[0][0] - old).max() > 0.01


def test_the_smaller_system_is_solved() -> None:
    assert isinstance(fit_of(2304, 96, about_mean=True), PatchFit)
    assert isinstance(fit_of(64, 4096, about_mean=True), SumFit)
