"""Write a repository of releases: a folder that any web server serves as it is.

```text
REPOSITORY/
├── metadata/        N.root.json, N.targets.json, N.snapshot.json, timestamp.json
├── targets/CHANNEL/ DIGEST.channel.json; DIGEST.NUMBER.json.zst, and the same for who has
│                    the release before; the targets' role signs them
├── chunks/ab/…      pieces of files by their SHA-256, which the descriptions of releases name
└── pending-root.json  if the next root lacks signatures; nobody has to serve it
```

Metadata is that of The Update Framework (theupdateframework.github.io/specification). The root
role's keys stay offline; the targets' role signs what is in a release, the snapshot's and the
timestamp's role, which share their keys, that it is the newest. What points to a file is written
after it, the timestamp last: a reader, or a crash, sees the old state or the new one.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import zstandard
from tuf.api.exceptions import RepositoryError as MetadataError
from tuf.api.metadata import (
    TOP_LEVEL_ROLE_NAMES,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError
from tuf.repository import Repository

from edgec.compiler.bundle.bundle import Bundle, file_digests
from edgec.compiler.bundle.manifest import RUNNER
from edgec.compiler.errors import KeyFileError, RepositoryError, UsageError
from edgec.compiler.support.files import write_atomically
from edgec.compiler.trust.keys import PublicKey, SigningKey
from edgec.compiler.trust.signature import SIGNATURE
from edgec.compiler.update.chunking import average_for, chunk_lengths
from edgec.compiler.update.release import (
    Channel,
    Chunk,
    Release,
    ReleaseFile,
    RollOut,
    channel_path,
    check_channel_name,
    release_path,
)
from edgec.compiler.update.tuf_keys import signer_of, tuf_key

ROLES = tuple(sorted(TOP_LEVEL_ROLE_NAMES))
# How long metadata is good for, from when it is signed [days].
DAYS: Mapping[str, int] = {Root.type: 365, Targets.type: 90, Snapshot.type: 7, Timestamp.type: 7}
PENDING = "pending-root.json"

_DAYS_FIELD = "x-edgec-expiry-days"
_KINDS: Mapping[str, type[Targets | Snapshot | Timestamp]] = {
    kind.type: kind for kind in (Targets, Snapshot, Timestamp)
}


class ReleaseRepository(Repository):
    """A release repository is a folder of signed metadata, and what that describes.

    Args:
        folder: of the repository.
        keys: sign what is changed, each for the roles that it has.
    """

    def __init__(self, folder: Path, keys: Sequence[SigningKey] = ()) -> None:
        self.folder = folder
        self._signers = {signer.public_key.keyid: signer for signer in map(signer_of, keys)}

    @classmethod
    def create(
        cls,
        folder: Path,
        roles: Mapping[str, Sequence[PublicKey]],
        thresholds: Mapping[str, int],
        keys: Sequence[SigningKey],
        days: Mapping[str, int] | None = None,
    ) -> "ReleaseRepository":
        """Begin a repository; there may be none.

        Args:
            folder: may be missing or empty.
            roles: the keys of each role.
            thresholds: how many of them have to sign, by role; 1 if it is missing.
            keys: sign the root. If they are too few, `sign_root` adds others.
            days: how long metadata is good for, by role.

        Raises:
            UsageError: a role has fewer keys than have to sign.
            RepositoryError: there is one.
        """
        repository = cls(folder, keys)
        if list((folder / "metadata").glob("*")) or (folder / PENDING).exists():
            raise RepositoryError(f"{folder} is a repository already; edgec release show {folder}")
        root = Root(consistent_snapshot=True)
        root.unrecognized_fields[_DAYS_FIELD] = {**DAYS, **(days or {})}
        for role in ROLES:
            for key in roles[role]:
                root.add_key(tuf_key(key), role)
        _set_thresholds(root, thresholds)
        root.version = 0
        repository._propose(root)
        return repository

    @property
    def pending(self) -> tuple[int, int] | None:
        """Return how many more signatures the next root needs, of old keys and of its own."""
        file = self.folder / PENDING
        if not file.exists():
            return None
        proposed = _load(file)
        return self._missing(proposed)

    def change_root(
        self,
        add: Iterable[tuple[str, PublicKey]] = (),
        remove: Iterable[tuple[str, PublicKey]] = (),
        thresholds: Mapping[str, int] | None = None,
    ) -> None:
        """Propose a root of other keys or thresholds; without changes, one that expires later.

        Args:
            add: pairs of a role and a key that it gets.
            remove: pairs of a role and a key that it loses.
            thresholds: how many keys have to sign, by role.

        Raises:
            UsageError: a role would have too few keys.
        """
        root = self.root()
        before = deepcopy(root.roles)
        for role, key in add:
            root.add_key(tuf_key(key), _known_role(role))
        for role, key in remove:
            keyid = tuf_key(key).keyid
            if keyid not in root.roles[_known_role(role)].keyids:
                raise UsageError(f"{key} is no key of the role {role}")
            root.revoke_key(keyid, role)
        _set_thresholds(root, thresholds or {})
        self._propose(root)
        changed = {role for role in ROLES if root.roles[role] != before[role]} - {Root.type}
        # What other keys have to sign now is signed again, if these are here.
        if changed and self.pending is None and self._newest(Timestamp.type):
            if Targets.type in changed:
                with self.edit_targets():
                    pass
            self._publish_metadata(force=True)

    def sign_root(self) -> None:
        """Add the signatures of this repository's keys to the root that waits for them.

        Raises:
            RepositoryError: none waits.
        """
        file = self.folder / PENDING
        if not file.exists():
            raise RepositoryError(f"{self.folder}: no root waits for signatures")
        self._complete(_load(file))

    def publish(
        self,
        channel: str,
        bundle: Bundle | str | Path,
        percent: float = 100,
        most_latency_ms: float | None = None,
    ) -> Release:
        """Add a release to a channel, which is made if it is new.

        Args:
            channel: whose release it is.
            bundle: what boards will run.
            percent: of the boards that are to have it.
            most_latency_ms: boards go back if a median run takes longer; None: any time.

        Raises:
            BundleError: no bundle.
            UsageError: the name cannot be.
            KeyFileError: the keys may not sign this.
        """
        check_channel_name(channel)
        bundle = Bundle.of(bundle)
        known = self.channel(channel)
        numbers = [roll_out.number for roll_out in known.releases]
        previous = self.release(channel, numbers[-1]) if numbers else None
        averages = {file.path: file.average for file in previous.files} if previous else {}
        digests = file_digests(bundle)
        names = [*digests, *([SIGNATURE] if bundle.signature else [])]
        release = Release(
            channel=channel,
            number=max(numbers, default=0) + 1,
            target=bundle.manifest.target.name,
            most_latency_ms=most_latency_ms,
            files=[self._store(bundle, name, averages.get(name)) for name in sorted(names)],
        )
        roll_out = RollOut(number=release.number, percent=percent, sha256=release.sha256)
        described = Channel(name=channel, releases=[*known.releases, roll_out])
        contents = {
            release_path(channel, release.number): release.to_bytes(),
            channel_path(channel): described.to_bytes(),
        }
        if previous:
            path = release_path(channel, release.number, previous.number)
            contents[path] = release.to_bytes(previous)
        self._write_targets(contents)
        return release

    def roll_out(self, channel: str, number: int, percent: float) -> None:
        """Have other boards get a release; with 0 percent all go back to the one before.

        Raises:
            RepositoryError: there is no such release.
        """
        known = self.channel(channel)
        if number not in [roll_out.number for roll_out in known.releases]:
            raise RepositoryError(f"{self.folder}: channel {channel} has no release {number}")
        changed = [
            RollOut(number=number, percent=percent, sha256=old.sha256)
            if old.number == number
            else old
            for old in known.releases
        ]
        described = Channel(name=channel, releases=changed).to_bytes()
        self._write_targets({channel_path(channel): described})

    def refresh(self) -> None:
        """Sign snapshot and timestamp anew, before they expire; that wants their keys only."""
        self._publish_metadata(force=True)

    def channel(self, name: str) -> Channel:
        """Return a channel; one without releases if it is new."""
        data = self._target(channel_path(name))
        return Channel(name=name, releases=[]) if data is None else Channel.from_bytes(data)

    def channels(self) -> list[str]:
        """Return the names of all channels."""
        suffix = channel_path("")
        return sorted(
            path.removesuffix(suffix) for path in self.targets().targets if path.endswith(suffix)
        )

    def release(self, channel: str, number: int) -> Release:
        """Return a release.

        Raises:
            RepositoryError: there is none.
        """
        data = self._target(release_path(channel, number))
        if data is None:
            raise RepositoryError(f"{self.folder}: channel {channel} has no release {number}")
        return Release.from_bytes(data)

    def open(self, role: str) -> Metadata[Any]:
        """Return the newest metadata of a role; version 0 if there is none yet."""
        file = self._newest(role)
        if file is not None:
            return _load(file)
        if role == Root.type:
            if (self.folder / PENDING).exists():
                raise RepositoryError(
                    f"{self.folder}: its root waits for signatures; edgec release sign "
                    f"{self.folder} --key NAME"
                )
            raise RepositoryError(f"{self.folder} is no repository; make one: edgec release init")
        signed = _KINDS[role]()
        signed.version = 0
        return Metadata(signed)

    def close(self, role: str, md: Metadata[Any]) -> None:
        """Sign and write the next version of a role's metadata.

        Raises:
            KeyFileError: too few of the role's keys are here.
        """
        root = self.root()
        days = root.unrecognized_fields[_DAYS_FIELD]
        md.signed.version += 1
        md.signed.expires = _in_days(days[role])
        md.signatures.clear()
        threshold, keyids = root.roles[role].threshold, root.roles[role].keyids
        signers = [signer for keyid, signer in self._signers.items() if keyid in keyids]
        if len(signers) < threshold:
            raise KeyFileError(
                f"{self.folder}: {threshold} keys have to sign as {role}, {len(signers)} of those "
                "given may; give them by --key"
            )
        for signer in signers:
            md.sign(signer, append=True)
        name = "timestamp.json" if role == Timestamp.type else f"{md.signed.version}.{role}.json"
        write_atomically(self.folder / "metadata" / name, md.to_bytes())

    @property
    def targets_infos(self) -> dict[str, MetaFile]:
        """Return what the snapshot says of targets."""
        return {"targets.json": self._meta_file(Targets.type)}

    @property
    def snapshot_info(self) -> MetaFile:
        """Return what the timestamp says of the snapshot."""
        return self._meta_file(Snapshot.type)

    def _meta_file(self, role: str) -> MetaFile:
        file = self._newest(role)
        assert file is not None
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        return MetaFile(self.open(role).signed.version, len(data), {"sha256": digest})

    def _newest(self, role: str) -> Path | None:
        if role == Timestamp.type:
            file = self.folder / "metadata/timestamp.json"
            return file if file.exists() else None
        files = (self.folder / "metadata").glob(f"*.{role}.json")
        return max(files, key=lambda file: int(file.name.partition(".")[0]), default=None)

    def _propose(self, root: Root) -> None:
        days = root.unrecognized_fields[_DAYS_FIELD]
        root.version += 1
        root.expires = _in_days(days[Root.type])
        self._complete(Metadata(root))

    def _complete(self, proposed: Metadata[Any]) -> None:
        """Sign a proposed root, and publish it if enough keys have."""
        root = proposed.signed
        allowed = set(root.roles[Root.type].keyids)
        if root.version > 1:
            allowed |= set(self.root().roles[Root.type].keyids)
        for keyid, signer in self._signers.items():
            if keyid in allowed:
                proposed.sign(signer, append=True)
        pending = self.folder / PENDING
        if any(self._missing(proposed)):
            write_atomically(pending, proposed.to_bytes())
            return
        write_atomically(
            self.folder / "metadata" / f"{root.version}.root.json", proposed.to_bytes()
        )
        pending.unlink(missing_ok=True)

    def _missing(self, proposed: Metadata[Any]) -> tuple[int, int]:
        """Return how many signatures are missing, of old root keys and of new ones."""
        root, signed = proposed.signed, (proposed.signed_bytes, proposed.signatures)
        new = root.get_verification_result(Root.type, *signed).missing
        if root.version == 1:
            return 0, new
        return self.root().get_verification_result(Root.type, *signed).missing, new

    def _target(self, path: str) -> bytes | None:
        """Return a target that was written."""
        described = self.targets().targets.get(path)
        if described is None:
            return None
        return (self.folder / "targets" / described.get_prefixed_paths()[0]).read_bytes()

    def _write_targets(self, contents: Mapping[str, bytes]) -> None:
        with self.edit_targets() as targets:
            for path, data in contents.items():
                described = TargetFile.from_data(path, data, ["sha256"])
                targets.targets[path] = described
                write_atomically(self.folder / "targets" / described.get_prefixed_paths()[0], data)
        self._publish_metadata()

    def _publish_metadata(self, *, force: bool = False) -> None:
        self.do_snapshot(force)
        self.do_timestamp(force)

    def _store(self, bundle: Bundle, name: str, average: int | None) -> ReleaseFile:
        """Store the chunks of a file that are not there yet."""
        data = bundle.file(name).read_bytes()
        average = average or average_for(len(data))
        chunks, place = [], 0
        for length in chunk_lengths(data, average):
            chunks.append(self._store_chunk(data[place : place + length]))
            place += length
        return ReleaseFile(
            path=name,
            sha256=hashlib.sha256(data).hexdigest(),
            size=len(data),
            executable=name == RUNNER,
            average=average,
            chunks=chunks,
        )

    def _store_chunk(self, data: bytes) -> Chunk:
        digest = hashlib.sha256(data).hexdigest()
        compressed = zstandard.compress(data, 19)
        chunk = Chunk(sha256=digest, size=len(data), stored=len(compressed))
        file = self.folder / chunk.path
        if not file.exists():
            write_atomically(file, compressed)
        elif file.stat().st_size != chunk.stored:
            # Another version of the compressor wrote it.
            chunk = chunk.model_copy(update={"stored": file.stat().st_size})
        return chunk


def _load(file: Path) -> Metadata[Any]:
    try:
        return Metadata.from_bytes(file.read_bytes())
    except (DeserializationError, MetadataError, OSError) as error:
        raise RepositoryError(f"{file} cannot be read: {error}") from None


def _in_days(days: int) -> datetime:
    return (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)


def _known_role(role: str) -> str:
    if role not in ROLES:
        raise UsageError(f"{role!r} is no role; {', '.join(ROLES)} are")
    return role


def _set_thresholds(root: Root, thresholds: Mapping[str, int]) -> None:
    for role, threshold in thresholds.items():
        root.roles[_known_role(role)].threshold = threshold
    for role in ROLES:
        keys, threshold = len(root.roles[role].keyids), root.roles[role].threshold
        if not 1 <= threshold <= keys:
            raise UsageError(f"{threshold} keys are to sign as {role}, and it has {keys}")
