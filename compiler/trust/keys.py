"""Provide signing keys: Ed25519, kept as PEM files in the user's configuration folder.

The package `cryptography` is imported by what needs it: most bundles are opened without.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_config_path

from edgec.compiler.errors import KeyFileError, OutputError, did_you_mean

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

# A bare key of TOML, so that the runner's reader of the policy needs no quotes.
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PUBLIC = re.compile(r"ed25519:([0-9a-f]{64})")


@dataclass(frozen=True)
class PublicKey:
    """A public key is the 32 bytes of RFC 8032; its text is `ed25519:` and 64 digits."""

    data: bytes

    def __str__(self) -> str:
        return f"ed25519:{self.data.hex()}"

    @classmethod
    def parse(cls, text: str) -> "PublicKey":
        """Read a key's text.

        >>> PublicKey.parse("ed25519:" + "61" * 32).data[:2]
        b'aa'

        Raises:
            KeyFileError: it is none.
        """
        match = _PUBLIC.fullmatch(text)
        if match is None:
            raise KeyFileError(f"{text!r} is no public key; expected ed25519: and 64 digits 0-9a-f")
        return cls(bytes.fromhex(match.group(1)))

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Return whether a signature of 64 bytes is this key's."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.data).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True)
class SigningKey:
    """A signing key makes signatures.

    Attributes:
        name: what its file is called.
        private: the secret.
    """

    name: str
    private: "Ed25519PrivateKey"

    @property
    def public(self) -> PublicKey:
        """Return what others verify with."""
        return PublicKey(self.private.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """Return a signature, 64 bytes."""
        return self.private.sign(message)


def config_folder() -> Path:
    """Return the folder of keys and policy."""
    return user_config_path("edgec")


def keys_folder() -> Path:
    """Return where this user's own keys are."""
    return config_folder() / "keys"


def check_name(name: str) -> None:
    """Make sure that a key may be called so.

    Raises:
        KeyFileError: it may not.
    """
    if not NAME.fullmatch(name):
        raise KeyFileError(f"key name {name!r}: use letters, digits, _ and -, at most 64")


def new_key(name: str) -> SigningKey:
    """Make a key and write it to NAME.pem, readable by this user alone, and NAME.pub.

    Raises:
        KeyFileError: the name cannot be, or is taken.
        OutputError: the file cannot be written.
    """
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    check_name(name)
    key = SigningKey(name, Ed25519PrivateKey.generate())
    pem = key.private.private_bytes(
        forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()
    )
    write_secret(keys_folder() / f"{name}.pem", pem)
    (keys_folder() / f"{name}.pub").write_text(f"{key.public}\n")
    return key


def write_secret(path: Path, data: bytes) -> None:
    """Write a file that only this user can read; none may be there.

    Raises:
        KeyFileError: the file exists.
        OutputError: it cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise KeyFileError(f"{path} exists; choose another name, or remove it") from None
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)


def own_keys() -> dict[str, PublicKey]:
    """Return the public halves of this user's keys, by name."""
    return {path.stem: _read_public(path) for path in sorted(keys_folder().glob("*.pub"))}


def load_signing_key(name: str | Path) -> SigningKey:
    """Read a key by its name or by the path of its PEM file.

    Raises:
        KeyFileError: there is none, or it is no Ed25519 key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text = str(name)
    own = keys_folder() / f"{text}.pem"
    path = own if NAME.fullmatch(text) and not Path(text).is_file() else Path(text)
    data = read_key_file(path, f"signing key {text}", _hint(text))
    try:
        private = load_pem_private_key(data, None)
    except TypeError:
        raise KeyFileError(f"{path} is protected by a passphrase; give one without") from None
    except ValueError:
        raise KeyFileError(f"{path} is no private key in PEM") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise KeyFileError(f"{path} is a key of another kind; Ed25519 is needed")
    return SigningKey(path.stem, private)


def load_public_key(given: str) -> PublicKey:
    """Read a public key: its text, the name of an own key, or a .pub or PEM file.

    Raises:
        KeyFileError: there is none.
    """
    if given.startswith("ed25519:"):
        return PublicKey.parse(given)
    own = keys_folder() / f"{given}.pub"
    path = own if NAME.fullmatch(given) and not Path(given).is_file() else Path(given)
    return _read_public(path, _hint(given))


def _read_public(path: Path, hint: str = "") -> PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = read_key_file(path, f"public key {path}", hint)
    if data.startswith(b"-----BEGIN PUBLIC KEY"):
        try:
            public = load_pem_public_key(data)
        except ValueError:
            raise KeyFileError(f"{path} is no public key in PEM") from None
        if not isinstance(public, Ed25519PublicKey):
            raise KeyFileError(f"{path} is a key of another kind; Ed25519 is needed")
        return PublicKey(public.public_bytes_raw())
    return PublicKey.parse(data.decode(errors="replace").strip())


def read_key_file(path: Path, what: str, hint: str = "") -> bytes:
    """Read a small file.

    Raises:
        KeyFileError: it is not there, or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise KeyFileError(f"{what} does not exist: no {path}{hint}") from None
    except OSError as error:
        raise KeyFileError(f"{what} cannot be read: {path}: {error.strerror}") from None


def _hint(name: str) -> str:
    near = did_you_mean(name, [path.stem for path in keys_folder().glob("*.pub")])
    return near or "; make one: edgec keys new NAME"
