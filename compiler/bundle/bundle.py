"""Provide the bundle: everything that is deployed, in one directory or one tar file.

```text
model.edgec/
├── manifest.json     what it is, how it was made, digest of each file and of itself
├── model.so          code and weights for the target; model.so.age if they are encrypted
├── signature.txt     if it was signed: who signed which files; see `edgec.compiler.trust`
└── vectors/0/…       test inputs and the original graph's outputs, as .npy
```

On request there is a program that runs it without Python; see `edgec.compiler.bundle.runner`.

The manifest holds nothing that differs from run to run, so the same input gives the same
bytes. Writing is atomic: a bundle is there whole or not at all.
"""

import shutil
import tarfile
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, overload

from numpy.typing import NDArray

from edgec.compiler.bundle.manifest import (
    ENCRYPTED,
    LIBRARY,
    MANIFEST,
    RUNNER,
    FileRecord,
    Manifest,
)
from edgec.compiler.bundle.npy import load_npy
from edgec.compiler.errors import BundleError, IntegrityError, OutputError, UsageError
from edgec.compiler.ir.signature import Tensors, TensorSpec
from edgec.compiler.support.files import flush, output_error, write_atomically
from edgec.compiler.support.free_memory import available_bytes
from edgec.compiler.support.limits import MAX_THREADS
from edgec.compiler.trust.identities import load_identities
from edgec.compiler.trust.keys import SigningKey, load_signing_key
from edgec.compiler.trust.memory_file import MemoryFile, checked_chunks
from edgec.compiler.trust.policy import check_trust, load_policy
from edgec.compiler.trust.signature import SIGNATURE, Digest, Signature, read_signature, sign

if TYPE_CHECKING:
    from edgec.compiler.runtime.session import Session, SessionPool


