"""The package model-signing verifies what we sign for it."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, generate_private_key
from model_signing import verifying
from support.signed_bundle import SignedBundle

from edgec.compiler.bundle.bundle import sign_bundle
from edgec.compiler.cli.main import main
from edgec.compiler.trust.keys import keys_folder, new_key


def pair(folder: Path, curve: SECP256R1 | SECP384R1) -> tuple[Path, Path]:
    """Files of a private key and of its public half."""
    key = generate_private_key(curve)
    private, public = folder / "key.pem", folder / "key.pub"
    encoding = forms.Encoding.PEM
    private.write_bytes(
        key.private_bytes(encoding, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(encoding, forms.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.mark.parametrize("curve", [SECP256R1(), SECP384R1()])
def test_it_verifies_ours(
    signed: SignedBundle, tmp_path: Path, curve: SECP256R1 | SECP384R1
) -> None:
    private, public = pair(tmp_path, curve)
    signature = tmp_path / "model.sig"
    words = ["sign", str(signed.path), "--model-signing", str(private), "-o", str(signature)]
    assert main(words) == 0
    # Ours may change afterwards: it is left out.
    sign_bundle(signed.path, [new_key(f"later-{curve.name}")])
    check = verifying.Config().use_elliptic_key_verifier(public_key=public)
    check.verify(signed.path, signature)
    vector = signed.path / "vectors/0/input-0.npy"
    data = vector.read_bytes()
    vector.write_bytes(data[:-1] + b"x")
    with pytest.raises(ValueError, match=r"Hash mismatch for 'vectors/0/input-0\.npy'"):
        check.verify(signed.path, signature)
    vector.write_bytes(data)


def test_it_knows_no_ed25519(
    signed: SignedBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = str(keys_folder() / "maker.pem")
    assert main(["sign", str(signed.path), "--model-signing", key, "-o", str(tmp_path / "x")]) == 4
    assert "model-signing knows ECDSA on secp256r1" in capsys.readouterr().err
    assert main(["sign", str(signed.path), "--model-signing", key]) == 2
