"""Provide files that travel to machines that have no folder in common."""

import hashlib
import io
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SharedPath:
    """A shared path is a file or folder, as an argument of calls.

    Attributes:
        path: where it is on the machine that gave it.
        sha256: digest of its archive, which every worker of a cluster has unpacked; empty where
            the path alone is enough.
    """

    path: Path
    sha256: str = ""

    def open(self) -> Path:
        """Return a path that can be read here; on a cluster called in a worker."""
        if not self.sha256:
            return self.path
        from distributed import get_worker

        return unpacked_folder(get_worker().local_directory, self.sha256) / self.path.name


def unpacked_folder(local: str | Path, sha256: str) -> Path:
    """Return where a worker keeps an archive, below its own folder, which ends with it."""
    return Path(local) / "edgec" / sha256


@dataclass(frozen=True)
class Archive:
    """An archive holds a file or folder.

    Attributes:
        data: a tar file, the same for the same contents.
    """

    data: bytes

    @classmethod
    def of(cls, path: Path) -> "Archive":
        """Return an archive of a path."""
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            archive.add(path, arcname=path.resolve().name, filter=_anonymous)
        return cls(stream.getvalue())

    @property
    def sha256(self) -> str:
        """Return its digest."""
        return hashlib.sha256(self.data).hexdigest()

    def unpack(self, folder: Path) -> None:
        """Write what it holds to a folder, whole or not at all; nothing if that is there."""
        if folder.is_dir():
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            unpacked = Path(scratch) / "files"
            unpacked.mkdir()
            with tarfile.open(fileobj=io.BytesIO(self.data)) as archive:
                archive.extractall(unpacked, filter="data")
            unpacked.rename(folder)


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return an entry without what differs between machines."""
    entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
    return entry
