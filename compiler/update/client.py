"""Read a repository of releases, and refuse what is not authentic or not the newest.

The package `tuf` carries out the client's workflow of the specification (section 5) on the
metadata; chunks are compared with the digests that a release lists, which the metadata signs.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar
from urllib.parse import quote

from tuf.api import exceptions
from tuf.ngclient import Updater

from edgec.compiler.errors import (
    AttackError,
    BundleError,
    EdgecError,
    RepositoryError,
    UsageError,
)
from edgec.compiler.support.files import output_error
from edgec.compiler.update.fetcher import Fetcher, FetchLimits, check_url
from edgec.compiler.update.release import (
    MOST_CHUNK_BYTES,
    Channel,
    Chunk,
    Release,
    RollOut,
    channel_path,
    decompress,
    release_path,
)

T = TypeVar("T")

_SIGNED_BY = re.compile(r"(\S+) was signed by (\d+)/(\d+) keys")
_NEWER = re.compile(r"must be >=|version \d+, got \d+\.$")


@dataclass(frozen=True)
class Mirror:
    """A mirror is a place where a repository is: a URL that ends without a slash."""

    url: str

    @classmethod
    def of(cls, text: str) -> "Mirror":
        """Return the mirror at a URL or in a folder.

        Raises:
            UsageError: the URL is of a kind that cannot be read, or is none.
        """
        scheme, separator, _ = text.partition("://")
        if not separator:
            return cls(f"file://{Path(text).absolute()}")
        if scheme not in ("http", "https", "file"):
            raise UsageError(f"{text}: give http://…, https://… or a folder")
        if scheme != "file":
            check_url(text)
        return cls(text.rstrip("/"))

    def __str__(self) -> str:
        return self.url.removeprefix("file://")


class UpdateClient:
    """An update client knows a root that it trusts, and where copies of the repository are.

    Args:
        folder: keeps the newest metadata that was seen, so that older is refused.
        root: metadata of the root role, any version, got from whom the user trusts.
        mirrors: in the order they are tried in; the next where one fails.
        limits: on the time of downloads.
    """

    def __init__(
        self,
        folder: Path,
        root: bytes,
        mirrors: Sequence[Mirror],
        limits: FetchLimits | None = None,
    ) -> None:
        self._folder = folder
        self._root = root
        self._mirrors = list(mirrors)
        self._fetcher = Fetcher(limits)

    @property
    def received_bytes(self) -> int:
        """Return what was downloaded so far."""
        return self._fetcher.received_bytes

    def find(self, channel: str, board: str, known: Sequence[Release] = ()) -> Release | None:
        """Return the release that a board is to have now; None if there is none for it.

        A download begins here, as to limits on its time, and goes on with `chunk`.

        Args:
            channel: what the board follows.
            board: its name.
            known: releases that are here, so that less has to be downloaded.

        Raises:
            AttackError: what all mirrors gave is refused; that of the first is told.
            RepositoryError: no mirror can be reached.
            OutputError: metadata cannot be kept.
        """
        self._fetcher.begin_download()
        try:
            return self._at_any_mirror(lambda mirror: self._find_at(mirror, channel, board, known))
        except OSError as error:
            raise output_error(Path(error.filename or self._folder), error) from None

    def chunk(self, chunk: Chunk) -> bytes:
        """Return the bytes of a chunk.

        Raises:
            AttackError: what all mirrors gave is refused.
            RepositoryError: no mirror can be reached.
        """

        def fetch(mirror: Mirror) -> bytes:
            url = f"{mirror.url}/{quote(chunk.path)}"
            with _refusals(mirror):
                stored = self._fetcher.download_bytes(url, chunk.stored)
            try:
                data = decompress(stored, min(chunk.size, MOST_CHUNK_BYTES))
            except BundleError:
                data = b""
            if hashlib.sha256(data).hexdigest() != chunk.sha256:
                raise AttackError(
                    f"{mirror}: arbitrary software: {chunk.path} is not what the release lists"
                )
            return data

        return self._at_any_mirror(fetch)

    def _find_at(
        self, mirror: Mirror, channel: str, board: str, known: Sequence[Release]
    ) -> Release | None:
        with TemporaryDirectory(prefix="edgec-update-") as scratch, _refusals(mirror):
            updater = Updater(
                str(self._folder),
                f"{mirror.url}/metadata",
                scratch,
                f"{mirror.url}/targets",
                fetcher=self._fetcher,
                bootstrap=self._root,
            )
            updater.refresh()

            def read(path: str) -> bytes | None:
                target = updater.get_targetinfo(path)
                if target is None:
                    return None
                try:
                    return Path(updater.download_target(target)).read_bytes()
                except exceptions.LengthOrHashMismatchError:
                    raise AttackError(
                        f"{mirror}: arbitrary software: {path} is not what was signed"
                    ) from None

            described = read(channel_path(channel))
            if described is None:
                raise RepositoryError(f"{mirror} has no channel {channel}")
            found = Channel.from_bytes(described)
            wanted = found.release_for(board)
            if wanted is None:
                return None
            release = _describe(channel, wanted, read, known)
        if release is None:
            raise RepositoryError(f"{mirror}: release {wanted.number} of {channel} is missing")
        expected = (channel, channel, wanted.number, wanted.sha256)
        if (found.name, release.channel, release.number, release.sha256) != expected:
            raise AttackError(
                f"{mirror}: wrong installation: release {wanted.number} of {channel} says that it "
                f"is release {release.number} of {release.channel}"
            )
        return release

    def _at_any_mirror(self, call: Callable[[Mirror], T]) -> T:
        """Return what the first mirror gives that gives anything good; it is asked first then."""
        errors: list[EdgecError] = []
        for mirror in list(self._mirrors):
            try:
                result = call(mirror)
            except (AttackError, RepositoryError) as error:
                errors.append(error)
                continue
            self._mirrors.remove(mirror)
            self._mirrors.insert(0, mirror)
            return result
        refused = [error for error in errors if isinstance(error, AttackError)]
        raise (refused or errors)[0]


def _describe(
    channel: str,
    wanted: RollOut,
    read: Callable[[str], bytes | None],
    known: Sequence[Release],
) -> Release | None:
    """Return the description of a release, by what is known of others if that will do."""
    for other in known:
        if other.sha256 == wanted.sha256:
            return other
        if other.channel == channel:
            data = read(release_path(channel, wanted.number, other.number))
            with suppress(BundleError):
                release = Release.from_bytes(data, other) if data else None
                if release and release.sha256 == wanted.sha256:
                    return release
    data = read(release_path(channel, wanted.number))
    return None if data is None else Release.from_bytes(data)


@contextmanager
def _refusals(mirror: Mirror) -> Iterator[None]:
    """Name the attack that metadata or a download may be part of."""
    try:
        yield
    except exceptions.RepositoryError as error:
        raise AttackError(f"{mirror}: {_attack(error)}") from None
    except exceptions.DownloadLengthMismatchError as error:
        raise AttackError(f"{mirror}: endless data: {error}") from None
    except exceptions.SlowRetrievalError as error:
        raise AttackError(f"slow retrieval: {error}") from None
    except exceptions.DownloadError as error:
        raise RepositoryError(f"the repository cannot be read: {error}") from None


def _attack(error: exceptions.RepositoryError) -> str:
    """Return the name of an attack, as in section 1.5.2 of the specification, and what shows it."""
    text = str(error)
    if isinstance(error, exceptions.UnsignedMetadataError):
        match = _SIGNED_BY.search(text)
        if match and match.group(2) != "0":
            return (
                f"key compromise: {match[1]} is signed by {match[2]} of its keys, and "
                f"{match[3]} have to sign"
            )
        return f"arbitrary software: {text}"
    if isinstance(error, exceptions.ExpiredMetadataError):
        return f"freeze: {text}; its maintainer has to sign anew: edgec release refresh"
    if isinstance(error, exceptions.BadVersionNumberError):
        return f"{'rollback' if _NEWER.search(text) else 'mix-and-match'}: {text}"
    if isinstance(error, exceptions.LengthOrHashMismatchError):
        return f"mix-and-match: {text}"
    return f"arbitrary software: {text}"
