"""The policy covers the library that generates text as well as the model's."""

from pathlib import Path

import pytest
from support.releases import changed_bundle, signing_key
from support.signed_bundle import SignedBundle

from edgec.compiler import Bundle
from edgec.compiler.bundle.generation_files import GENERATION
from edgec.compiler.errors import TrustError
from edgec.compiler.trust.policy import Policy

CODE = b"not opened here"


@pytest.fixture
def bundle(signed: SignedBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A signed bundle with that file, on a machine that trusts its maker."""
    policy = Policy(tmp_path / "trust.toml").with_trusted("maker", signed.key.public)
    policy.write()
    monkeypatch.setenv("EDGEC_TRUST", str(policy.path))
    return changed_bundle(signed.path, tmp_path / "b.edgec", signed.key, {GENERATION: CODE})


def test_it_is_loaded_from_memory(bundle: Path) -> None:
    loaded = Bundle.load(bundle)
    path = loaded.loadable(GENERATION)
    assert path.read_bytes() == CODE
    assert not path.is_relative_to(bundle)


def test_what_changed_since_is_refused(bundle: Path) -> None:
    loaded = Bundle.load(bundle)
    (bundle / GENERATION).write_bytes(CODE[::-1])
    with pytest.raises(TrustError, match=GENERATION):
        loaded.loadable(GENERATION)


def test_a_strangers_is_refused(bundle: Path, tmp_path: Path) -> None:
    other = changed_bundle(bundle, tmp_path / "other.edgec", signing_key("x"), {GENERATION: CODE})
    with pytest.raises(TrustError, match="does not trust"):
        Bundle.load(other).loadable(GENERATION)
