"""Provide a bundle's signature: a list of its files' digests, and who signed the list.

The file `signature.txt`, which lies in the bundle and is not in the manifest:

```text
edgec signature 1
sha256 DIGEST SIZE PATH       every other file, the manifest among them, sorted by path
ed25519 KEY SIGNATURE         one line for each key
```

Each signature is Ed25519 over all lines above the first `ed25519` one. There is one way to write
it: a reader refuses anything else. `native/bundle_check.c` reads the same.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgec.compiler.errors import TrustError
from edgec.compiler.trust.keys import PublicKey, SigningKey

SIGNATURE = "signature.txt"
MAX_BYTES = 1 << 20
MAX_SIGNATURES = 16
MAX_PATH_BYTES = 255

_HEAD = b"edgec signature 1\n"
_NAME = rb"[A-Za-z0-9_][A-Za-z0-9._-]*"
_FILE = re.compile(
    rb"sha256 ([0-9a-f]{64}) (0|[1-9][0-9]{0,14}) (" + _NAME + rb"(?:/" + _NAME + rb")*)\n"
)
_SIGNED = re.compile(rb"ed25519 ([0-9a-f]{64}) ([0-9a-f]{128})\n")


@dataclass(frozen=True)
class Digest:
    """A digest is a file's size in bytes and SHA-256."""

    size_bytes: int
    sha256: str

    @classmethod
    def of_file(cls, path: Path) -> "Digest":
        """Return that of a file."""
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return cls(os.fstat(stream.fileno()).st_size, digest)


@dataclass(frozen=True)
class Signature:
    """A signature says which files some keys signed; all that it says was verified.

    Attributes:
        files: by path in the bundle, sorted.
        keys: those that signed.
    """

    files: Mapping[str, Digest]
    keys: tuple[PublicKey, ...]

    @property
    def signers(self) -> str:
        """Return the keys, for a message."""
        return f"key{'s' if len(self.keys) > 1 else ''} {', '.join(map(str, self.keys))}"


def sign(files: Mapping[str, Digest], keys: Sequence[SigningKey], earlier: bytes = b"") -> bytes:
    """Return the content of `signature.txt`.

    Args:
        files: every file of the bundle but this one.
        keys: each signs.
        earlier: the file so far; signatures of other keys on the same list stay.
    """
    message = _message(files)
    lines = {key.public: _line(key.public, key.sign(message)) for key in keys}
    if earlier.startswith(message):
        for public, signature in _signatures(earlier[len(message) :]):
            lines.setdefault(public, _line(public, signature))
    ordered = (lines[public] for public in sorted(lines, key=str))
    return message + b"".join(ordered)


def read_signature(folder: Path, bundle: Path) -> Signature | None:
    """Read the signature of a bundle and compare every file with it; None if there is none.

    Args:
        folder: where the bundle is, unpacked.
        bundle: what it is called in messages.

    Raises:
        TrustError: the signature is not well-formed or wrong, or a file is not what was signed.
    """
    path = folder / SIGNATURE
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise TrustError(f"bundle {bundle}: {SIGNATURE} is no file")
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    signature = parse_signature(data, bundle)
    problem = _compare(folder, signature)
    if problem:
        raise TrustError(f"bundle {bundle}: {problem} (signed by {signature.signers})")
    return signature


def parse_signature(data: bytes, bundle: Path) -> Signature:
    """Read and verify the content of `signature.txt`.

    Raises:
        TrustError: it is not well-formed, or a signature is wrong.
    """
    files: dict[str, Digest] = {}
    place = len(_HEAD)
    while match := _FILE.match(data, place):
        name = match.group(3).decode()
        files[name] = Digest(int(match.group(2)), match.group(1).decode())
        place = match.end()
    message, rest = data[:place], data[place:]
    keys = list(_signatures(rest))
    if (
        len(data) > MAX_BYTES
        or message != _message(files)
        or SIGNATURE in files
        or any(len(name) > MAX_PATH_BYTES for name in files)
        or not 1 <= len(keys) <= MAX_SIGNATURES
        or rest != b"".join(_line(public, signature) for public, signature in keys)
        or [str(public) for public, _ in keys] != sorted({str(public) for public, _ in keys})
    ):
        raise TrustError(
            f"bundle {bundle}: {SIGNATURE} is damaged, or of a format that this edgec does not "
            "know; get the bundle again"
        )
    for public, signature in keys:
        if not public.verifies(signature, message):
            raise TrustError(
                f"bundle {bundle}: its signature is not one by key {public}: {SIGNATURE} was "
                "changed; get the bundle again"
            )
    return Signature(files, tuple(public for public, _ in keys))


def bundle_files(folder: Path) -> Iterator[str]:
    """Yield the path of all that is in a folder and no folder: files, links, sockets."""
    stack = [""]
    while stack:
        inner = stack.pop()
        with os.scandir(folder / inner) as entries:
            for entry in entries:
                name = f"{inner}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    stack.append(f"{name}/")
                else:
                    yield name


def _compare(folder: Path, signature: Signature) -> str:
    """Return what is not as it was signed, in a few words; empty if all is."""
    present = set(bundle_files(folder)) - {SIGNATURE}
    for name in sorted(present - set(signature.files)):
        return f"{name} is an extra file that was not signed; remove it"
    for name in sorted(set(signature.files) - present):
        return f"{name} is missing; get the bundle again"
    for name, digest in signature.files.items():
        path = folder / name
        if not stat.S_ISREG(path.lstat().st_mode):
            return f"{name} is no file; get the bundle again"
        if Digest.of_file(path) != digest:
            return f"{name} is not the file that was signed; get the bundle again"
    return ""


def _message(files: Mapping[str, Digest]) -> bytes:
    lines = (
        f"sha256 {digest.sha256} {digest.size_bytes} {name}\n"
        for name, digest in sorted(files.items())
    )
    return _HEAD + "".join(lines).encode()


def _line(public: PublicKey, signature: bytes) -> bytes:
    return f"ed25519 {public.data.hex()} {signature.hex()}\n".encode()


def _signatures(lines: bytes) -> Iterator[tuple[PublicKey, bytes]]:
    for match in _SIGNED.finditer(lines):
        yield PublicKey(bytes.fromhex(match[1].decode())), bytes.fromhex(match[2].decode())
