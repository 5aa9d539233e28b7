from pathlib import Path

import pytest
from support.releases import CHANNEL, Releases, signing_key
from support.signed_bundle import SignedBundle

from edgec.compiler.errors import KeyFileError, RepositoryError, UsageError
from edgec.compiler.update.repository import ReleaseRepository


def test_a_release_lists_the_whole_bundle(releases: Releases, signed: SignedBundle) -> None:
    release = releases.open().release(CHANNEL, 1)
    on_disk = {
        path.relative_to(signed.path).as_posix(): path.stat().st_size
        for path in signed.path.rglob("*")
        if path.is_file()
    }
    assert {file.path: file.size for file in release.files} == on_disk
    for file in release.files:
        assert sum(chunk.size for chunk in file.chunks) == file.size


def test_the_same_bundle_again_stores_nothing(releases: Releases, signed: SignedBundle) -> None:
    before = sorted((releases.folder / "chunks").rglob("*"))
    again = releases.open().publish(CHANNEL, signed.path, 10)
    assert again.number == 2
    assert sorted((releases.folder / "chunks").rglob("*")) == before
    releases.open().roll_out(CHANNEL, 2, 60)
    percents = [(r.number, r.percent) for r in releases.open().channel(CHANNEL).releases]
    assert percents == [(1, 100), (2, 60)]
    with pytest.raises(RepositoryError, match="channel relu has no release 3"):
        releases.open().roll_out(CHANNEL, 3, 60)


def test_who_may_not_sign_changes_nothing(releases: Releases, signed: SignedBundle) -> None:
    before = sorted(releases.folder.rglob("*.json"))
    stranger = ReleaseRepository(releases.folder, [signing_key("stranger"), releases.online])
    with pytest.raises(KeyFileError, match="1 keys have to sign as targets, 0 of those given may"):
        stranger.roll_out(CHANNEL, 1, 50)
    assert [p for p in sorted(releases.folder.rglob("*.json")) if "metadata" in str(p)] == [
        p for p in before if "metadata" in str(p)
    ]


def test_root_keys_sign_one_after_the_other(tmp_path: Path, signed: SignedBundle) -> None:
    first, second, work = signing_key("1"), signing_key("2"), signing_key("work")
    roles = {role: [work.public] for role in ("targets", "snapshot", "timestamp")}
    roles["root"] = [first.public, second.public]
    made = ReleaseRepository.create(tmp_path, roles, {"root": 2}, [first])
    assert made.pending == (0, 1)
    with pytest.raises(RepositoryError, match="its root waits for signatures; edgec release sign"):
        ReleaseRepository(tmp_path, [work]).publish(CHANNEL, signed.path)
    with pytest.raises(RepositoryError, match="is a repository already"):
        ReleaseRepository.create(tmp_path, roles, {}, [first])
    ReleaseRepository(tmp_path, [second]).sign_root()
    assert made.pending is None
    assert made.root().version == 1
    with pytest.raises(RepositoryError, match="no root waits"):
        made.sign_root()


def test_a_new_root_needs_old_and_new_keys(releases: Releases) -> None:
    new = signing_key("root-new")
    old = releases.roots[0]
    changed = [("root", old.public)]
    ReleaseRepository(releases.folder, [old]).change_root([("root", new.public)], changed)
    repository = releases.open()
    assert repository.pending == (1, 2)
    ReleaseRepository(releases.folder, [releases.roots[1]]).sign_root()
    assert repository.pending == (0, 1)
    # The key that leaves does not count for the new root.
    ReleaseRepository(releases.folder, [new]).sign_root()
    assert repository.pending is None
    assert repository.root().version == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thresholds": {"root": 4}}, "4 keys are to sign as root, and it has 3"),
        ({"thresholds": {"roots": 1}}, "'roots' is no role; root, snapshot, targets, timestamp"),
        ({"remove": [("root", signing_key("x").public)]}, "is no key of the role root"),
    ],
)
def test_a_root_that_nobody_can_sign_is_refused(
    change: dict[str, object], message: str, releases: Releases
) -> None:
    with pytest.raises(UsageError, match=message):
        releases.open(*releases.roots).change_root(**change)
    assert releases.open().pending is None


def test_a_folder_without_metadata_is_none(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="is no repository; make one: edgec release init"):
        ReleaseRepository(tmp_path).refresh()
