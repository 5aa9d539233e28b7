"""Guessed tokens change how long a reply takes, and nothing else."""

import ctypes
from pathlib import Path

import numpy as np
import pytest
from support.talking_bundle import PROMPT, talking_bundle

from edgec.compiler import Generator, Sampling
from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.errors import UsageError
from edgec.compiler.generation.generator import Speculation, guesses_of
from edgec.compiler.generation.reply import read_together


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of 4-bit weights."""
    return talking_bundle(tmp_path_factory.mktemp("speculation"), runner=True)


def test_rows_of_several_tokens_have_the_bits_of_one_alone(bundle: Path) -> None:
    """Whatever stands beside a row, padding and wrong guesses among it."""
    session = Bundle.of(bundle).open(threads=1)
    ids = np.random.default_rng(7).integers(0, 33, 24)
    alone = []
    for token in ids:
        given = {"input_ids": np.array([[token]]), "last": np.array([[0]])}
        alone.append(session.run(given, "decode")["logits"][0, 0])
    session.reset()
    place = 0
    for count in (4, 1, 3, 4, 2, 4, 4, 2):
        tokens = np.zeros((1, 4), np.int64)
        tokens[0, :count] = ids[place : place + count]
        last = np.minimum(np.arange(4), count - 1)[np.newaxis]
        logits = session.run({"input_ids": tokens, "last": last}, "verify")["logits"][0]
        np.testing.assert_array_equal(logits[:count], alone[place : place + count])
        place += count
    assert place == len(ids)


def replies(
    bundle: Path, speculate: Speculation, sampling: Sampling
) -> tuple[list[int], list[list[object]], Generator]:
    generator = Generator(bundle, threads=1, speculate=speculate)
    reply = generator.generate(PROMPT, max_tokens=40, sampling=sampling, logprobs=2)
    pieces = [[piece.token, piece.text, piece.odds, piece.likeliest] for piece in reply]
    return reply.tokens, pieces, generator


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7, seed=3),
        Sampling(temperature=1.5, top_k=9, repetition_penalty=1.1, seed=5),
    ],
    ids=["greedy", "drawn", "drawn with a penalty"],
)
def test_replies_are_the_same_with_guesses(bundle: Path, sampling: Sampling) -> None:
    plain, pieces, off = replies(bundle, "off", sampling)
    assert off.guesses.runs == 0
    for speculate in (1, 3, "auto"):
        tokens, others, generator = replies(bundle, speculate, sampling)
        assert (tokens, others) == (plain, pieces)
        assert generator.cached == off.cached
        guesses = generator.guesses
        assert 0 <= guesses.right <= guesses.guessed
        assert (
            speculate == "auto"
        ) or 0 < guesses.runs <= guesses.guessed <= speculate * guesses.runs
    if not sampling.temperature:
        # The likeliest tokens of so small a model go in a circle.
        assert guesses.right > 0 or speculate == "auto"


def test_guesses_are_forgotten_before_something_else_is_read(bundle: Path, tmp_path: Path) -> None:
    circle = [3, 4, 5, 6] * 4
    first = Generator(bundle, threads=1, speculate=3)
    assert first.texts == 2
    first.read(circle)
    first.append(3)
    # Three more are in the cache now, which nobody took.
    assert (first.guesses.guessed, first.guesses.right) == (3, 0)
    first.save(tmp_path / "cache")
    first.append(4)
    assert first.guesses.right == 0
    other = Generator(bundle, threads=1, speculate="off")
    other.load(tmp_path / "cache")
    assert other.cached == [*circle, 3]
    other.append(4)
    logits = [g._functions.generator_logits(g._handle)[:33] for g in (first, other)]
    assert logits[0] == logits[1]
    first.append(9)
    first.append(5)
    other.append(9)
    other.append(5)
    logits = [g._functions.generator_logits(g._handle)[:33] for g in (first, other)]
    assert logits[0] == logits[1]


def test_texts_of_one_session_guess_alone(bundle: Path) -> None:
    prompts = (PROMPT, PROMPT[3:])
    alone = [Generator(bundle, threads=1).generate(p, max_tokens=20).complete() for p in prompts]
    first = Generator(bundle, threads=1, speculate=3)
    second = Generator(bundle, threads=1, beside=first, text=1, speculate=3)
    pairs = zip((first, second), prompts, (20, 6), strict=True)
    both = [g.generate(p, max_tokens=most) for g, p, most in pairs]
    while any(reply.reason is None for reply in both):
        read_together([reply for reply in both if reply.reason is None])
        for reply in both:
            next(reply, None)
    assert both[0].tokens == alone[0].tokens
    assert both[1].tokens == alone[1].tokens[:6]
    assert first.guesses.runs > 0


class Account(ctypes.Structure):
    _fields_ = (
        ("plain", ctypes.c_double),
        ("checked", ctypes.c_double),
        ("balance", ctypes.c_double * 3),
        ("kind", ctypes.c_int),
    )


def test_guesses_that_do_not_pay_are_given_up_and_tried_again(bundle: Path) -> None:
    library = ctypes.CDLL(str(bundle / "generation.so"))
    account, size = Account(), ctypes.c_size_t
    library.edgec_note_plain.argtypes = (ctypes.POINTER(Account), ctypes.c_double)
    library.edgec_note_checked.argtypes = (ctypes.POINTER(Account), size, ctypes.c_double)

    def pay(matching: int) -> bool:
        return bool(library.edgec_guesses_pay(ctypes.byref(account), size(matching)))

    def tried(steps: int, matching: int, right: int) -> int:
        """Return how often guesses are checked, of which so many are right each time."""
        checked = 0
        for _ in range(steps):
            if not pay(matching):
                library.edgec_note_plain(account, 100.0)
                continue
            checked += 1
            library.edgec_note_checked(account, matching, 150.0)
            for _ in range(right):
                library.edgec_note_right(ctypes.byref(account))
        return checked

    assert not pay(2), "how long a run takes is not known"
    library.edgec_note_plain(account, 100.0)
    assert pay(2)
    # Half a run of each try is lost, and a hundredth of all runs may be.
    assert 30 < tried(2000, 2, right=0) < 45
    assert not pay(2)
    assert pay(7), "longer ones have an account of their own"
    assert tried(100, 7, right=1) == 100, "two tokens in the time of one and a half pay"
    assert tried(200, 2, right=1) > 140, "and so they are found out again"


@pytest.mark.parametrize(
    ("tokens", "guesses"),
    [
        ([1, 2, 3, 4, 1, 2], [3, 4, 1]),
        ([1, 2, 3, 1, 2, 4, 1, 2], [4, 1, 2]),
        ([9, 1, 2, 3, 8, 1, 2, 4, 9, 1, 2], [3, 8, 1]),
        ([5, 5, 5], [5, 5, 5]),
        ([1, 2, 1, 2, 1], [2, 1, 2]),
        ([1, 2, 3, 1], []),
        ([7], []),
    ],
    ids=["once", "the latest", "the longest", "a circle of one", "of two", "one token", "nothing"],
)
def test_guesses_are_what_followed_before(
    bundle: Path, tokens: list[int], guesses: list[int]
) -> None:
    library = ctypes.CDLL(str(bundle / "generation.so"))
    library.edgec_guess.restype = ctypes.c_size_t
    size = ctypes.c_size_t
    given, found = (ctypes.c_int32 * len(tokens))(*tokens), (ctypes.c_int32 * 3)()
    matching = library.edgec_guess(given, size(len(tokens)), found, size(3))
    assert bool(matching) == bool(guesses)
    assert found[: len(guesses)] == guesses


@pytest.mark.parametrize("speculate", ["on", "-1", "1.5", "", "1025"])
def test_other_ways_to_guess_are_refused(speculate: str) -> None:
    with pytest.raises(UsageError, match="auto, off or a number up to 1024 is expected"):
        guesses_of(speculate)
