"""Provide encrypted files, in the format of age: https://age-encryption.org/v1.

A file's random key is wrapped for each recipient by X25519; the content is ChaCha20-Poly1305 in
chunks of 64 KiB, whose nonces are their numbers and say which is the last. So an order other than
the file's, or an end before its end, is not authentic. Other programs of this format (age, rage)
read what is written here; of what they write, files with recipients of other kinds are refused.
`native/age.c` decrypts the same.
"""

import base64
import hashlib
import hmac
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgec.compiler.errors import IntegrityError, KeyFileError
from edgec.compiler.trust import bech32

CHUNK_BYTES = 1 << 16
TAG_BYTES = 16
MAX_RECIPIENTS = 64

_VERSION = b"age-encryption.org/v1\n"
_HEADER_BYTES = 1 << 15
_FILE_KEY_BYTES = 16
_NONCE_BYTES = 16


class Reads(Protocol):
    """A file, or what stands for one."""

    def read(self, size: int, /) -> bytes:
        """Return so many bytes, fewer at the end."""


@dataclass(frozen=True)
class Recipient:
    """A recipient is a public key of X25519; its text begins with `age1`."""

    data: bytes

    def __str__(self) -> str:
        return bech32.encode("age", self.data)

    @classmethod
    def parse(cls, text: str) -> "Recipient":
        """Read a recipient's text.

        Raises:
            KeyFileError: it is none.
        """
        data = bech32.decode("age", text)
        if data is None or len(data) != 32:
            raise KeyFileError(f"{text!r} is no recipient; expected age1 and 58 letters or digits")
        return cls(data)


@dataclass(frozen=True)
class Identity:
    """An identity is a secret key of X25519; its text begins with `AGE-SECRET-KEY-1`."""

    secret: bytes

    def __str__(self) -> str:
        return bech32.encode("age-secret-key-", self.secret).upper()

    def __repr__(self) -> str:
        return f"Identity of {self.recipient}"

    @classmethod
    def new(cls) -> "Identity":
        """Return a random one."""
        return cls(os.urandom(32))

    @classmethod
    def parse(cls, text: str) -> "Identity":
        """Read an identity's text, which messages do not repeat.

        Raises:
            KeyFileError: it is none.
        """
        data = bech32.decode("age-secret-key-", text)
        if data is None or len(data) != 32:
            raise KeyFileError("what was given is no identity; expected AGE-SECRET-KEY-1…")
        return cls(data)

    @property
    def recipient(self) -> Recipient:
        """Return the public half."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        private = X25519PrivateKey.from_private_bytes(self.secret)
        return Recipient(private.public_key().public_bytes_raw())


def encrypt_file(source: Path, output: Path, recipients: Sequence[Recipient]) -> None:
    """Encrypt a file for some recipients, each of whom can read it alone."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    assert 0 < len(recipients) <= MAX_RECIPIENTS
    key, nonce = os.urandom(_FILE_KEY_BYTES), os.urandom(_NONCE_BYTES)
    head = _VERSION + b"".join(_wrap(key, recipient) for recipient in recipients) + b"---"
    cipher = ChaCha20Poly1305(_derive(nonce, key, b"payload"))
    with source.open("rb") as stream, output.open("wb") as sink:
        sink.write(head + b" " + _base64(_header_mac(key, head)) + b"\n" + nonce)
        number, chunk = 0, stream.read(CHUNK_BYTES)
        while True:
            following = stream.read(CHUNK_BYTES)
            sink.write(cipher.encrypt(_chunk_nonce(number, not following), chunk, None))
            if not following:
                return
            number, chunk = number + 1, following


