"""Provide the keys and masks of secure aggregation: X25519, HKDF, ChaCha20 and Poly1305."""

from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

Words = NDArray[np.uint64]
KEY_BYTES = 32


def agreed_key(secret: bytes, public: bytes, purpose: bytes) -> bytes:
    """Return the key that two X25519 keys agree on, for one purpose.

    Raises:
        ValueError: the public key is no point that a key can be agreed with.
    """
    own = X25519PrivateKey.from_private_bytes(secret)
    return _derived(own.exchange(X25519PublicKey.from_public_bytes(public)), purpose)


def public_of(secret: bytes) -> bytes:
    """Return the public key of an X25519 key."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def mask(seed: bytes, purpose: bytes, length: int) -> Words:
    """Return the mask that a seed stands for: `length` words of 64 bits from ChaCha20."""
    stream = Cipher(ChaCha20(_derived(seed, purpose), bytes(16)), None).encryptor()
    return np.frombuffer(stream.update(bytes(8 * length)), "<u8").astype(np.uint64, copy=False)


def seal(key: bytes, message: bytes, context: bytes) -> bytes:
    """Encrypt the only message under a key."""
    return ChaCha20Poly1305(key).encrypt(bytes(12), message, context)


def unseal(key: bytes, sealed: bytes, context: bytes) -> bytes | None:
    """Return the message; None if it was sealed by another key, for another context, or changed."""
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), sealed, context)
    except InvalidTag:
        return None


def words(array: NDArray[Any]) -> Words:
    """Return signed integers modulo 2^64."""
    return array.astype(np.int64).view(np.uint64)


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY_BYTES, None, b"edgec private calibration " + purpose).derive(
        secret
    )
