from pathlib import Path

import pytest
from support.releases import CHANNEL, Releases, changed_bundle, wrong_bundle
from support.signed_bundle import SignedBundle, make_signed_bundle


@pytest.fixture(scope="session")
def signed(tmp_path_factory: pytest.TempPathFactory) -> SignedBundle:
    """A small signed bundle; no policy of this machine says anything about it."""
    folder = tmp_path_factory.mktemp("signed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder))
        made = make_signed_bundle(folder)
        # A release that works, and one that does not.
        changed_bundle(made.path, folder / "second.edgec", made.key, {"note.txt": b"second"})
        wrong_bundle(made.path, folder / "wrong.edgec", made.key)
    return made


@pytest.fixture(autouse=True)
def _no_policy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture(scope="session")
def published(signed: SignedBundle, tmp_path_factory: pytest.TempPathFactory) -> Releases:
    """A repository of one release; tests that change it work on a copy."""
    releases = Releases.new(tmp_path_factory.mktemp("releases") / "repository")
    releases.open().publish(CHANNEL, signed.path)
    return releases


@pytest.fixture
def releases(published: Releases, tmp_path_factory: pytest.TempPathFactory) -> Releases:
    """A copy of that repository."""
    return published.copy(tmp_path_factory.mktemp("copy") / "repository")
