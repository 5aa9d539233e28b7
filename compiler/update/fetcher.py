"""Fetch files of a repository: from a folder, or over HTTP with limits on bytes and on time."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import urllib3
from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.ngclient import FetcherInterface

_PIECE_BYTES = 1 << 16
_REDIRECTS = 3


@dataclass(frozen=True)
class FetchLimits:
    """Fetch limits end a download that a mirror delays.

    Attributes:
        silence_seconds: how long nothing may come.
        least_bytes_per_second: on the average of a file, from `grace_seconds` on.
        grace_seconds: how long a file may be slower than that.
    """

    silence_seconds: float = 20.0
    least_bytes_per_second: float = 1000.0
    grace_seconds: float = 20.0


class Fetcher(FetcherInterface):
    """A fetcher reads `http://…`, `https://…` and `file:///…`.

    Args:
        limits: on time; the metadata has those on bytes.
    """

    def __init__(self, limits: FetchLimits | None = None) -> None:
        self._limits = limits or FetchLimits()
        self._pool = urllib3.PoolManager(headers={"Accept-Encoding": "identity"})
        self.received_bytes = 0

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
        limits = self._limits
        try:
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
            begun, received = time.monotonic(), 0
            try:
                while piece := response.read1(_PIECE_BYTES, decode_content=False):
                    received += len(piece)
                    yield piece
                    seconds = time.monotonic() - begun
                    expected = (seconds - limits.grace_seconds) * limits.least_bytes_per_second
                    if received < expected:
                        raise SlowRetrievalError(f"{url}: {received} bytes came in {seconds:.0f} s")
            finally:
                response.close()
        except urllib3.exceptions.TimeoutError:
            raise SlowRetrievalError(
                f"{url}: nothing came for {limits.silence_seconds:g} s"
            ) from None
        except urllib3.exceptions.HTTPError as error:
            raise DownloadError(f"{url}: {reason_of(error)}") from None


def reason_of(error: urllib3.exceptions.HTTPError) -> str:
    """Return why a request failed, in a few words."""
    inner = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) else error
    return str(inner).partition(": ")[2] or str(inner) or type(error).__name__
