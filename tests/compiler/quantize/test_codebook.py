"""Codebooks: what k-means finds, and how it is stored."""

import numpy as np
import pytest

from edgec.compiler.numerics.affine import sqnr_db
from edgec.compiler.quantize.codebook import fit_codebook

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.standard_normal((24, 99)).astype(np.float32)
ROWS *= np.linspace(0.1, 9, 24, dtype=np.float32)[:, None]


@pytest.mark.parametrize(("entries", "share"), [(16, 0.54), (256, 1.04)])
def test_bytes_are_indices_and_one_table(entries: int, share: float) -> None:
    packed_weight = fit_codebook(ROWS, entries)
    assert (
        packed_weight.size - packed_weight.table.nbytes - packed_weight.scales.nbytes
        <= share * ROWS.size
    )
    assert packed_weight.indices.shape == ROWS.shape
    assert len(np.unique(packed_weight.indices)) > 0.9 * entries


def test_entries_are_better_than_even_ones() -> None:
    """Uniform quantized values with the same number of values are the control."""
    packed_weight = fit_codebook(ROWS, 16)
    scales = np.abs(ROWS).max(axis=1, keepdims=True)
    even = np.rint(ROWS / scales * 7) / 7 * scales
    assert sqnr_db(ROWS, packed_weight.values) > sqnr_db(ROWS, even) + 1


def test_values_that_are_few_are_exact() -> None:
    rows = RANDOM.choice(np.float32([-1, -0.25, 0, 0.5, 1]), (8, 40))
    rows[:, 0] = 1
    assert np.allclose(fit_codebook(rows, 16).values, rows, atol=1e-6)


def test_what_is_important_is_nearer() -> None:
    importance = np.where(np.arange(99) < 30, 100.0, 0.01)[None]
    rows = np.where(np.arange(99) < 30, 0.1 * ROWS, ROWS)
    plain, weighted = fit_codebook(rows, 16), fit_codebook(rows, 16, importance)
    error = [
        np.square(packed_weight.values - rows)[:, :30].mean() for packed_weight in (plain, weighted)
    ]
    assert error[1] < 0.2 * error[0]


def test_zeros_stay_zero() -> None:
    rows = np.where(RANDOM.random(ROWS.shape) < 0.6, 0, ROWS).astype(np.float32)
    assert not fit_codebook(rows, 16).values[rows == 0].any()


def test_other_indices_are_stored_in_the_same_form() -> None:
    packed_weight = fit_codebook(ROWS, 16)
    other = (packed_weight.indices + 1) % 16
    assert np.array_equal(packed_weight.with_indices(other).indices, other)
