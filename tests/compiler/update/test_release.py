import pytest
import zstandard

from edgec.compiler.errors import BundleError, UsageError
from edgec.compiler.update.release import (
    Channel,
    Release,
    RollOut,
    bucket,
    check_channel_name,
    decompress,
)


def channel(*percents: float) -> Channel:
    roll_outs = [RollOut(number=n, percent=p, sha256="0" * 64) for n, p in enumerate(percents, 1)]
    return Channel(name="digits", releases=roll_outs)


def number_for(described: Channel, board: str) -> int | None:
    roll_out = described.release_for(board)
    return roll_out.number if roll_out else None


def test_a_share_of_the_boards_has_a_release() -> None:
    boards = [f"board-{number}" for number in range(1000)]
    found = [number_for(channel(100, 20), board) for board in boards]
    assert 150 < found.count(2) < 250
    assert found.count(1) + found.count(2) == 1000
    # Who has it at 20 percent has it at 50.
    more = [number_for(channel(100, 50), board) for board in boards]
    assert all(later == 2 for early, later in zip(found, more, strict=True) if early == 2)
    # Other boards are first in the next release.
    assert [bucket("digits", 2, b) < 20 for b in boards] != [
        bucket("digits", 3, b) < 20 for b in boards
    ]


def test_a_release_that_is_taken_back_is_nobodys() -> None:
    assert number_for(channel(100, 0), "pi") == 1
    assert channel(0).release_for("pi") is None
    assert channel().release_for("pi") is None


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 65])
def test_a_channels_name_is_a_folders(name: str) -> None:
    with pytest.raises(UsageError, match="use letters"):
        check_channel_name(name)


RELEASE = (
    '{"channel": "digits", "number": 1, "target": "rpi4", "files": [{"path": "PATH", "sha256": '
    '"' + "0" * 64 + '", "size": 1, "average": 4096, "chunks": []}]}'
)


@pytest.mark.parametrize("path", ["model.so", "vectors/0/input-0.npy"])
def test_a_release_is_what_was_written(path: str) -> None:
    release = Release.from_bytes(zstandard.compress(RELEASE.replace("PATH", path).encode()))
    assert Release.from_bytes(release.to_bytes()) == release


def test_a_description_is_short_for_who_has_another() -> None:
    first = Release.from_bytes(zstandard.compress(RELEASE.replace("PATH", "a").encode()))
    second = first.model_copy(update={"number": 2})
    data = second.to_bytes(first)
    assert len(data) < len(second.to_bytes()) / 2
    assert Release.from_bytes(data, first) == second
    # With another base than it was made for it is not read as what it is not.
    with pytest.raises(BundleError):
        Release.from_bytes(data)


@pytest.mark.parametrize("path", ["../up", "/etc/passwd", "a/../b", "", "a//b", ".ssh/x", "a/"])
def test_a_file_outside_the_bundle_is_refused(path: str) -> None:
    with pytest.raises(BundleError, match=r"release is not as expected: files\.0\.path"):
        Release.from_bytes(zstandard.compress(RELEASE.replace("PATH", path).encode()))


def test_what_would_fill_the_memory_is_refused() -> None:
    bomb = zstandard.compress(bytes(1 << 20))
    assert len(decompress(bomb, 1 << 20)) == 1 << 20
    with pytest.raises(BundleError, match="says of itself that it is over 1048575 bytes"):
        decompress(bomb, (1 << 20) - 1)
    with pytest.raises(BundleError, match="damaged"):
        decompress(b"nothing", 100)