def decrypt(stream: Reads, size: int, identities: Sequence[Identity]) -> Iterator[bytes]:
    """Yield the content of an encrypted file; each part is authentic.

    Args:
        stream: the file.
        size: its bytes.
        identities: any that can read it.

    Raises:
        KeyFileError: none of them can.
        IntegrityError: the file is damaged.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    damaged = IntegrityError("the encrypted file is damaged; get it again")
    head, rest = _read_header(stream, damaged)
    stanzas, mac = _parse_header(head, damaged)
    key = _unwrap(stanzas, identities)
    signed = head[: head.rindex(b"---") + 3]
    if not hmac.compare_digest(mac, _header_mac(key, signed)):
        raise damaged
    if len(rest) < _NONCE_BYTES:
        raise damaged
    cipher = ChaCha20Poly1305(_derive(rest[:_NONCE_BYTES], key, b"payload"))
    left = size - len(head) - _NONCE_BYTES
    held, number = rest[_NONCE_BYTES:], 0
    while True:
        last = left <= CHUNK_BYTES + TAG_BYTES
        wanted = left if last else CHUNK_BYTES + TAG_BYTES
        chunk = held[:wanted]
        held = held[wanted:]
        chunk += stream.read(wanted - len(chunk)) if len(chunk) < wanted else b""
        # Only a file without content has a chunk without content.
        if len(chunk) != wanted or wanted < TAG_BYTES or (wanted == TAG_BYTES and number):
            raise damaged
        try:
            yield cipher.decrypt(_chunk_nonce(number, last), chunk, None)
        except InvalidTag:
            raise damaged from None
        if last:
            break
        left, number = left - wanted, number + 1
    if held or stream.read(1):
        raise damaged


def _wrap(key: bytes, recipient: Recipient) -> bytes:
    """Return a stanza that gives a recipient the file's key."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    ephemeral = Identity.new()
    share = ephemeral.recipient.data
    wrapping = _wrapping_key(ephemeral, recipient.data, share, recipient.data)
    assert wrapping is not None
    body = ChaCha20Poly1305(wrapping).encrypt(bytes(12), key, None)
    return b"-> X25519 " + _base64(share) + b"\n" + _base64(body) + b"\n"


def _unwrap(stanzas: list[tuple[bytes, bytes]], identities: Sequence[Identity]) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    for identity in identities:
        for share, body in stanzas:
            wrapping = _wrapping_key(identity, share, share, identity.recipient.data)
            if wrapping is None:
                continue
            try:
                return ChaCha20Poly1305(wrapping).decrypt(bytes(12), body, None)
            except InvalidTag:
                continue
    known = ", ".join(str(identity.recipient) for identity in identities)
    raise KeyFileError(f"it is not encrypted for {known}; have it compiled with --encrypt-for that")


def _wrapping_key(secret: Identity, public: bytes, share: bytes, recipient: bytes) -> bytes | None:
    """Return what a file's key is wrapped with; None for a share that nobody chose at random."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    private = X25519PrivateKey.from_private_bytes(secret.secret)
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        return None
    return _derive(share + recipient, shared, b"age-encryption.org/v1/X25519")


def _read_header(stream: Reads, damaged: IntegrityError) -> tuple[bytes, bytes]:
    """Return the header with its last line, and what was read beyond it."""
    data = stream.read(_HEADER_BYTES)
    start = data.find(b"\n---")
    end = data.find(b"\n", start + 1) + 1
    if start < 0 or not end or not data.startswith(_VERSION):
        raise damaged
    return data[:end], data[end:]


def _parse_header(head: bytes, damaged: IntegrityError) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return share and wrapped key of each recipient, and the authentication code."""
    lines = head[len(_VERSION) : -1].split(b"\n")
    last = lines.pop().split(b" ")
    stanzas = []
    while lines:
        words = lines.pop(0).split(b" ")
        body = _from_base64(lines.pop(0)) if lines else None
        share = _from_base64(words[2]) if len(words) == 3 else None
        if words[:2] != [b"->", b"X25519"] or share is None or body is None:
            raise damaged
        if len(share) != 32 or len(body) != _FILE_KEY_BYTES + TAG_BYTES:
            raise damaged
        stanzas.append((share, body))
    mac = _from_base64(last[1]) if len(last) == 2 and last[0] == b"---" else None
    if mac is None or len(mac) != 32 or not 1 <= len(stanzas) <= MAX_RECIPIENTS:
        raise damaged
    return stanzas, mac


def _base64(data: bytes) -> bytes:
    return base64.b64encode(data).rstrip(b"=")


def _from_base64(text: bytes) -> bytes | None:
    """Return the bytes, if this is the one way to write them."""
    try:
        data = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except ValueError:
        return None
    return data if _base64(data) == text else None


def _derive(salt: bytes, secret: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869), 32 bytes."""
    extracted = hmac.digest(salt, secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def _header_mac(key: bytes, header: bytes) -> bytes:
    return hmac.new(_derive(b"", key, b"header"), header, hashlib.sha256).digest()


def _chunk_nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])
