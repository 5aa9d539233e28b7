"""Provide `edgec release …`: a repository of bundles that boards update from."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.compiler.cli.options import as_path, json_option
from edgec.compiler.cli.printing import print_json, print_table
from edgec.compiler.errors import UsageError

if TYPE_CHECKING:
    from edgec.compiler.trust.keys import PublicKey
    from edgec.compiler.update.repository import ReleaseRepository


@click.group()
def release() -> None:
    """Releases of bundles, in a folder that any web server or a USB stick serves."""


_repository = click.argument("repository", type=as_path)
_keys = click.option(
    "--key", "keys", multiple=True, metavar="NAME|FILE.pem", help="Signs; may be given again."
)
_percent = click.option(
    "--percent", type=click.FloatRange(0, 100), help="Of the boards that are to have it."
)


def _roles_option(role: str, what: str) -> Callable[..., Any]:
    return click.option(
        f"--{role}",
        multiple=True,
        required=True,
        metavar="KEY",
        help=f"{what}; may be given again.",
    )


@release.command()
@_repository
@_roles_option("root", "Says which keys the roles have; keep it offline")
@click.option("--threshold", type=int, default=1, show_default=True, help="Root keys that sign.")
@_roles_option("targets", "Says what is in a release")
@_roles_option("online", "Says what is the newest: snapshot and timestamp")
@click.option(
    "--days",
    multiple=True,
    metavar="ROLE=N",
    help="How long metadata is good for.  [default: root=365, targets=90, snapshot=7, timestamp=7]",
)
def init(
    repository: Path,
    *,
    root: Sequence[str],
    threshold: int,
    targets: Sequence[str],
    online: Sequence[str],
    days: Sequence[str],
) -> None:
    """Begin a REPOSITORY. Root keys that are here sign; `sign` adds others."""
    from edgec.compiler.errors import KeyFileError
    from edgec.compiler.trust.keys import load_public_key, load_signing_key
    from edgec.compiler.update.repository import ReleaseRepository

    signing = []
    for key in root:
        try:
            signing.append(load_signing_key(key))
        except KeyFileError:
            # Its owner signs elsewhere.
            load_public_key(key)
    public: dict[str, list[PublicKey]] = {
        "root": [_public(key) for key in root],
        "targets": [_public(key) for key in targets],
        "snapshot": [_public(key) for key in online],
        "timestamp": [_public(key) for key in online],
    }
    made = ReleaseRepository.create(
        repository, public, {"root": threshold}, signing, dict(map(_days, days))
    )
    _say_root(made)


@release.command()
@_repository
@click.argument("channel")
@click.argument("bundle", type=as_path)
@_keys
@_percent
@click.option(
    "--latency",
    type=float,
    metavar="MS",
    help="A board goes back if a median run of the first test vector takes longer.",
)
def publish(
    repository: Path,
    channel: str,
    bundle: Path,
    *,
    keys: Sequence[str],
    percent: float | None,
    latency: float | None,
) -> None:
    """Release a BUNDLE as the next of a CHANNEL, which is a model for one kind of board."""
    made = _open(repository, keys).publish(
        channel, bundle, 100 if percent is None else percent, latency
    )
    click.echo(
        f"{channel}: release {made.number}, {made.size_bytes / 1e6:.1f} MB, "
        f"for {100 if percent is None else percent:g}% of the boards"
    )


@release.command(name="rollout")
@_repository
@click.argument("channel")
@click.argument("number", type=int)
@click.option(
    "--percent",
    type=click.FloatRange(0, 100),
    required=True,
    help="Of the boards; 0 takes the release back.",
)
@_keys
def roll_out(
    repository: Path, channel: str, number: int, *, percent: float, keys: Sequence[str]
) -> None:
    """Have more boards, or fewer, get release NUMBER of a CHANNEL."""
    _open(repository, keys).roll_out(channel, number, percent)
    click.echo(f"{channel}: release {number} for {percent:g}% of the boards")


@release.command()
@_repository
@_keys
def refresh(repository: Path, *, keys: Sequence[str]) -> None:
    """Sign that the newest is the newest, before that expires; run it daily."""
    opened = _open(repository, keys)
    opened.refresh()
    click.echo(f"{repository}: good until {opened.timestamp().expires:%Y-%m-%d %H:%M} UTC")


@release.command()
@_repository
@click.option("--add", multiple=True, metavar="ROLE=KEY")
@click.option("--remove", multiple=True, metavar="ROLE=KEY")
@click.option("--threshold", "thresholds", multiple=True, metavar="ROLE=N")
@_keys
def root(
    repository: Path,
    *,
    add: Sequence[str],
    remove: Sequence[str],
    thresholds: Sequence[str],
    keys: Sequence[str],
) -> None:
    """Change the keys of roles: root, targets, snapshot, timestamp. Or renew the root."""
    opened = _open(repository, keys)
    opened.change_root(
        [(role, _public(key)) for role, key in map(_pair, add)],
        [(role, _public(key)) for role, key in map(_pair, remove)],
        {role: _whole(text) for role, text in map(_pair, thresholds)},
    )
    _say_root(opened)


@release.command()
@_repository
@_keys
def sign(repository: Path, *, keys: Sequence[str]) -> None:
    """Add signatures to a root that waits for them."""
    opened = _open(repository, keys)
    opened.sign_root()
    _say_root(opened)


@release.command()
@_repository
@json_option
def show(repository: Path, *, as_json: bool) -> None:
    """Show channels and releases, and until when their metadata is good."""
    opened = _open(repository, ())
    rows = [
        (name, item.number, item.percent, opened.release(name, item.number))
        for name in opened.channels()
        for item in opened.channel(name).releases
    ]
    parts = (opened.root(), opened.targets(), opened.snapshot(), opened.timestamp())
    expires = {part.type: f"{part.expires:%Y-%m-%dT%H:%M:%SZ}" for part in parts if part.version}
    if as_json:
        releases = [
            {"channel": c, "number": n, "percent": p, "target": r.target, "bytes": r.size_bytes}
            for c, n, p, r in rows
        ]
        print_json({"expires": expires, "releases": releases})
        return
    print_table(
        ("channel", "release", "boards", "target", "size"),
        [(c, str(n), f"{p:g}%", r.target, f"{r.size_bytes / 1e6:.1f} MB") for c, n, p, r in rows],
    )
    click.echo("good until: " + ", ".join(f"{role} {when}" for role, when in expires.items()))


def _open(folder: Path, keys: Sequence[str]) -> "ReleaseRepository":
    from edgec.compiler.trust.keys import load_signing_key
    from edgec.compiler.update.repository import ReleaseRepository

    return ReleaseRepository(folder, [load_signing_key(key) for key in keys])


def _say_root(repository: "ReleaseRepository") -> None:
    missing = repository.pending
    if missing is None:
        click.echo(f"{repository.folder}: root {repository.root().version} is signed")
        return
    click.echo(
        f"{repository.folder}: the root waits for {max(missing)} more signatures; "
        f"edgec release sign {repository.folder} --key NAME"
    )


def _public(key: str) -> "PublicKey":
    from edgec.compiler.trust.keys import load_public_key, load_signing_key

    return load_signing_key(key).public if key.endswith(".pem") else load_public_key(key)


def _pair(text: str) -> tuple[str, str]:
    role, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r}: expected ROLE=…, for example targets=release-2026")
    return role, value


def _days(text: str) -> tuple[str, int]:
    role, value = _pair(text)
    return role, _whole(value)


def _whole(text: str) -> int:
    if not text.isdigit():
        raise UsageError(f"{text!r} is no whole number")
    return int(text)
