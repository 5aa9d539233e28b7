"""Provide files in memory, which the dynamic loader takes like others: memfd_create(2).

What is checked before it runs, or was decrypted, goes there: nobody can change it between the
check and the load, and it is on no disk.
"""

import errno
import fcntl
import hashlib
import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from edgec.compiler.errors import BadInputError, EdgecError, TrustError
from edgec.compiler.trust.age import Identity, decrypt
from edgec.compiler.trust.signature import Digest

CHUNK_BYTES = 1 << 20


class MemoryFile:
    """A memory file is sealed against changes; it is gone with this object.

    Attributes:
        path: where to open it, in this process.
    """

    def __init__(self, name: str, chunks: Iterable[bytes]) -> None:
        """Fill a new one.

        Raises:
            BadInputError: there is no memory for it.
        """
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, descriptor)
        self.path = Path(f"/proc/self/fd/{descriptor}")
        try:
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    view = view[os.write(descriptor, view) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
                raise
            raise BadInputError(f"there is not enough memory to load {name}") from None
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)


def checked_chunks(
    path: Path, expected: Digest | None, bundle: Path, identities: Sequence[Identity] = ()
) -> Iterator[bytes]:
    """Yield a file's content, and compare the file with its digest before ending.

    Args:
        path: the file.
        expected: what was signed; None to take any.
        bundle: what the bundle is called in messages.
        identities: who reads it, if it is encrypted.

    Raises:
        TrustError: at the end, if the file is another.
        KeyFileError: it is encrypted for others.
        IntegrityError: it is encrypted and damaged.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:

        class Hashed:
            def read(self, size: int, /) -> bytes:
                data = stream.read(size)
                if expected is not None:
                    digest.update(data)
                return data

        if identities:
            size = os.fstat(stream.fileno()).st_size
            try:
                yield from decrypt(Hashed(), size, identities)
            except EdgecError as error:
                raise type(error)(f"bundle {bundle}, {path.name}: {error}") from None
        else:
            yield from iter(lambda: Hashed().read(CHUNK_BYTES), b"")
    if expected is not None and digest.hexdigest() != expected.sha256:
        raise TrustError(f"bundle {bundle}: {path.name} was changed while it was opened")
