"""Provide Shamir's secret sharing over a prime field (Shamir 1979, How to share a secret).

A secret s is the constant term of a random polynomial f of degree t - 1; the share of x is f(x).
Any t shares give s = sum_i y_i prod_{j != i} x_j / (x_j - x_i), fewer say nothing about it.
"""

import secrets
from collections.abc import Iterable, Mapping

# The Mersenne prime above every secret of 64 bytes.
PRIME = 2**521 - 1
SHARE_BYTES = 66


def split(secret: int, threshold: int, points: Iterable[int]) -> dict[int, int]:
    """Return the shares of a secret by point.

    Args:
        secret: 0 to PRIME - 1.
        threshold: shares that give it back.
        points: where the polynomial is evaluated, 1 to PRIME - 1.
    """
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)] + [secret]
    shares = {}
    for x in points:
        value = 0
        for coefficient in coefficients:
            value = (value * x + coefficient) % PRIME
        shares[x] = value
    return shares


def join(shares: Mapping[int, int]) -> int:
    """Return the secret of as many shares as the threshold, by point.

    >>> join({x: y for x, y in split(42, 2, [1, 2, 3]).items() if x != 2})
    42
    """
    secret = 0
    for x, y in shares.items():
        above, below = 1, 1
        for other in shares:
            if other != x:
                above = above * other % PRIME
                below = below * (other - x) % PRIME
        secret = (secret + y * above * pow(below, -1, PRIME)) % PRIME
    return secret
