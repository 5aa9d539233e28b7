"""Fetch files of a repository: from a folder, or over HTTP with limits on bytes and on time."""

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import urllib3
from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.ngclient import FetcherInterface

from edgec.compiler.errors import UsageError

_PIECE_BYTES = 1 << 16
_REDIRECTS = 3


@dataclass(frozen=True)
class FetchLimits:
    """Fetch limits end a download that a mirror delays.

    Attributes:
        silence_seconds: how long nothing may come.
        least_bytes_per_second: on the average of a file, and of all files from one server, from
            `grace_seconds` on.
        grace_seconds: how long a file, and all of them together, may be slower than that.
        seconds_per_file: what each file may take besides, when all of them are counted: small
            files are slow where a question takes long.
    """

    silence_seconds: float = 20.0
    least_bytes_per_second: float = 1000.0
    grace_seconds: float = 20.0
    seconds_per_file: float = 1.0

    def are_kept(self, seconds: float, received: int, files: int = 0) -> bool:
        """Return whether so many bytes in so many seconds are enough."""
        counted = seconds - self.grace_seconds - files * self.seconds_per_file
        return received >= counted * self.least_bytes_per_second


@dataclass
class _Account:
    """An account counts what one server gave in a download, and how long that took."""

    seconds: float = 0.0
    received: int = 0
    files: int = 0


class Fetcher(FetcherInterface):
    """A fetcher reads `http://…`, `https://…` and `file:///…`.

    Args:
        limits: on time; the metadata has those on bytes.
    """

    def __init__(self, limits: FetchLimits | None = None) -> None:
        self._limits = limits or FetchLimits()
        self._pool = urllib3.PoolManager(headers={"Accept-Encoding": "identity"})
        self._accounts: defaultdict[str, _Account] = defaultdict(_Account)
        self.received_bytes = 0

    def begin_download(self) -> None:
        """Count anew how fast servers are; what they gave before is no credit."""
        self._accounts.clear()

    def _fetch(self, url: str) -> Iterator[bytes]:
        pieces = self._from_folder(url) if url.startswith("file:") else self._from_server(url)
        for piece in pieces:
            self.received_bytes += len(piece)
            yield piece

    def _from_folder(self, url: str) -> Iterator[bytes]:
        try:
            with Path(url.removeprefix("file://")).open("rb") as stream:
                while piece := stream.read(_PIECE_BYTES):
                    yield piece
        except FileNotFoundError:
            raise DownloadHTTPError(f"{url} does not exist", 404) from None
        except OSError as error:
            raise DownloadError(f"{url}: {error.strerror}") from None

    def _from_server(self, url: str) -> Iterator[bytes]:
        limits, account = self._limits, self._accounts[urllib3.util.parse_url(url).netloc or ""]
        begun, received = time.monotonic(), 0
        account.files += 1

        def check_speed() -> None:
            seconds = time.monotonic() - begun
            if not limits.are_kept(seconds, received):
                raise SlowRetrievalError(f"{url}: {received} bytes came in {seconds:.0f} s")
            seconds, together = seconds + account.seconds, received + account.received
            if not limits.are_kept(seconds, together, account.files):
                raise SlowRetrievalError(
                    f"{url}: {together} bytes of {account.files} files came in {seconds:.0f} s"
                )

        try:
            check_speed()
            response = self._pool.request(
                "GET",
                url,
                preload_content=False,
                timeout=limits.silence_seconds,
                retries=urllib3.Retry(0, redirect=_REDIRECTS),
            )
            if response.status != 200:
                response.close()
                raise DownloadHTTPError(f"{url}: HTTP status {response.status}", response.status)
            try:
                while piece := response.read1(_PIECE_BYTES, decode_content=False):
                    received += len(piece)
                    yield piece
                    check_speed()
            finally:
                response.close()
        except urllib3.exceptions.TimeoutError:
            raise SlowRetrievalError(
                f"{url}: nothing came for {limits.silence_seconds:g} s"
            ) from None
        except urllib3.exceptions.HTTPError as error:
            raise DownloadError(f"{url}: {reason_of(error)}") from None
        finally:
            account.seconds += time.monotonic() - begun
            account.received += received


def check_url(url: str) -> None:
    """Make sure that a server may be there.

    Raises:
        UsageError: it may not.
    """
    try:
        parsed = urllib3.util.parse_url(url)
    except urllib3.exceptions.LocationParseError:
        parsed = urllib3.util.Url()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"{url}: give http://HOST or https://HOST")


def reason_of(error: urllib3.exceptions.HTTPError) -> str:
    """Return why a request failed, in a few words."""
    inner = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) else error
    return str(inner).partition(": ")[2] or str(inner) or type(error).__name__
