"""A cache loses entries, never changes them, and stays within its bound."""

import hashlib
import os
from pathlib import Path

import pytest

from edgec.compiler.support.content_cache import ContentCache


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "edgec" / "things"


def key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_another_process_finds_what_one_stored(folder: Path) -> None:
    ContentCache("things", 1 << 20).put(key("a"), b"content")
    assert ContentCache("things", 1 << 20).get(key("a")) == b"content"
    assert ContentCache("things", 1 << 20).get(key("b")) is None
    assert len(files(folder)) == 1


@pytest.mark.parametrize("damage", [b"", b"short", bytes(60)], ids=["empty", "short", "other"])
def test_a_damaged_entry_is_none(folder: Path, damage: bytes) -> None:
    cache = ContentCache("things", 1 << 20)
    cache.put(key("a"), b"content")
    (entry,) = files(folder)
    entry.write_bytes(damage)
    assert cache.get(key("a")) is None
    cache.put(key("a"), b"content")
    assert cache.get(key("a")) == b"content"


def test_the_least_recently_used_goes_first(folder: Path) -> None:
    # One folder's share is two entries of 100 bytes and their digests.
    cache = ContentCache("things", 256 * 270)
    keys = [f"00{number:062x}" for number in range(3)]
    for age, name in zip((5, 9), keys, strict=False):
        cache.put(name, bytes(100))
        os.utime(folder / "00" / name[2:], (0, 1e9 - 86400 * age))
    # Used now, though it is the older one.
    assert cache.get(keys[1]) == bytes(100)
    cache.put(keys[2], bytes(100))
    assert [cache.get(name) is not None for name in keys] == [False, True, True]
    # An entry above the bound stays until the next one.
    cache.put(keys[0], bytes(1000))
    assert [cache.get(name) is not None for name in keys] == [True, False, False]


def test_a_cache_that_cannot_be_written_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache = ContentCache("things", 1 << 20)
    cache.put(key("a"), b"content")
    assert cache.get(key("a")) is None
