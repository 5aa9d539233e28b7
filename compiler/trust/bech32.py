"""Provide Bech32 (BIP 173) without its limit on length, the text form of age's keys."""

_ALPHABET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)


def encode(prefix: str, data: bytes) -> str:
    """Return the text of some bytes, in lower case.

    >>> encode("a", b"")
    'a12uel5l'
    """
    values = _regroup(data, 8, 5, pad=True)
    assert values is not None
    check = _polymod([*_expand(prefix), *values, 0, 0, 0, 0, 0, 0]) ^ 1
    values += [check >> 5 * (5 - i) & 31 for i in range(6)]
    return f"{prefix}1{''.join(_ALPHABET[value] for value in values)}"


def decode(prefix: str, text: str) -> bytes | None:
    """Return the bytes of a text of this prefix; None if it is none.

    >>> decode("age", encode("age", b"0123"))
    b'0123'
    >>> decode("b", encode("a", b"0123")) is None
    True
    """
    if text not in (text.lower(), text.upper()):
        return None
    found, _, word = text.lower().rpartition("1")
    if found != prefix or len(word) < 6 or set(word) - set(_ALPHABET):
        return None
    values = [_ALPHABET.index(letter) for letter in word]
    if _polymod([*_expand(prefix), *values]) != 1:
        return None
    data = _regroup(values[:-6], 5, 8, pad=False)
    return None if data is None else bytes(data)


def _expand(prefix: str) -> list[int]:
    return [*(ord(c) >> 5 for c in prefix), 0, *(ord(c) & 31 for c in prefix)]


def _polymod(values: list[int]) -> int:
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_GENERATOR):
            check ^= generator if top >> bit & 1 else 0
    return check


def _regroup(data: bytes | list[int], source: int, sink: int, *, pad: bool) -> list[int] | None:
    """Return groups of other sizes in bits; None if what is left over is not as it is written."""
    held = bits = 0
    result = []
    for value in data:
        held = held << source | value
        bits += source
        while bits >= sink:
            bits -= sink
            result.append(held >> bits & ((1 << sink) - 1))
            held &= (1 << bits) - 1
    if pad:
        return [*result, held << (sink - bits)] if bits else result
    return None if bits >= source or held else result
