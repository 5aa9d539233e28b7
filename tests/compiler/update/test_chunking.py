import hashlib

import numpy as np
import pytest

from edgec.compiler.update import chunking
from edgec.compiler.update.chunking import LONGEST, SHORTEST, average_for, chunk_lengths

DATA = np.random.default_rng(0).bytes(300_000)
AVERAGE = 4096


def chunks_of(data: bytes, average: int = AVERAGE) -> list[bytes]:
    chunks, place = [], 0
    for length in chunk_lengths(data, average):
        chunks.append(data[place : place + length])
        place += length
    return chunks


def cut_byte_by_byte(data: bytes, average: int) -> list[int]:
    """The rule as it is written, for the whole data's hash."""
    bits = average.bit_length() - 1
    value, start, lengths = 0, 0, []
    for place, byte in enumerate(data):
        value = (2 * value + int(chunking._GEAR[byte])) % 2**32
        length = place + 1 - start
        wanted = bits + 2 if length < average else bits - 2
        zeros = value >> (32 - wanted) == 0
        if (length >= average // SHORTEST and zeros) or length == average * LONGEST:
            lengths.append(length)
            start = place + 1
    return [*lengths, len(data) - start] if start < len(data) else lengths


@pytest.mark.parametrize("data", [DATA[:40_000], bytes(40_000), b"abc", b""])
def test_cuts_are_those_of_the_rule(data: bytes) -> None:
    assert list(chunk_lengths(data, AVERAGE)) == cut_byte_by_byte(data, AVERAGE)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(chunk_lengths(DATA, AVERAGE))
    monkeypatch.setattr(chunking, "_BLOCK", 1000)
    assert list(chunk_lengths(DATA, AVERAGE)) == expected


def test_lengths_are_within_bounds_and_near_the_average() -> None:
    lengths = list(chunk_lengths(DATA, AVERAGE))
    assert b"".join(chunks_of(DATA)) == DATA
    assert all(AVERAGE // SHORTEST <= length <= AVERAGE * LONGEST for length in lengths[:-1])
    assert AVERAGE / 2 < np.mean(lengths) < AVERAGE * 2


def test_an_insertion_changes_the_chunks_beside_it() -> None:
    known = {hashlib.sha256(chunk).digest() for chunk in chunks_of(DATA)}
    moved = DATA[:100_000] + b"new" + DATA[100_000:]
    new = [c for c in chunks_of(moved) if hashlib.sha256(c).digest() not in known]
    assert 1 <= len(new) <= 3
    # The negative control: cuts at fixed places move all that follows.
    fixed = {DATA[place : place + AVERAGE] for place in range(0, len(DATA), AVERAGE)}
    after = [moved[place : place + AVERAGE] for place in range(0, len(moved), AVERAGE)]
    assert sum(chunk not in fixed for chunk in after) > 40


def test_larger_files_have_larger_chunks() -> None:
    averages = [average_for(size) for size in (0, 1 << 20, 1 << 23, 1 << 32)]
    assert averages == [4096, 4096, 4096, 65536]
