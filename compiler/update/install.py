"""Put a bundle together from chunks: those that are here already, and those that are downloaded.

Every byte is compared with the release's digests, wherever it comes from. What an interruption left
is kept as far as it is right.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgec.compiler.errors import AttackError, OutputError
from edgec.compiler.support.files import flush, output_error
from edgec.compiler.trust.signature import bundle_files
from edgec.compiler.update.release import Chunk, Release, ReleaseFile

# What must stay free on the disk beside a new bundle.
_SPARE_BYTES = 4 << 20


@dataclass(frozen=True)
class _Place:
    """Where a chunk may be found: a file, and where it begins there [bytes]."""

    path: Path
    start: int


def build_bundle(
    release: Release,
    folder: Path,
    fetch: Callable[[Chunk], bytes],
    old: tuple[Release, Path] | None = None,
) -> None:
    """Write the files of a release, durably.

    Args:
        release: what is wanted.
        folder: may hold what an interrupted call left, and nothing else; it is made.
        fetch: downloads a chunk.
        old: another release, and where its bundle is: chunks in it are not downloaded.

    Raises:
        OutputError: there is no space.
        AttackError: the release contradicts itself.
    """
    places = {} if old is None else dict(_places(*old))
    try:
        folder.mkdir(exist_ok=True)
        _remove_others(release, folder)
        _check_space(release, folder)
        for file in release.files:
            path = folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            _build_file(file, path, places, fetch)
            places.update(_file_places(file, path))
        _flush_folders(folder)
    except OSError as error:
        raise output_error(folder, error) from None


def _build_file(
    file: ReleaseFile,
    path: Path,
    places: dict[str, _Place],
    fetch: Callable[[Chunk], bytes],
) -> None:
    whole = hashlib.sha256()
    with path.open("r+b" if path.exists() else "w+b") as stream:
        place = 0
        for chunk in file.chunks:
            stream.seek(place)
            data = stream.read(chunk.size)
            if not _is(data, chunk):
                data = _local(chunk, places) or fetch(chunk)
                stream.seek(place)
                stream.write(data)
            whole.update(data)
            place += chunk.size
        stream.truncate(place)
        stream.flush()
        os.fsync(stream.fileno())
    path.chmod(0o755 if file.executable else 0o644)
    if (whole.hexdigest(), place) != (file.sha256, file.size):
        raise AttackError(f"arbitrary software: the chunks of {file.path} are not those of a file")


def _local(chunk: Chunk, places: dict[str, _Place]) -> bytes | None:
    """Return a chunk from the disk; None if it is not there, or was damaged."""
    place = places.get(chunk.sha256)
    if place is None:
        return None
    try:
        with place.path.open("rb") as stream:
            stream.seek(place.start)
            data = stream.read(chunk.size)
    except OSError:
        return None
    return data if _is(data, chunk) else None


def _is(data: bytes, chunk: Chunk) -> bool:
    return len(data) == chunk.size and hashlib.sha256(data).hexdigest() == chunk.sha256


def _places(release: Release, folder: Path) -> Iterator[tuple[str, _Place]]:
    for file in release.files:
        yield from _file_places(file, folder / file.path)


def _file_places(file: ReleaseFile, path: Path) -> Iterator[tuple[str, _Place]]:
    start = 0
    for chunk in file.chunks:
        yield chunk.sha256, _Place(path, start)
        start += chunk.size


def _remove_others(release: Release, folder: Path) -> None:
    """Remove what an interrupted call for another release left."""
    wanted = {file.path for file in release.files}
    for name in list(bundle_files(folder)):
        if name not in wanted:
            (folder / name).unlink()
    for path in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()


def _check_space(release: Release, folder: Path) -> None:
    there = sum((folder / name).stat().st_size for name in bundle_files(folder))
    needed = release.size_bytes - there + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"release {release.number} of {release.channel} needs {needed / 1e6:.0f} MB beside "
            f"{folder}, and {free / 1e6:.0f} are free; nothing was changed"
        )


def _flush_folders(folder: Path) -> None:
    for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
        flush(path)
