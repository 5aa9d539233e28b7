"""Describe a release: what files a bundle has, in which chunks, and which boards are to have it.

Both descriptions are TUF targets, so their digests are signed. A release lists the digest of each
chunk and of each file; a channel lists the releases of one model for one kind of board.
"""

import hashlib
import re
from typing import Annotated, Any, Self, TypeVar

import zstandard
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgec.compiler.errors import BundleError, UsageError

CHANNEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
MOST_RELEASE_BYTES = 64 << 20
MOST_CHUNK_BYTES = 1 << 20

T = TypeVar("T", bound=BaseModel)

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0)]
_Path = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$", max_length=255),
]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Chunk(_Record):
    """A chunk is a piece of a file.

    Attributes:
        sha256: of its bytes.
        size: of them.
        stored: bytes of it in the repository, compressed.
    """

    sha256: _Sha256
    size: Annotated[int, Field(gt=0, le=MOST_CHUNK_BYTES)]
    stored: Annotated[int, Field(gt=0, le=2 * MOST_CHUNK_BYTES)]

    @property
    def path(self) -> str:
        """Return where it is in the repository."""
        return f"chunks/{self.sha256[:2]}/{self.sha256}.zst"


class ReleaseFile(_Record):
    """A release file is one file of a bundle.

    Attributes:
        path: in the bundle.
        sha256: of its bytes.
        size: of them.
        executable: whether it is a program.
        average: of the lengths of its chunks; the next release keeps it.
        chunks: in order.
    """

    path: _Path
    sha256: _Sha256
    size: _Count
    executable: bool = False
    average: _Count
    chunks: list[Chunk]


class Release(_Record):
    """A release is one bundle of a channel.

    Attributes:
        channel: whose.
        number: 1 is the channel's first.
        target: what it was compiled for.
        most_latency_ms: a median run of its first test vector may take so long; None: any time.
        files: of the bundle.
    """

    channel: str
    number: Annotated[int, Field(ge=1)]
    target: str
    most_latency_ms: Annotated[float, Field(gt=0)] | None = None
    files: list[ReleaseFile]

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def chunks(self) -> dict[str, Chunk]:
        """Return each chunk once, by its digest."""
        return {chunk.sha256: chunk for file in self.files for chunk in file.chunks}

    @property
    def sha256(self) -> str:
        """Return the digest of the description, which is not compressed."""
        return hashlib.sha256(self._text).hexdigest()

    @property
    def _text(self) -> bytes:
        return self.model_dump_json().encode()

    def to_bytes(self, base: "Release | None" = None) -> bytes:
        """Return the description as it is stored; with a base, for who has that release."""
        dictionary = _dictionary(base._text) if base else None
        return zstandard.ZstdCompressor(level=19, dict_data=dictionary).compress(self._text)

    @classmethod
    def from_bytes(cls, data: bytes, base: "Release | None" = None) -> Self:
        """Read a stored description.

        Raises:
            BundleError: it is none.
        """
        text = decompress(data, MOST_RELEASE_BYTES, base._text if base else None)
        return _read(cls, text, "the description of a release")


class RollOut(_Record):
    """A roll-out says which boards are to have a release.

    Attributes:
        number: of the release.
        percent: of the boards; 0 takes it back.
        sha256: of the release's description.
    """

    number: Annotated[int, Field(ge=1)]
    percent: Annotated[float, Field(ge=0, le=100)]
    sha256: _Sha256


class Channel(_Record):
    """A channel is a model for one kind of board: its releases, from the first to the newest."""

    name: str
    releases: list[RollOut]

    def release_for(self, board: str) -> RollOut | None:
        """Return the release that a board is to have; None if there is none yet."""
        meant = (r for r in self.releases if bucket(self.name, r.number, board) < r.percent)
        return max(meant, key=lambda roll_out: roll_out.number, default=None)

    def to_bytes(self) -> bytes:
        """Return the description as it is stored."""
        return self.model_dump_json(indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a stored description.

        Raises:
            BundleError: it is none.
        """
        return _read(cls, data, "the description of a channel")


def bucket(channel: str, number: int, board: str) -> float:
    """Return a number from 0 up to 100 that stands for a board, another one in each release.

    >>> 0 <= bucket("digits", 1, "pi-1") < 100
    True
    """
    digest = hashlib.sha256(f"{channel}/{number}/{board}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 * 100


def check_channel_name(name: str) -> None:
    """Make sure that a channel may be called so.

    Raises:
        UsageError: it may not.
    """
    if not CHANNEL_NAME.fullmatch(name):
        raise UsageError(f"channel {name!r}: use letters, digits, '.', '_' and '-', at most 64")


def channel_path(name: str) -> str:
    """Return the TUF target that describes a channel."""
    return f"{name}/channel.json"


def release_path(name: str, number: int, base: int | None = None) -> str:
    """Return the TUF target that describes a release, as a whole or for who has another."""
    return f"{name}/{number}{f'.from-{base}' if base else ''}.json.zst"


def decompress(data: bytes, most_bytes: int, base: bytes | None = None) -> bytes:
    """Return the content of one Zstandard frame.

    Args:
        data: the frame.
        most_bytes: of content.
        base: what it was compressed against.

    Raises:
        BundleError: it is damaged, or the content is larger than allowed.
    """
    try:
        # The size in its head is what would be allocated, whatever the limit.
        if not 0 <= zstandard.frame_content_size(data) <= most_bytes:
            raise BundleError(f"compressed data says of itself that it is over {most_bytes} bytes")
        dictionary = None if base is None else _dictionary(base)
        return zstandard.ZstdDecompressor(dict_data=dictionary).decompress(data)
    except zstandard.ZstdError as error:
        raise BundleError(f"compressed data is damaged: {error}") from None


def _dictionary(text: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(text, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _read(kind: type[T], data: bytes, what: str) -> T:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first: Any = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BundleError(f"{what} is not as expected: {place}: {first['msg']}") from None