class Bundle:
    """A bundle is a folder or file on disk whose content is what its manifest says.

    Attributes:
        path: the directory or tar file.
        manifest: what it holds.
        signature: who signed it; None if nobody did.
    """

    def __init__(
        self, path: Path, folder: Path, manifest: Manifest, signature: Signature | None
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.signature = signature
        self._folder = folder
        self._sessions: dict[int, Session] = {}  # by number of threads
        self._in_memory: dict[str, MemoryFile] = {}  # by name

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r}, target={self.manifest.target.name!r})"

    @classmethod
    def load(cls, path: str | Path) -> "Bundle":
        """Open a bundle and verify every digest.

        Raises:
            BundleError: no bundle at this path.
            IntegrityError: names the files that are changed, missing or extra.
            TrustError: it is not what was signed.
        """
        path = Path(path)
        try:
            if path.is_dir():
                return cls._open(path, path)
            if not path.exists():
                raise BundleError(f"bundle {path} does not exist")
        except OSError as error:
            raise BundleError(f"bundle {path} cannot be read: {error.strerror}") from None
        folder = Path(tempfile.mkdtemp(prefix="edgec-bundle-"))
        try:
            _unpack(path, folder)
            bundle = cls._open(path, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        weakref.finalize(bundle, shutil.rmtree, folder, ignore_errors=True)
        return bundle

    @classmethod
    def of(cls, bundle: "Bundle | str | Path") -> "Bundle":
        """Return the bundle itself, or load the one at a path; see `load`."""
        return bundle if isinstance(bundle, Bundle) else cls.load(bundle)

    @classmethod
    def _open(cls, path: Path, folder: Path) -> "Bundle":
        signature = read_signature(folder, path)
        try:
            data = (folder / MANIFEST).read_bytes()
        except OSError:
            raise BundleError(f"{path} is no bundle: it has no {MANIFEST}") from None
        try:
            manifest = Manifest.from_bytes(data)
        except IntegrityError as error:
            raise IntegrityError(f"{path}: {error}") from None
        problems = _compare_files(folder, manifest.files, signature.files if signature else {})
        if problems:
            raise IntegrityError(f"{path}: {'; '.join(problems)}")
        return cls(path, folder, manifest, signature)

    @property
    def library(self) -> Path:
        """Return the compiled model.

        Raises:
            TrustError: the policy of this machine refuses the bundle.
            BundleError: it is encrypted, so it is in memory only.
        """
        check_trust(self.path, self.signature)
        if self.encrypted:
            raise BundleError(
                f"bundle {self.path} is encrypted, and its library would be sent in the clear; "
                "take the bundle to the board and run it there: compile it with --runner"
            )
        return self._folder / LIBRARY

    def file(self, name: str) -> Path:
        """Return where a file of the bundle is, as long as the bundle is open."""
        return self._folder / name

    @property
    def encrypted(self) -> bool:
        """Return whether the library is for some recipients only."""
        return ENCRYPTED in self.manifest.files

    def loadable(self, name: str = LIBRARY) -> Path:
        """Return a file of code as it is loaded here: in memory if it is encrypted or trusted.

        Raises:
            TrustError: the policy of this machine refuses the bundle.
            KeyFileError: it is encrypted for others.
        """
        check_trust(self.path, self.signature)
        signature = self.signature if load_policy() is not None else None
        encrypted = self.encrypted and name == LIBRARY
        if signature is None and not encrypted:
            return self._folder / name
        if name not in self._in_memory:
            stored = ENCRYPTED if encrypted else name
            identities = load_identities() if encrypted else ()
            expected = signature.files[stored] if signature else None
            chunks = checked_chunks(self._folder / stored, expected, self.path, identities)
            self._in_memory[name] = MemoryFile(name, chunks)
        return self._in_memory[name].path

    def vectors(self) -> list[tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]]:
        """Test inputs and expected outputs by name; see `VectorRecord` for their order."""
        signatures = self.manifest.signatures
        return [
            (
                self._read_tensors(signatures[vector.program].inputs, vector.inputs),
                self._read_tensors(signatures[vector.program].outputs, vector.outputs),
            )
            for vector in self.manifest.vectors
        ]

    def begins(self, vector: int) -> bool:
        """Return whether all state is zeros before a vector."""
        return not self.manifest.vectors[vector].goes_on

    def _read_tensors(
        self, specs: tuple[TensorSpec, ...], files: tuple[str, ...]
    ) -> dict[str, NDArray[Any]]:
        return {
            spec.name: load_npy((self._folder / file).read_bytes(), spec.dtype)
            for spec, file in zip(specs, files, strict=True)
        }

    def run(
        self, inputs: Tensors | NDArray[Any], threads: int = 0, *, pad: bool = False
    ) -> dict[str, NDArray[Any]]:
        """Run the model here, by the program that takes inputs of these shapes.

        Any thread of Python may call this, also in a child of fork. Callers take turns; for more
        throughput with many callers open several sessions of one thread each, see `open`. A model
        with state begins anew each time; `open` gives a session that keeps it.

        Args:
            inputs: every input by name, with the shape and dtype of the manifest; of a model of
                one input the array itself will do.
            threads: threads to compute on; 0 is one for each core that this process may use.
            pad: fill inputs that fit no program up with zeros for one of larger shapes, and cut its
                outputs. Only for models that take zeros for nothing.

        Returns:
            Outputs by name.

        Raises:
            TensorInputError: the inputs do not fit, or hold an index beyond its table.
            BundleError: the bundle is for another machine.
            UsageError: a model with state is to pad.
        """
        session = self._sessions.get(threads)
        if session is None:
            # Threads that come here at once open one each, and all use the first.
            session = self._sessions.setdefault(threads, self._session(threads))
        if pad:
            return session.run_padded(inputs)
        if not self.manifest.states:
            return session.run(inputs)
        with session.lock:
            session.reset()
            return session.run(inputs)

    @overload
    def open(self, threads: int = 0, sessions: Literal[1] = 1) -> "Session": ...

    @overload
    def open(self, threads: int = 0, sessions: int = 1) -> "Session | SessionPool": ...

    def open(self, threads: int = 0, sessions: int = 1) -> "Session | SessionPool":
        """Load the model, to run it with `run` of what this returns.

        Args:
            threads: threads that each session computes on; 0 is one for each core that this
                process may use.
            sessions: how many runs there may be at the same time. One gives a session (see
                `edgec.compiler.runtime.session.open_session`), whose callers take turns; more
                give a pool of them: `bundle.open(threads=1, sessions=4)` serves four callers at
                once, each on one core. The weights are in memory once, the values between the
                operators once for each session.

        A model with state gives one session at a time: it is one stream, and its `reset`, `save`
        and `load` begin anew, keep and take up its state.

        Raises:
            UsageError: there cannot be so many.
            BundleError: the bundle is for another machine.
            TrustError: the policy of this machine refuses the bundle.
        """
        _check_counts(threads, sessions)
        if sessions > 1 and self.manifest.states:
            raise UsageError(
                "a session of a model with state is one stream: open one for each stream"
            )
        # Imported here: reading a bundle needs no runtime.
        from edgec.compiler.runtime.session import SessionPool

        opened = [self._session(threads) for _ in range(sessions)]
        return opened[0] if sessions == 1 else SessionPool(opened)

    def _session(self, threads: int) -> "Session":
        from edgec.compiler.runtime.session import open_session

        _check_counts(threads, 1)
        manifest = self.manifest
        needed = manifest.execution.arena_bytes + sum(s.size_bytes for s in manifest.states)
        free = available_bytes()
        if free is not None and needed > free:
            raise BundleError(
                f"{self.path.name}: a session takes {needed / 1e6:.0f} MB for its state and "
                f"values, and {free / 1e6:.0f} MB of memory are free; end other programs, ask "
                "for fewer sessions, or compile with a smaller --context"
            )
        return open_session(
            self.loadable(),
            manifest.target,
            manifest.signatures,
            manifest.execution.executor,
            threads,
            manifest.settings.index_bounds,
            f"{self.path.name}/{LIBRARY}",
        )


