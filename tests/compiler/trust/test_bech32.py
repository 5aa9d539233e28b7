import pytest

from edgec.compiler.trust import bech32


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 31, 32, 33])
def test_round_trip(length: int) -> None:
    data = bytes(range(7, 7 + length))
    text = bech32.encode("age-secret-key-", data)
    assert bech32.decode("age-secret-key-", text) == data
    assert bech32.decode("age-secret-key-", text.upper()) == data


# From BIP 173: valid and not, but for those that are too long for a payment.
@pytest.mark.parametrize(
    ("prefix", "text"),
    [
        ("a", "A12UEL5L"),
        ("?", "?1ezyfcl"),
        ("split", "split1checkupstagehandshakeupstreamerranterredcaperred2y9e3w"),
    ],
)
def test_valid(prefix: str, text: str) -> None:
    assert bech32.decode(prefix, text) is not None


@pytest.mark.parametrize(
    ("prefix", "text"),
    [
        ("a", "A12UeL5L"),
        ("a", "a12uel5q"),
        ("a", "a12uel5"),
        ("x", "x1b4n0q5v"),
        ("li", "li1dgmt3"),
        ("a", "a1"),
        ("", "pzry9x0s0muk"),
    ],
)
def test_invalid(prefix: str, text: str) -> None:
    assert bech32.decode(prefix, text) is None
