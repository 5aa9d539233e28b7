"""Provide files that are replaced whole or not at all, scratch folders, and locks."""

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
    if not path.name or path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder")
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


def check_output_file(path: Path, *, make_folders: bool = False) -> None:
    """Make sure, before any work, that a file can be written; nothing is left behind.

    Args:
        path: the file.
        make_folders: whether the writer makes folders that are missing.

    Raises:
        OutputError: its folder is missing or not writable, or a folder is in the way.
    """
    try:
        if not path.name or path.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder")
        _check_folder(path, path.parent, make_folders)
        # Names that are too long are found here.
        path.exists()
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None


def check_output_folder(path: Path) -> None:
    """Make sure, before any work, that files can be written to a folder, which may be missing.

    Raises:
        OutputError: a file is in the way, or it is not writable.
    """
    try:
        _check_folder(path, path, make_folders=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None


def _check_folder(path: Path, folder: Path, make_folders: bool) -> None:
    while make_folders and not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.exists():
        raise OutputError(f"cannot write {path}: folder {folder} does not exist")
    if not folder.is_dir():
        raise OutputError(f"cannot write {path}: {folder} is no folder")
    with tempfile.TemporaryFile(dir=folder):
        pass


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
    """Provide a temporary folder for intermediate files.

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