def _check_counts(threads: int, sessions: int) -> None:
    if not 0 <= threads <= MAX_THREADS or sessions < 1:
        raise UsageError(
            f"{sessions} sessions of {threads} threads were asked for; give at least one "
            f"session, and 0 threads (all cores) to {MAX_THREADS}"
        )


def write_bundle(
    path: Path,
    manifest: Manifest,
    files: Mapping[str, bytes | Path],
    keys: Sequence[SigningKey] = (),
) -> Bundle:
    """Write a bundle atomically and open it.

    Args:
        path: directory, or a file that ends in `.tar`. A bundle that is there is replaced.
        manifest: complete but for `files`, which is filled in.
        files: content, or a file to copy, by path in the bundle.
        keys: each signs it.

    Raises:
        OutputError: no permission, no space, or something that is no bundle is in the way.
    """
    check_destination(path)
    staging: Path | None = None
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        folder = staging / "bundle"
        _fill(folder, manifest, files)
        if keys:
            _sign(folder, keys)
        ready = folder
        if path.suffix == ".tar":
            ready = staging / "bundle.tar"
            _pack(folder, ready)
        _replace(path, ready, staging)
    except OSError as error:
        raise output_error(path, error) from None
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return Bundle.load(path)


def move_bundle(bundle: Bundle, path: Path) -> Bundle:
    """Move a bundle to where another one may be, in the same folder; that one is replaced.

    Raises:
        OutputError: it cannot be moved, or something that is no bundle is in the way.
    """
    check_destination(path)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as staging:
            _replace(path, bundle.path, Path(staging))
    except OSError as error:
        raise output_error(path, error) from None
    return Bundle.load(path)


def sign_bundle(path: str | Path, keys: Sequence[SigningKey | str | Path]) -> Bundle:
    """Add signatures to a bundle; those of other keys stay.

    Args:
        path: the bundle, a folder or a tar file.
        keys: what signs: keys, their names, or their PEM files.

    Raises:
        KeyFileError: a key cannot be read.
        BundleError: no bundle at this path.
        CheckFailed: its files are not what it says.
        OutputError: it cannot be written.
    """
    loaded = [key if isinstance(key, SigningKey) else load_signing_key(key) for key in keys]
    path, bundle = Path(path), Bundle.load(path)
    _sign(bundle._folder, loaded)
    if path.is_dir():
        return Bundle.load(path)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as staging:
            ready = Path(staging) / "bundle.tar"
            _pack(bundle._folder, ready)
            ready.replace(path)
    except OSError as error:
        raise output_error(path, error) from None
    return Bundle.load(path)


