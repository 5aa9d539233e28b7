"""Whose bundles run: the same answer of Python and of the runner."""

import shutil
from pathlib import Path

import pytest
from support.signed_bundle import SignedBundle, load

from edgec.compiler import Bundle
from edgec.compiler.boards.run import model_on
from edgec.compiler.bundle.bundle import sign_bundle
from edgec.compiler.cli.main import main
from edgec.compiler.errors import KeyFileError, TrustError
from edgec.compiler.trust.keys import new_key
from edgec.compiler.trust.policy import Policy, load_policy
from edgec.compiler.trust.signature import SIGNATURE


def verdict(signed: SignedBundle, bundle: Path, policy: Path) -> str:
    """Why both refuse a bundle; empty if both run it."""
    code, line = signed.run(bundle, policy=policy)
    why = ""
    try:
        load(bundle)
    except TrustError as error:
        why = str(error)
    assert (code, line.count("\n")) == ((8, 1) if why else (0, 0))
    return f"{why}{line}"


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test writes the policy of this machine."""
    monkeypatch.setenv("EDGEC_TRUST", str(tmp_path / "trust.toml"))
    return tmp_path / "trust.toml"


def test_trusted_unknown_and_revoked(signed: SignedBundle, policy: Path, tmp_path: Path) -> None:
    key = signed.key.public
    rules = Policy(policy)
    rules.write()
    unknown = verdict(signed, signed.path, policy)
    assert unknown.count(f"is signed by key {key}, which {policy} does not trust") == 2
    rules = rules.with_trusted("maker", key)
    rules.write()
    assert load_policy() == rules
    assert verdict(signed, signed.path, policy) == ""
    rules.with_revoked("maker", key).write()
    revoked = verdict(signed, signed.path, policy)
    assert revoked.count(f"is signed by key maker ({key}), which {policy} revokes") == 2
    # Rotation: another key signs the same bundle, and is trusted.
    other = new_key(f"other-{tmp_path.name}")
    both = Path(shutil.copytree(signed.path, tmp_path / "both.edgec"))
    sign_bundle(both, [other])
    assert "revokes" in verdict(signed, both, policy)
    rules.with_revoked("maker", key).with_trusted("other", other.public).write()
    assert verdict(signed, both, policy) == ""
    assert "revokes" in verdict(signed, signed.path, policy)


def test_unsigned(signed: SignedBundle, policy: Path, tmp_path: Path) -> None:
    stripped = Path(shutil.copytree(signed.path, tmp_path / "stripped.edgec"))
    (stripped / SIGNATURE).unlink()
    Policy(policy, trusted={"maker": signed.key.public}).write()
    why = verdict(signed, stripped, policy)
    assert why.count(f"is not signed, and {policy} requires a signature") == 2
    Policy(policy, require_signature=False).write()
    assert verdict(signed, stripped, policy) == ""
    assert "does not trust" in verdict(signed, signed.path, policy)
    policy.unlink()
    assert "trust.toml" in verdict(signed, stripped, policy)


def test_every_way_to_the_code_asks(signed: SignedBundle, policy: Path) -> None:
    """What a board would be sent, and what is counted and measured, is `library`."""
    Policy(policy).write()
    bundle = Bundle.load(signed.path)
    for use in (lambda: bundle.library, lambda: bundle.open(), lambda: bundle.run({})):
        with pytest.raises(TrustError, match="does not trust"):
            use()
    with pytest.raises(TrustError, match="does not trust"), model_on(bundle, "qemu-rpi4"):
        pass
    for words in (["run"], ["bench"], ["verify"], ["deploy", "--board", "qemu-rpi4"]):
        assert main([words[0], str(signed.path), *words[1:]]) == 8


def test_a_trusted_library_is_loaded_from_memory(
    signed: SignedBundle, policy: Path, tmp_path: Path
) -> None:
    """So it does not matter who changes the file after it was checked."""
    copy = Path(shutil.copytree(signed.path, tmp_path / "copy.edgec"))
    Policy(policy, trusted={"maker": signed.key.public}).write()
    bundle = Bundle.load(copy)
    data = (copy / "model.so").read_bytes()
    (copy / "model.so").write_bytes(data[:-1] + b"\1")
    with pytest.raises(TrustError, match=r"model\.so was changed while it was opened"):
        bundle.open()
    (copy / "model.so").write_bytes(data)
    session = bundle.open(1)
    mapped = Path("/proc/self/maps").read_text()
    assert "memfd:model.so" in mapped
    assert str(copy) not in mapped
    del session


KEY = "ed25519:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("", True),
        ("# nothing\n\n", True),
        ("require_signature = false", True),
        (f'require_signature=true # yes\n[trusted]\n a-1 = "{KEY}" # b\n[revoked]\n', True),
        (f'[revoked]\nx = "{KEY}"\n[trusted]\n', True),
        ("require_signature = 0", False),
        ("require_signature = truely", False),
        ("require_signature = true\nrequire_signature = true", False),
        (f'[trusted]\na = "{KEY}"\na = "{KEY}"', False),
        ("[trusted]\n[trusted]", False),
        ("[others]", False),
        ("requires_signature = false", False),
        ("[trusted]\nrequire_signature = false", False),
        (f'[trusted]\na = "{KEY.upper()}"', False),
        (f'[trusted]\na = "{KEY}0"', False),
        (f'[trusted]\na = "{KEY[:-1]}"', False),
        (f'[trusted]\na = "{KEY}', False),
        (f'[trusted]\na b = "{KEY}"', False),
        (f'[trusted]\n{"a" * 65} = "{KEY}"', False),
        ("\0", False),
        ("[trusted]]", False),
    ],
)
def test_the_file(signed: SignedBundle, policy: Path, text: str, right: bool) -> None:
    policy.write_text(text)
    code, line = signed.run(signed.path, policy=policy)
    if right:
        assert load_policy() is not None
        assert (code, "does not trust" in line) == (8, True)
    else:
        with pytest.raises(TrustError, match=r"trust policy .*trust\.toml"):
            load_policy()
        assert (code, "trust policy" in line) == (8, True)


def test_what_only_toml_can_say_is_refused_by_the_runner(
    signed: SignedBundle, policy: Path
) -> None:
    """Never taken for something else."""
    policy.write_text(f'trusted."maker" = "{signed.key.public}"\n')
    assert load_policy() is not None
    code, line = signed.run(signed.path, policy=policy)
    assert (code, "line 1: expected" in line) == (8, True)


def test_names(policy: Path, signed: SignedBundle) -> None:
    key, other = signed.key.public, new_key("one-more").public
    rules = Policy(policy).with_trusted("a", key)
    with pytest.raises(KeyFileError, match="trusts another key as a"):
        rules.with_trusted("a", other)
    with pytest.raises(KeyFileError, match="a revoked key stays so"):
        rules.with_revoked("a", key).with_trusted("b", key)
    with pytest.raises(KeyFileError, match="use letters"):
        rules.with_trusted("a b", key)


def test_the_command_line(
    signed: SignedBundle, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "trust", "maker"]) == 0
    assert "bundles without a trusted signature are refused" in capsys.readouterr().out
    assert main(["verify", str(signed.path)]) == 0
    assert f"signed by {signed.key.public}: maker (trusted)" in capsys.readouterr().out
    assert main(["keys", "new", "maker"]) == 4
    assert "exists; choose another name" in capsys.readouterr().err
    assert main(["keys", "revoke", "maker"]) == 0
    capsys.readouterr()
    assert main(["keys", "list"]) == 0
    out = capsys.readouterr().out
    assert "revoked  maker" in out
    assert "bundles without a signature are refused" in out
    assert main(["keys", "trust", "ed25519:12"]) == 4
