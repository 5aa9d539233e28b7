"""A small repository of releases with keys of its own, boards that follow it, and bad bundles."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgec.compiler import Bundle
from edgec.compiler.bundle.bundle import write_bundle
from edgec.compiler.trust.keys import SigningKey
from edgec.compiler.update.agent import Agent, AgentSettings, set_up
from edgec.compiler.update.fetcher import FetchLimits
from edgec.compiler.update.repository import ReleaseRepository

CHANNEL = "relu"
QUICK = FetchLimits(silence_seconds=0.3, least_bytes_per_second=1000, grace_seconds=0.3)


def signing_key(name: str) -> SigningKey:
    return SigningKey(name, Ed25519PrivateKey.generate())


@dataclass(frozen=True)
class Releases:
    """A repository, and who may change it: two of three root keys, one of each other kind."""

    folder: Path
    roots: tuple[SigningKey, ...]
    targets: SigningKey
    online: SigningKey

    @classmethod
    def new(cls, folder: Path, days: dict[str, int] | None = None) -> "Releases":
        roots = tuple(signing_key(f"root-{number}") for number in range(3))
        made = cls(folder, roots, signing_key("targets"), signing_key("online"))
        roles = {
            "root": [key.public for key in roots],
            "targets": [made.targets.public],
            "snapshot": [made.online.public],
            "timestamp": [made.online.public],
        }
        ReleaseRepository.create(folder, roles, {"root": 2}, roots[:2], days)
        return made

    def open(self, *more: SigningKey) -> ReleaseRepository:
        return ReleaseRepository(self.folder, [self.targets, self.online, *more])

    def copy(self, folder: Path) -> "Releases":
        shutil.copytree(self.folder, folder)
        return Releases(folder, self.roots, self.targets, self.online)

    @property
    def root(self) -> bytes:
        return (self.folder / "metadata/1.root.json").read_bytes()

    def metadata(self, name: str) -> Path:
        return self.folder / "metadata" / name

    def board(self, folder: Path, name: str = "pi", **settings: object) -> Agent:
        """An agent of a board that follows this repository."""
        given = {"channel": CHANNEL, "board": name, "mirrors": [str(self.folder)], **settings}
        set_up(folder, self.root, AgentSettings.model_validate(given))
        return Agent(folder, QUICK)


def changed_bundle(bundle: Path, output: Path, key: SigningKey, files: dict[str, bytes]) -> Path:
    """Write a copy of a bundle with other content of some files, well signed."""
    loaded = Bundle.load(bundle)
    content = {name: loaded.file(name).read_bytes() for name in loaded.manifest.files}
    write_bundle(output, loaded.manifest, {**content, **files}, [key])
    return output


def wrong_bundle(bundle: Path, output: Path, key: SigningKey) -> Path:
    """Write a well signed bundle whose model does not compute what its vectors say."""
    name = "vectors/0/output-0.npy"
    expected = np.load(bundle / name)
    np.save(output.with_suffix(".npy"), expected + 1)
    return changed_bundle(bundle, output, key, {name: output.with_suffix(".npy").read_bytes()})
