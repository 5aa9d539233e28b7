"""Tokens are chosen as NumPy says they should be."""

import ctypes
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from support.generation_library import generation_library

from edgec.compiler.errors import UsageError
from edgec.compiler.generation.sampling import Sampling

LOGITS = np.random.default_rng(0).normal(0, 2, 200).astype(np.float32)
MASK = 2**64 - 1


def uniforms(seed: int, count: int) -> list[float]:
    """Return numbers of [0, 1) by SplitMix64."""
    found, state = [], seed
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
        found.append(((mixed ^ (mixed >> 31)) >> 11) * 2.0**-53)
    return found


def expected(sampling: Sampling, noted: list[int], count: int) -> list[int]:
    logits = LOGITS.astype(np.float64)
    for token in noted:
        down = logits[token] < 0
        penalty = np.float32(sampling.repetition_penalty)
        logits[token] = logits[token] * penalty if down else logits[token] / penalty
    if sampling.temperature == 0:
        return [int(logits.argmax())] * count
    scaled = logits / np.float32(sampling.temperature)
    cuts = sampling.top_k or sampling.top_p < 1 or sampling.min_p
    order = np.argsort(-scaled, kind="stable") if cuts else np.arange(len(scaled))[::-1]
    order = order[: sampling.top_k or None]
    shares = np.exp(scaled[order] - scaled.max())
    before = np.concatenate([[0], np.cumsum(shares)[:-1]])
    keep = (before < np.float32(sampling.top_p) * shares.sum()) | (sampling.top_p == 1)
    keep &= shares >= np.float32(sampling.min_p)
    order, shares = order[keep], shares[keep]
    places = np.array(uniforms(sampling.seed, count)) * shares.sum()
    return [int(order[i]) for i in np.searchsorted(np.cumsum(shares), places, side="right")]


def chosen(
    sampling: Sampling, noted: list[int], count: int, logits: NDArray[np.float32]
) -> list[int]:
    functions = generation_library()
    sampler = functions.sampler_open(len(logits), sampling.struct())
    for token in noted:
        functions.sampler_note(sampler, token)
    pointer = logits.ctypes.data_as(ctypes.c_void_p)
    found = [functions.sample(sampler, pointer) for _ in range(count)]
    functions.sampler_reset(sampler)
    for token in noted:
        functions.sampler_note(sampler, token)
    assert found == [functions.sample(sampler, pointer) for _ in range(count)]
    functions.sampler_close(sampler)
    return found


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(repetition_penalty=1.5),
        Sampling(temperature=1.0, seed=1),
        Sampling(temperature=0.7, top_k=5, seed=2**63),
        Sampling(temperature=1.3, top_p=0.8, seed=3),
        Sampling(temperature=1.0, top_k=40, top_p=0.6, seed=4),
        Sampling(temperature=1.5, min_p=0.1, seed=5),
        Sampling(temperature=2.0, top_k=30, top_p=0.9, min_p=0.05, repetition_penalty=1.2, seed=6),
    ],
    ids=str,
)
def test_the_choice(sampling: Sampling) -> None:
    noted = [int(LOGITS.argmax()), int(LOGITS.argmin())]
    found = chosen(sampling, noted, 200, LOGITS)
    assert found == expected(sampling, noted, 200)
    if sampling.temperature:
        assert len(set(found)) > 1


def test_ties_go_to_the_first_and_rulings_out_are_kept() -> None:
    logits = np.array([math.nan, 1, 3, 3, -math.inf, math.inf], np.float32)
    assert chosen(Sampling(), [], 2, logits) == [2, 2]
    assert set(chosen(Sampling(temperature=50.0), [], 200, logits)) == {1, 2, 3}
    assert set(chosen(Sampling(temperature=1.0, top_k=1), [], 20, logits)) == {2}
    assert chosen(Sampling(), [], 1, np.full(4, math.nan, np.float32)) == [-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; 0 to 100"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"min_p": 1.5}, "min_p is 1.5; 0 to 1"),
        ({"seed": -1}, "seed is -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
    ],
)
def test_wrong_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampling(**settings)  # type: ignore[arg-type]
