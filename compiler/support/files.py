"""Files that are replaced whole or not at all, scratch folders, and locks."""

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgec.compiler.errors import OutputError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (*_NO_SPACE, errno.EACCES, errno.EROFS)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file as a whole; folders on the way are made.

    Raises:
        OutputError: it cannot be written; what was there before still is.
    """
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from None
        raise


def output_error(path: Path, error: OSError) -> OutputError:
    """Return what to tell the user of a file that cannot be written."""
    if error.errno in _NO_SPACE:
        return OutputError(f"no space left to write {path}; nothing was written")
    return OutputError(f"cannot write {path}: {error.strerror or error}")


def flush(file: Path) -> None:
    """Have the system report a full disk now and not after the rename."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder for intermediate files.

    Raises:
        OutputError: it fills up, or cannot be made.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="edgec-") as name:
            yield Path(name)
    except OSError as error:
        if error.errno in _NOT_WRITABLE:
            raise output_error(Path(tempfile.gettempdir()), error) from None
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; the system lets go of it when the process ends, however it ends."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
