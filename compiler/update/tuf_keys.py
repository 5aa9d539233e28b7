"""Make keys of edgec keys of The Update Framework; both are Ed25519."""

from securesystemslib.signer import CryptoSigner, SSlibKey

from edgec.compiler.trust.keys import PublicKey, SigningKey


def signer_of(key: SigningKey) -> CryptoSigner:
    """Return what signs metadata with a key."""
    return CryptoSigner(key.private, tuf_key(key.public))


def tuf_key(key: PublicKey) -> SSlibKey:
    """Return a key as metadata lists it."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(key.data))
