"""Provide the policy of a machine: whose bundles run on it.

It is a TOML file: the one that the variable EDGEC_TRUST names, else `trust.toml` in the user's
configuration folder, else `/etc/edgec/trust.toml`. The runner reads it as well (`native/policy.c`),
so it has no more than this:

```toml
require_signature = true

[trusted]
release-2026 = "ed25519:…"

[revoked]
release-2025 = "ed25519:…"
```
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgec.compiler.errors import KeyFileError, TrustError
from edgec.compiler.support.files import write_atomically
from edgec.compiler.support.toml_file import explain, read_toml
from edgec.compiler.trust.keys import PublicKey, check_name, config_folder
from edgec.compiler.trust.signature import Signature

VARIABLE = "EDGEC_TRUST"
FILE = "trust.toml"
SYSTEM_FILE = Path("/etc/edgec") / FILE

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
_Key = Annotated[str, Field(pattern=r"^ed25519:[0-9a-f]{64}$")]


class _Tables(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    require_signature: bool = True
    trusted: dict[_Name, _Key] = {}
    revoked: dict[_Name, _Key] = {}


@dataclass(frozen=True)
class Policy:
    """A policy says what a machine asks of bundles before it runs them.

    Attributes:
        path: its file.
        require_signature: whether bundles that nobody signed are refused.
        trusted: keys whose bundles run, by name.
        revoked: keys whose signature counts for nothing, by name.
    """

    path: Path
    require_signature: bool = True
    trusted: dict[str, PublicKey] = field(default_factory=dict)
    revoked: dict[str, PublicKey] = field(default_factory=dict)

    def check(self, bundle: Path, signature: Signature | None) -> None:
        """Refuse a bundle that may not run here.

        Raises:
            TrustError: why, and what to do.
        """
        if signature is None:
            if self.require_signature:
                raise TrustError(
                    f"bundle {bundle} is not signed, and {self.path} requires a signature; get a "
                    f"signed one, or sign it: edgec sign {bundle} --key NAME"
                )
            return
        revoked = {key: name for name, key in self.revoked.items()}
        if any(key in self.trusted.values() and key not in revoked for key in signature.keys):
            return
        for key in signature.keys:
            if key in revoked:
                raise TrustError(
                    f"bundle {bundle} is signed by key {revoked[key]} ({key}), which {self.path} "
                    "revokes; get one that is signed by another key"
                )
        raise TrustError(
            f"bundle {bundle} is signed by {signature.signers}, which {self.path} does not trust; "
            f"if you know whose that is: edgec keys trust {signature.keys[0]} --name NAME"
        )

    def name_of(self, key: PublicKey) -> str:
        """Return what this policy says of a key, for people."""
        for names, verdict in ((self.revoked, "revoked"), (self.trusted, "trusted")):
            for name, known in names.items():
                if known == key:
                    return f"{name} ({verdict})"
        return "a key that is not trusted here"

    def with_trusted(self, name: str, key: PublicKey) -> "Policy":
        """Return the same with one more trusted key.

        Raises:
            KeyFileError: the name is taken, or the key is revoked.
        """
        check_name(name)
        if key in self.revoked.values():
            raise KeyFileError(f"{self.path} revokes {key}; a revoked key stays so: make a new one")
        if self.trusted.get(name, key) != key:
            raise KeyFileError(f"{self.path} trusts another key as {name}; give another --name")
        return replace(self, trusted={**self.trusted, name: key})

    def with_revoked(self, name: str, key: PublicKey) -> "Policy":
        """Return the same with a key revoked, and no longer trusted.

        Raises:
            KeyFileError: the name is taken.
        """
        check_name(name)
        if self.revoked.get(name, key) != key:
            raise KeyFileError(f"{self.path} revokes another key as {name}; give another --name")
        trusted = {known: other for known, other in self.trusted.items() if other != key}
        return replace(self, trusted=trusted, revoked={**self.revoked, name: key})

    def write(self) -> None:
        """Write the file.

        Raises:
            OutputError: it cannot be written.
        """
        lines = [f"require_signature = {str(self.require_signature).lower()}"]
        for table, keys in (("trusted", self.trusted), ("revoked", self.revoked)):
            lines += ["", f"[{table}]", *(f'{name} = "{keys[name]}"' for name in sorted(keys))]
        write_atomically(self.path, "\n".join(lines) + "\n")


def policy_file() -> Path:
    """Return where the policy of this machine is, or would be."""
    given = os.environ.get(VARIABLE)
    own = config_folder() / FILE
    if given:
        return Path(given)
    return SYSTEM_FILE if not os.path.lexists(own) and os.path.lexists(SYSTEM_FILE) else own


def load_policy() -> Policy | None:
    """Read the policy of this machine; None if it has none.

    Raises:
        TrustError: it cannot be read, or is damaged: then nothing may run.
    """
    path = policy_file()
    if not os.environ.get(VARIABLE) and not os.path.lexists(path):
        return None
    try:
        tables = _Tables.model_validate(read_toml(path, "trust policy", KeyFileError))
    except KeyFileError as error:
        raise TrustError(str(error)) from None
    except ValidationError as error:
        raise TrustError(f"trust policy {path}: {explain(error, lambda _: _Tables)}") from None
    return Policy(
        path,
        tables.require_signature,
        {name: PublicKey.parse(key) for name, key in tables.trusted.items()},
        {name: PublicKey.parse(key) for name, key in tables.revoked.items()},
    )


def policy_to_change() -> Policy:
    """Return the policy of this machine, or one that asks for signatures and trusts nobody.

    Raises:
        TrustError: it cannot be read, or is damaged.
    """
    path = policy_file()
    return (load_policy() if os.path.lexists(path) else None) or Policy(path)


def check_trust(bundle: Path, signature: Signature | None) -> None:
    """Refuse a bundle that this machine's policy refuses.

    Raises:
        TrustError: why, and what to do.
    """
    policy = load_policy()
    if policy is not None:
        policy.check(bundle, signature)