def file_digests(bundle: Bundle) -> dict[str, Digest]:
    """Return the digest of every file of a bundle but its signature."""
    return _digests(bundle._folder)


def _digests(folder: Path) -> dict[str, Digest]:
    return {name: Digest.of_file(folder / name) for name in _files(folder) if name != SIGNATURE}


def _sign(folder: Path, keys: Sequence[SigningKey]) -> None:
    file = folder / SIGNATURE
    write_atomically(
        file, sign(_digests(folder), keys, file.read_bytes() if file.is_file() else b"")
    )
    file.chmod(_mode(SIGNATURE))


def check_destination(path: Path) -> None:
    """Make sure that a bundle can be written to a path.

    Raises:
        OutputError: no such folder, no permission, or something that is no bundle is in the way.
    """
    try:
        if not path.parent.is_dir():
            raise OutputError(f"cannot write {path}: folder {path.parent} does not exist")
        if path.is_dir() and not (path / MANIFEST).is_file() and any(path.iterdir()):
            raise OutputError(f"cannot write {path}: a folder that is no bundle is in the way")
        if path.exists() and path.is_dir() == (path.suffix == ".tar"):
            raise OutputError(f"cannot write {path}: it exists and is of the other kind")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise output_error(path, error) from None


def _fill(folder: Path, manifest: Manifest, files: Mapping[str, bytes | Path]) -> None:
    folder.mkdir()
    records = {}
    for name in sorted(files):
        content = files[name]
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(content, file)
        else:
            file.write_bytes(content)
        file.chmod(_mode(name))
        records[name] = _record(file)
    complete = manifest.model_copy(update={"files": records})
    (folder / MANIFEST).write_bytes(complete.to_bytes())
    for file in folder.rglob("*"):
        if file.is_file():
            flush(file)


def _mode(name: str) -> int:
    """Return permissions of a file of the bundle; loaders of libraries need no execute bit."""
    return 0o755 if name == RUNNER else 0o644


def _record(file: Path, known: Digest | None = None) -> FileRecord:
    digest = known or Digest.of_file(file)
    return FileRecord(size_bytes=digest.size_bytes, sha256=digest.sha256)


def _pack(folder: Path, archive: Path) -> None:
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for file in _files(folder):
            info = tarfile.TarInfo(file)
            info.size = (folder / file).stat().st_size
            info.mode = _mode(file)
            with (folder / file).open("rb") as stream:
                tar.addfile(info, stream)
    flush(archive)


def _replace(path: Path, ready: Path, staging: Path) -> None:
    """Move the new bundle into place; an old one comes back if that fails."""
    if not path.is_dir():
        ready.replace(path)
        return
    old = staging / "old"
    path.rename(old)
    try:
        ready.rename(path)
    except OSError:
        old.rename(path)
        raise


def _unpack(path: Path, folder: Path) -> None:
    try:
        with tarfile.open(path, "r:") as tar:
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError) as error:
        if path.suffix == ".tar":
            raise IntegrityError(f"{path} is damaged: {error}") from None
        raise BundleError(f"{path} is neither a bundle folder nor a bundle .tar") from None
    except OSError as error:
        raise output_error(folder, error) from None


def _files(folder: Path) -> list[str]:
    """Return POSIX paths of all files, sorted."""
    return sorted(
        file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()
    )


def _compare_files(
    folder: Path, records: Mapping[str, FileRecord], known: Mapping[str, Digest]
) -> list[str]:
    """Return what is not as the manifest says; files whose digest is known are not read again."""
    present = set(_files(folder)) - {MANIFEST, SIGNATURE}
    problems = [f"{name} is missing" for name in sorted(set(records) - present)]
    problems += [f"{name} is not in the manifest" for name in sorted(present - set(records))]
    for name in sorted(present & set(records)):
        if (
            PurePosixPath(name).is_absolute()
            or _record(folder / name, known.get(name)) != (records[name])
        ):
            problems.append(f"{name} is changed")
    return problems
