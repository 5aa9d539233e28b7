"""Provide `edgec keys …`: who may sign what runs here."""

from pathlib import Path

import click

from edgec.compiler.cli.options import json_option
from edgec.compiler.cli.printing import print_json, print_table


@click.group()
def keys() -> None:
    """Keys that sign bundles, and the policy of this machine."""


_key_name = click.option("--name", help="What the policy calls it; default: the key's own name.")


@keys.command()
@click.argument("name")
@click.option("--encryption", is_flag=True, help="One that decrypts bundles, for a board.")
def new(name: str, *, encryption: bool) -> None:
    """Make a signing key called NAME."""
    from edgec.compiler.trust.identities import new_identity
    from edgec.compiler.trust.keys import keys_folder, new_key

    if encryption:
        identity = new_identity(name)
        secret = keys_folder() / f"{name}.identity"
        click.echo(f"{identity.recipient}\n  secret in {secret}: it belongs on the board alone")
        return
    key = new_key(name)
    click.echo(f"{key.public}\n  secret in {keys_folder() / f'{name}.pem'}: keep it, and a copy")


@keys.command(name="list")
@json_option
def list_keys(as_json: bool) -> None:
    """Show own keys, and those that the policy trusts or revokes."""
    from edgec.compiler.trust.identities import own_recipients
    from edgec.compiler.trust.keys import own_keys
    from edgec.compiler.trust.policy import load_policy, policy_file

    policy = load_policy()
    rows = [("own", name, str(key)) for name, key in own_keys().items()]
    rows += [("recipient", name, str(key)) for name, key in own_recipients().items()]
    if policy is not None:
        rows += [("trusted", name, str(key)) for name, key in policy.trusted.items()]
        rows += [("revoked", name, str(key)) for name, key in policy.revoked.items()]
    required = policy is not None and policy.require_signature
    if as_json:
        listed = [dict(zip(("kind", "name", "key"), row, strict=True)) for row in rows]
        print_json({"policy": str(policy_file()), "require_signature": required, "keys": listed})
        return
    if rows:
        print_table(("", "name", "key"), rows)
    if policy is None:
        click.echo(f"no policy: every bundle runs here; edgec keys trust KEY makes {policy_file()}")
    else:
        what = "are refused" if required else "run"
        click.echo(f"{policy.path}: bundles without a signature {what}")


@keys.command()
@click.argument("key")
@_key_name
def trust(key: str, name: str | None) -> None:
    """Let bundles run here that KEY signed: its text, its name or its file."""
    from edgec.compiler.trust.keys import load_public_key
    from edgec.compiler.trust.policy import policy_to_change

    public = load_public_key(key)
    policy = policy_to_change()
    name = name or _own_name(key)
    policy.with_trusted(name, public).write()
    click.echo(f"{policy.path} trusts {name} ({public})")
    if policy.require_signature:
        click.echo("bundles without a trusted signature are refused here from now on")


@keys.command()
@click.argument("key")
@_key_name
def revoke(key: str, name: str | None) -> None:
    """Refuse bundles that only KEY signed: its name in the policy, its text or its file."""
    from edgec.compiler.trust.keys import load_public_key
    from edgec.compiler.trust.policy import policy_to_change

    policy = policy_to_change()
    public = policy.trusted.get(key) or load_public_key(key)
    known = [other for other, trusted in policy.trusted.items() if trusted == public]
    name = name or (known[0] if known else _own_name(key))
    policy.with_revoked(name, public).write()
    click.echo(f"{policy.path} revokes {name} ({public})")


def _own_name(key: str) -> str:
    """Return a name for a key: that of its file, or the first digits of its text."""
    if key.startswith("ed25519:"):
        return key.removeprefix("ed25519:")[:16]
    return Path(key).stem
