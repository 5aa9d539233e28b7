"""Encrypted files: read by another implementation, and whatever is wrong with one is noticed."""

import io
from collections.abc import Callable
from pathlib import Path

import pyrage
import pytest

from edgec.compiler.errors import IntegrityError, KeyFileError
from edgec.compiler.trust.age import CHUNK_BYTES, Identity, Recipient, decrypt, encrypt_file

ONE, OTHER, THIRD = (Identity(bytes([number]) * 32) for number in (1, 2, 3))
SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES]


def content(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def encrypted(folder: Path, data: bytes, *identities: Identity) -> bytes:
    (folder / "plain").write_bytes(data)
    encrypt_file(folder / "plain", folder / "x.age", [each.recipient for each in identities])
    return (folder / "x.age").read_bytes()


def decrypted(data: bytes, *identities: Identity) -> bytes:
    return b"".join(decrypt(io.BytesIO(data), len(data), identities))


@pytest.mark.parametrize("size", SIZES)
def test_round_trip_and_another_program(tmp_path: Path, size: int) -> None:
    data = encrypted(tmp_path, content(size), ONE, OTHER)
    for identity in (ONE, OTHER):
        assert decrypted(data, THIRD, identity) == content(size)
        key = pyrage.x25519.Identity.from_str(str(identity))
        assert str(key.to_public()) == str(identity.recipient)
        assert pyrage.decrypt(data, [key]) == content(size)
    with pytest.raises(KeyFileError, match=f"it is not encrypted for {THIRD.recipient}"):
        decrypted(data, THIRD)


def test_two_files_have_nothing_in_common(tmp_path: Path) -> None:
    """Neither keys nor content repeat."""
    first, second = (encrypted(tmp_path, content(1000), ONE) for _ in range(2))
    assert len(first) == len(second)
    blocks = {first[i : i + 16] for i in range(30, len(first) - 16)}
    assert not any(second[i : i + 16] in blocks for i in range(60, len(second) - 16))


WHOLE = CHUNK_BYTES + 16


@pytest.mark.parametrize(
    "change",
    [
        lambda head, body: head + body[:-1],
        lambda head, body: head + body + b"x",
        lambda head, body: head + body[:WHOLE],
        lambda head, body: head + body[:-WHOLE],
        lambda head, body: head + body[WHOLE:],
        lambda head, body: head + body[WHOLE : 2 * WHOLE] + body[:WHOLE] + body[2 * WHOLE :],
        lambda head, body: head + body[:WHOLE] + body,
        lambda head, body: head,
        lambda head, body: head[:-1],
        lambda head, body: head[:40],
        lambda head, body: b"",
        lambda head, body: head.replace(b"v1", b"v0") + body,
        lambda head, body: head.replace(b"X25519", b"x25519") + body,
        lambda head, body: head.replace(b"\n---", b"\n\n---") + body,
    ],
)
def test_damage(tmp_path: Path, change: Callable[[bytes, bytes], bytes]) -> None:
    data = encrypted(tmp_path, content(3 * CHUNK_BYTES), ONE)
    start = len(data) - 3 * WHOLE
    assert decrypted(data, ONE)
    with pytest.raises(IntegrityError, match="the encrypted file is damaged"):
        decrypted(change(data[:start], data[start:]), ONE)


def test_flipped_bits(tmp_path: Path) -> None:
    data = encrypted(tmp_path, content(100), ONE)
    for place in range(0, 8 * len(data), 7):
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises((IntegrityError, KeyFileError)):
            decrypted(bytes(changed), ONE)


@pytest.mark.parametrize("text", ["", "age1", "age1qqqq", f"{ONE.recipient}x", str(ONE)])
def test_no_recipient(text: str) -> None:
    with pytest.raises(KeyFileError, match="is no recipient; expected age1"):
        Recipient.parse(text)


def test_messages_do_not_repeat_a_secret() -> None:
    text = str(ONE)[:-1]
    with pytest.raises(KeyFileError) as caught:
        Identity.parse(text)
    assert text not in str(caught.value)
    assert str(ONE) not in repr(ONE)
    assert repr(ONE.secret) not in repr(ONE)
