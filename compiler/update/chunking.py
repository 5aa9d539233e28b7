"""Cut data where its content says so, so that an insertion moves no cut but those beside it.

The rule is that of FastCDC (Xia et al., USENIX ATC 2016, sections 3.2 to 3.5): a Gear hash

    h[i] = 2 h[i-1] + gear[data[i]]  mod 2^32

is cut behind where some of its bits are zeros: two more bits than the average asks for up to the
average length, two fewer beyond it (normalized chunking, level 2), never before the least length.
The last 32 bytes decide h[i], since older ones are shifted out. So it is computed here for all
positions at once, h over 2 k bytes being h[i] + 2^k h[i-k] over k, and not anew for each chunk.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

LEAST_AVERAGE = 1 << 12
MOST_AVERAGE = 1 << 16
# A chunk is a quarter to eight times of the average, if nothing ends before.
SHORTEST = 4
LONGEST = 8
_WINDOW = 32
_LEVEL = 2
# Hashes of so many positions are computed at once [bytes].
_BLOCK = 1 << 20
# What a chunk costs, by what it adds to a download: a line in the release's description for a board
# that has another release is next to nothing, its own request and frame are something [bytes].
_ENTRY_BYTES = 2


def _gear() -> NDArray[np.uint32]:
    """Return 256 words that look random and never change."""
    digests = b"".join(hashlib.sha256(b"gear %d" % byte).digest()[:4] for byte in range(256))
    return np.frombuffer(digests, ">u4").astype(np.uint32)


_GEAR = _gear()


def average_for(size: int) -> int:
    """Return the average length of chunks for a file of a size, both in bytes; a power of two.

    A delta pays for about one chunk more than what changed, a whole download for `size / average`
    chunks that each cost something: together least at sqrt(cost * size).

    >>> average_for(18 << 20), average_for(90 << 20), average_for(0)
    (8192, 16384, 4096)
    """
    best = (_ENTRY_BYTES * size) ** 0.5
    average = LEAST_AVERAGE
    while average < MOST_AVERAGE and average * 2**0.5 < best:
        average *= 2
    return average


def chunk_lengths(data: bytes, average: int) -> Iterator[int]:
    """Yield the lengths of the chunks of some data, which sum up to its length.

    Args:
        data: any bytes.
        average: a power of two; see `average_for`.
    """
    early, late = _candidates(data, average)
    start = 0
    while start < len(data):
        end = _cut(early, late, start, len(data), average)
        yield end - start
        start = end


def _cut(
    early: NDArray[np.int64], late: NDArray[np.int64], start: int, size: int, average: int
) -> int:
    """Return where the chunk that begins at `start` ends."""
    shortest, longest = start + average // SHORTEST, min(size, start + average * LONGEST)
    for places, low, high in (
        (early, shortest, min(start + average, longest)),
        (late, start + average, longest),
    ):
        found = int(np.searchsorted(places, low))
        if found < len(places) and places[found] < high:
            return int(places[found])
    return longest


def _candidates(data: bytes, average: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where a chunk may end below and above the average length, ascending."""
    bits = average.bit_length() - 1
    strict, lenient = _mask(bits + _LEVEL), _mask(bits - _LEVEL)
    places: list[NDArray[np.int64]] = []
    strictly: list[NDArray[np.bool_]] = []
    whole = np.frombuffer(data, np.uint8)
    for start in range(0, len(whole), _BLOCK):
        before = min(start, _WINDOW)
        hashes = _hashes(whole[start - before : start + _BLOCK])[before:]
        found = np.flatnonzero((hashes & lenient) == 0)
        strictly.append((hashes[found] & strict) == 0)
        places.append(found + start + 1)
    late = np.concatenate([*places, np.zeros(0, np.int64)])
    return late[np.concatenate([*strictly, np.zeros(0, np.bool_)])], late


def _hashes(data: NDArray[np.uint8]) -> NDArray[np.uint32]:
    hashes = _GEAR[data]
    span = 1
    while span < _WINDOW:
        older = hashes[:-span] << np.uint32(span)
        hashes = hashes.copy()
        hashes[span:] += older
        span *= 2
    return hashes


def _mask(bits: int) -> np.uint32:
    """Return a mask of the highest bits, which the most bytes decide."""
    return np.uint32(((1 << bits) - 1) << (32 - bits))
