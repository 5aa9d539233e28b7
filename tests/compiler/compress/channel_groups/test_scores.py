"""What channels cost is exact, however many have gone."""

import numpy as np

from edgec.compiler.compress.channel_groups.scores import (
    DAMPING,
    SMALL,
    _State,
    corrected_error,
    inverse_of,
)

INPUTS, CHANNEL = 48, 3


def moments(size: int) -> np.ndarray:
    """Return second moments of inputs that are alike, [size, size]."""
    x = np.random.default_rng(0).standard_normal((size, 4 * size))
    return np.asarray(x @ x.T / (4 * size) + 0.5, np.float32)


def test_the_inverse_is_that_of_numpy() -> None:
    matrix = moments(2 * SMALL + 7)
    expected = np.linalg.inv(matrix.astype(np.float64))
    np.testing.assert_allclose(inverse_of(matrix), expected, rtol=1e-3, atol=1e-3)
    # Rounding can make moments indefinite.
    indefinite = np.diag(np.array([2, -1], np.float32))
    np.testing.assert_allclose(inverse_of(indefinite), np.diag([0.5, -1]))


def test_channels_that_went_one_by_one_cost_what_they_cost_together() -> None:
    rows = np.random.default_rng(1).standard_normal((1, 5, INPUTS)).astype(np.float32)
    second = moments(INPUTS)[None]
    channels = list(np.arange(INPUTS).reshape(-1, CHANNEL))
    left = list(range(len(channels)))
    state, total, gone = _State(rows, second, channels), 0.0, []
    while len(left) > 2:
        saliencies = state.saliencies(left)
        chosen = left.pop(int(saliencies.argmin()))
        found = state.remove([chosen])
        np.testing.assert_allclose(found, saliencies.min(), rtol=1e-3)
        total += found
        gone.append(chosen)
        together = corrected_error(rows, second, np.concatenate([channels[i] for i in gone]))
        np.testing.assert_allclose(total, together, rtol=1e-3)
    # Inputs that went are no longer there.
    assert state.rows.shape[2] < INPUTS / 2
    # It is the error of least squares over the inputs that are left.
    kept = np.concatenate([channels[i] for i in left])
    damped = second[0].astype(np.float64)
    damped += DAMPING * np.diagonal(damped).mean() * np.eye(INPUTS)
    product = damped @ rows[0].T
    best = np.linalg.solve(damped[np.ix_(kept, kept)], product[kept])
    error = np.sum(rows[0].T * product) - np.sum(best * product[kept])
    energy = np.sum(rows[0].T * (second[0] @ rows[0].T))
    np.testing.assert_allclose(total, error / energy, rtol=1e-2)
