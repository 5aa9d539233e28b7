"""Provide signatures for the package model-signing (OpenSSF), by its key method.

It knows ECDSA on the curves of NIST only, no Ed25519, so this is a signature beside the bundle's
own, in a file of its own: a Sigstore bundle 0.3 with a DSSE envelope around an in-toto statement
(docs/model_signing_format.md of sigstore/model-transparency). The digests are the bundle's.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from edgec.compiler.errors import KeyFileError
from edgec.compiler.trust.keys import read_key_file
from edgec.compiler.trust.signature import SIGNATURE, Digest

_TYPE = "application/vnd.in-toto+json"
_HASHES: dict[str, Callable[[], HashAlgorithm]] = {
    "secp256r1": SHA256,
    "secp384r1": SHA384,
    "secp521r1": SHA512,
}


def model_signature(name: str, files: Mapping[str, Digest], key: Path) -> str:
    """Return the content of a signature file.

    Args:
        name: the bundle's.
        files: digest of each file of the bundle but `signature.txt`.
        key: a PEM file.

    Raises:
        KeyFileError: it is no private ECDSA key on one of these curves.
    """
    private = _load(key)
    payload = json.dumps(_statement(name, files)).encode()
    pae = f"DSSEv1 {len(_TYPE)} {_TYPE} {len(payload)} ".encode() + payload
    signature = private.sign(pae, ECDSA(_HASHES[private.curve.name]()))
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return json.dumps(
        {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {
                "publicKey": {"hint": hashlib.sha256(public).hexdigest()},
                "tlogEntries": [],
            },
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": _TYPE,
                "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
            },
        }
    )


def _statement(name: str, files: Mapping[str, Digest]) -> dict[str, object]:
    digests = b"".join(bytes.fromhex(files[path].sha256) for path in sorted(files))
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": hashlib.sha256(digests).hexdigest()}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE],
            },
            "resources": [
                {"name": path, "algorithm": "sha256", "digest": files[path].sha256}
                for path in sorted(files)
            ],
        },
    }


def _load(path: Path) -> EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(read_key_file(path, f"key {path}"), None)
    except TypeError:
        raise KeyFileError(f"{path} is protected by a passphrase; give one without") from None
    except ValueError:
        raise KeyFileError(f"{path} is no private key in PEM") from None
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in _HASHES:
        raise KeyFileError(
            f"{path}: model-signing knows ECDSA on {', '.join(_HASHES)} only; make such a key: "
            "openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
        )
    return key
