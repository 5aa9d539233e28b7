"""Keep what is costly to make in the user's cache folder, found by what it was made from.

Any number of processes use a cache at the same time, without locks: an entry appears whole, and is
only ever replaced by the same content. It carries its own digest, so that one that a full disk or
a crash damaged is noticed and made again. A cache that cannot be read or written holds nothing.
"""

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_cache_path

# Entries are spread over this many folders by the first byte of their key. Each is kept within its
# share of the bound by itself, so that storing an entry looks at a few files and not at all.
_FOLDERS = 256
_DIGEST_BYTES = 32
# An entry's time of last use is noted this often at most [s].
_NOTED_SECONDS = 3600.0


class ContentCache:
    """A content cache is a bounded folder of entries, the least recently used of which go first.

    Args:
        name: the folder's name in edgec's cache folder (`$XDG_CACHE_HOME/edgec`).
        most_bytes: how much it holds, about.
    """

    def __init__(self, name: str, most_bytes: int) -> None:
        self._root = user_cache_path("edgec") / name
        self._most_bytes = most_bytes // _FOLDERS

    def get(self, key: str) -> bytes | None:
        """Return the content that was stored; None if there is none, or if it is damaged.

        Args:
            key: a SHA-256 digest of what the content was made from, in hexadecimal digits.
        """
        path = self._path(key)
        try:
            entry = path.read_bytes()
            digest, content = entry[:_DIGEST_BYTES], entry[_DIGEST_BYTES:]
            if hashlib.sha256(content).digest() != digest:
                path.unlink(missing_ok=True)
                return None
            if time.time() - path.stat().st_mtime > _NOTED_SECONDS:
                os.utime(path)
        except OSError:
            return None
        return content

    def write(self, key: str, path: Path, make: Callable[[Path], None]) -> None:
        """Write a file: with the content that was stored, or by making it, which is stored then.

        Args:
            key: see `get`.
            path: the file.
            make: writes the file it is given.
        """
        content = self.get(key)
        if content is not None:
            path.write_bytes(content)
        else:
            make(path)
            self.put(key, path.read_bytes())

    def put(self, key: str, content: bytes) -> None:
        """Store a content, and remove what has not been used for longest if there is too much."""
        path = self._path(key)
        # A cache that cannot be written is none.
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=".")
            try:
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(hashlib.sha256(content).digest())
                    stream.write(content)
                Path(partial).replace(path)
            except BaseException:
                Path(partial).unlink(missing_ok=True)
                raise
            self._evict(path)

    def _path(self, key: str) -> Path:
        return self._root / key[:2] / key[2:]

    def _evict(self, kept: Path) -> None:
        """Bring the folder of an entry within its share; that entry stays."""
        found = []
        for path in kept.parent.iterdir():
            # Another process may have removed it.
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._most_bytes:
                return
            if path != kept:
                path.unlink(missing_ok=True)
                total -= size
