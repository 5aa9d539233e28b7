"""The bundle: everything that is deployed, in one directory or one tar file.

```text
model.edgec/
├── manifest.json     what it is, how it was made, digest of each file and of itself
├── model.so          code and weights for the target
└── vectors/0/…       test inputs and the original graph's outputs, as .npy
```

On request there is a program that runs it without Python; see `edgec.compiler.bundle.runner`.

The manifest holds nothing that differs from run to run, so the same input gives the same
bytes. Writing is atomic: a bundle is there whole or not at all.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from edgec.compiler.errors import BundleError, IntegrityError, OutputError, UsageError
from edgec.compiler.ir.signature import Signature, TensorSpec
from edgec.compiler.ir.storage import as_exchanged
from edgec.compiler.parity.compare import Tensors
from edgec.targets.target import Target

FORMAT: Literal[1] = 1

Executor = Literal["static", "machine"]
"""What runs a model: its own library, or TVM's Relax virtual machine."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (*_NO_SPACE, errno.EACCES, errno.EROFS)
MANIFEST = "manifest.json"
LIBRARY = "model.so"
RUNNER = "run"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Record):
    """Size and digest of one file of the bundle."""

    size_bytes: int
    sha256: str


class TensorRecord(_Record):
    """One input or output; `shape` has null where only a run can tell."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def spec(self) -> TensorSpec:
        """The same without pydantic."""
        return TensorSpec(self.name, self.shape, self.dtype)


class ModelRecord(_Record):
    """The ONNX file that the bundle was compiled from."""

    name: str
    sha256: str
    opset: int


class FrozenRecord(_Record):
    """The value of an input that became a constant."""

    dtype: str
    values: Any


class SettingsRecord(_Record):
    """Every setting that shaped the result.

    Attributes:
        shapes: given shape by input name.
        frozen: value by name of each input that became a constant.
        seed: of the generated test inputs.
        index_bounds: upper bound by name, for integer inputs that index tables.
    """

    shapes: dict[str, tuple[int, ...]]
    frozen: dict[str, FrozenRecord]
    seed: int
    index_bounds: dict[str, int]


class ToleranceRecord(_Record):
    """See `edgec.compiler.parity.compare.Tolerance`."""

    relative: float
    absolute: float
    sqnr_db: float | None = None


class ParityRecord(_Record):
    """Errors reached at compile time.

    Attributes:
        checked_on: `target` if this very library ran; `host` if it cannot run here and the same
            pipeline compiled for the compiling machine ran; `nothing` if the check was off.
        max_error: largest absolute error by output.
        allowed_share: largest error by output as a share of the tolerance.
    """

    checked_on: Literal["target", "host", "nothing"]
    max_error: dict[str, float] = {}
    allowed_share: dict[str, float] = {}


class CompressionStepRecord(_Record):
    """The model after one step.

    Attributes:
        kind: of the step.
        macs: multiplications of one inference.
        weights: of convolutions and matrix products.
        nonzeros: those of them that are not zero.
        score: mean of the metric against the original model; None without samples.
        samples_sqnr_db: by float output, against the original model [dB].
    """

    kind: str
    macs: int
    weights: int
    nonzeros: int
    score: float | None
    samples_sqnr_db: dict[str, float]


class CompressionRecord(_Record):
    """How the model was compressed, and what is left of the original.

    Attributes:
        recipe: every field of it.
        calibration: what the samples were called; empty without samples.
        macs_before: multiplications of one inference of the original.
        weights_before: its weights.
        sqnr_db: by float output, of the test vector against the original graph [dB].
        samples: batches that the steps were measured on.
        steps: in order.
    """

    recipe: dict[str, Any]
    calibration: str
    macs_before: int
    weights_before: int
    sqnr_db: dict[str, float]
    samples: int
    steps: tuple[CompressionStepRecord, ...]


class QuantizationRecord(_Record):
    """How the model was quantized, and what is left of the float model.

    Attributes:
        recipe: every field of it.
        codes: what activations and weights are on this target, in words; empty without codes.
        calibration: what the samples were called; empty without samples.
        observer: that found the ranges; empty where none were needed.
        repaired: whether rounding and biases were adapted.
        rounding: of the weights; `nearest` without repair.
        quantized: number of operators that compute on codes or stored weights.
        kept_float: names of operators that returned to float to reach a bar.
        islands: why it stays float, by name of an operator that computes on floats among codes.
        sqnr_db: by float output, of the test vector against the original graph [dB].
        samples: batches that the next two were measured on.
        samples_sqnr_db: by float output, against the float model [dB].
        score: mean of the metric (top-1 agreement by default); None without samples.
    """

    recipe: dict[str, Any]
    codes: str
    calibration: str
    observer: str
    repaired: bool
    rounding: str
    quantized: int
    kept_float: tuple[str, ...]
    islands: dict[str, str]
    sqnr_db: dict[str, float]
    samples: int
    samples_sqnr_db: dict[str, float]
    score: float | None


class ExecutionRecord(_Record):
    """How the model runs.

    Attributes:
        executor: `static`: the library needs nothing but the C library; `machine`: it needs
            TVM's runtime.
        arena_bytes: memory of a run beside weights, inputs and outputs; 0 for the machine.
        c_name: of the model in C: `edgec_model_NAME` is the library's function; empty for the
            machine.
        tuned_share: part of the estimated time in kernels whose decisions were tuned.
    """

    executor: Executor
    arena_bytes: int
    c_name: str = ""
    tuned_share: float = 0.0


class VectorRecord(_Record):
    """Files of one test vector, in the order of inputs and outputs."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Manifest(_Record):
    """What a bundle says of itself; `manifest.json`."""

    format: Literal[1] = FORMAT
    model: ModelRecord
    target: Target
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    settings: SettingsRecord
    execution: ExecutionRecord
    tolerance: ToleranceRecord
    parity: ParityRecord
    compression: CompressionRecord | None = None
    quantization: QuantizationRecord | None = None
    vectors: tuple[VectorRecord, ...]
    tools: dict[str, str]
    files: dict[str, FileRecord]

    @property
    def signature(self) -> Signature:
        """Inputs and outputs."""
        return Signature(
            tuple(record.spec() for record in self.inputs),
            tuple(record.spec() for record in self.outputs),
        )

    def to_bytes(self) -> bytes:
        """The file's bytes; its last key is the digest of everything else."""
        fields = self.model_dump(mode="json")
        fields["digest"] = hashlib.sha256(_canonical(fields)).hexdigest()
        return _canonical(fields)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a manifest and check its digest.

        Raises:
            IntegrityError: a byte was changed.
            BundleError: a format that this edgec does not know.
        """
        damaged = IntegrityError(f"{MANIFEST} is damaged; compile the bundle again")
        try:
            fields = json.loads(data)
            digest = fields.pop("digest")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise damaged from None
        if fields.get("format") != FORMAT:
            raise BundleError(
                f"bundle format {fields.get('format')!r}; this edgec reads format {FORMAT}"
            )
        body = _canonical(fields)
        if digest != hashlib.sha256(body).hexdigest():
            raise damaged
        if data != _canonical({**fields, "digest": digest}):
            raise damaged
        try:
            return cls.model_validate(fields)
        except ValidationError:
            raise damaged from None


def _canonical(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields, indent=1, ensure_ascii=True) + "\n").encode()


class Bundle:
    """A bundle on disk whose files are what its manifest says.

    Attributes:
        path: the directory or tar file.
        manifest: what it holds.
    """

    def __init__(self, path: Path, folder: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._folder = folder
        self._sessions: dict[int, Any] = {}  # by number of threads

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r}, target={self.manifest.target.name!r})"

    @classmethod
    def load(cls, path: str | Path) -> "Bundle":
        """Open a bundle and verify every digest.

        Raises:
            BundleError: no bundle at this path.
            IntegrityError: names the files that are changed, missing or extra.
        """
        path = Path(path)
        if path.is_dir():
            return cls._open(path, path)
        if not path.exists():
            raise BundleError(f"bundle {path} does not exist")
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
    def _open(cls, path: Path, folder: Path) -> "Bundle":
        try:
            data = (folder / MANIFEST).read_bytes()
        except OSError:
            raise BundleError(f"{path} is no bundle: it has no {MANIFEST}") from None
        try:
            manifest = Manifest.from_bytes(data)
        except IntegrityError as error:
            raise IntegrityError(f"{path}: {error}") from None
        problems = _compare_files(folder, manifest.files)
        if problems:
            raise IntegrityError(f"{path}: {'; '.join(problems)}")
        return cls(path, folder, manifest)

    @property
    def library(self) -> Path:
        """The compiled model."""
        return self._folder / LIBRARY

    def vectors(self) -> list[tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]]:
        """Test inputs and expected outputs by name."""
        signature = self.manifest.signature
        return [
            (
                self._read_tensors(signature.inputs, vector.inputs),
                self._read_tensors(signature.outputs, vector.outputs),
            )
            for vector in self.manifest.vectors
        ]

    def _read_tensors(
        self, specs: tuple[TensorSpec, ...], files: tuple[str, ...]
    ) -> dict[str, NDArray[Any]]:
        return {
            spec.name: load_npy((self._folder / file).read_bytes(), spec.dtype)
            for spec, file in zip(specs, files, strict=True)
        }

    def run(self, inputs: Tensors, threads: int = 0) -> dict[str, NDArray[Any]]:
        """Run the model here.

        Any thread of Python may call this, also in a child of fork. Callers take turns; for more
        throughput with many callers open several sessions of one thread each, see `open`.

        Args:
            inputs: every input by name, with the shape and dtype of the manifest.
            threads: threads to compute on; 0 is one for each core that this process may use.

        Returns:
            Outputs by name.

        Raises:
            TensorInputError: the inputs do not fit.
            BundleError: the bundle is for another machine.
        """
        session = self._sessions.get(threads)
        if session is None:
            # Threads that come here at once open one each, and all use the first.
            session = self._sessions.setdefault(threads, self.open(threads))
        return session.run(inputs)  # type: ignore[no-any-return]

    def open(self, threads: int = 0, sessions: int = 1) -> Any:
        """Load the model, to run it with `run` of what this returns.

        Args:
            threads: threads that each session computes on; 0 is one for each core that this
                process may use.
            sessions: how many runs there may be at the same time. One gives a session (see
                `edgec.compiler.runtime.session.open_session`), whose callers take turns; more
                give a pool of them: `bundle.open(threads=1, sessions=4)` serves four callers at
                once, each on one core. The weights are in memory once, the values between the
                operators once for each session.

        Raises:
            UsageError: there cannot be so many.
            BundleError: the bundle is for another machine.
        """
        if threads < 0 or sessions < 1:
            raise UsageError(
                f"{sessions} sessions of {threads} threads were asked for; give at least one "
                "session, and 0 threads (all cores) or more"
            )
        # Imported here: reading a bundle needs no runtime.
        from edgec.compiler.runtime.session import SessionPool, open_session

        manifest = self.manifest
        opened = [
            open_session(
                self.library,
                manifest.target,
                manifest.signature,
                manifest.execution.executor,
                threads,
            )
            for _ in range(sessions)
        ]
        return opened[0] if sessions == 1 else SessionPool(opened)


def write_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes | Path]) -> Bundle:
    """Write a bundle atomically and open it.

    Args:
        path: directory, or a file that ends in `.tar`. A bundle that is there is replaced.
        manifest: complete but for `files`, which is filled in.
        files: content, or a file to copy, by path in the bundle.

    Raises:
        OutputError: no permission, no space, or something that is no bundle is in the way.
    """
    _check_destination(path)
    staging: Path | None = None
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        folder = staging / "bundle"
        _fill(folder, manifest, files)
        ready = folder
        if path.suffix == ".tar":
            ready = staging / "bundle.tar"
            _pack(folder, ready)
        _replace(path, ready, staging)
    except OSError as error:
        raise _output_error(path, error) from None
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return Bundle.load(path)


def _output_error(path: Path, error: OSError) -> OutputError:
    if error.errno in _NO_SPACE:
        return OutputError(f"no space left to write {path}; nothing was written")
    return OutputError(f"cannot write {path}: {error.strerror or error}")


def _check_destination(path: Path) -> None:
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: folder {path.parent} does not exist")
    if path.is_dir() and not (path / MANIFEST).is_file() and any(path.iterdir()):
        raise OutputError(f"cannot write {path}: a folder that is no bundle is in the way")
    if path.exists() and path.is_dir() == (path.suffix == ".tar"):
        raise OutputError(f"cannot write {path}: it exists and is of the other kind")


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
            _flush(file)


def _mode(name: str) -> int:
    """Permissions of a file of the bundle; loaders of libraries need no execute bit."""
    return 0o755 if name == RUNNER else 0o644


def _flush(file: Path) -> None:
    """Have the system report a full disk now and not after the rename."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _record(file: Path) -> FileRecord:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileRecord(size_bytes=file.stat().st_size, sha256=digest)


def _pack(folder: Path, archive: Path) -> None:
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for file in _files(folder):
            info = tarfile.TarInfo(file)
            info.size = (folder / file).stat().st_size
            info.mode = _mode(file)
            with (folder / file).open("rb") as stream:
                tar.addfile(info, stream)
    _flush(archive)


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
        raise _output_error(folder, error) from None


def _files(folder: Path) -> list[str]:
    """POSIX paths of all files, sorted."""
    return sorted(
        file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()
    )


def _compare_files(folder: Path, records: Mapping[str, FileRecord]) -> list[str]:
    present = set(_files(folder)) - {MANIFEST}
    problems = [f"{name} is missing" for name in sorted(set(records) - present)]
    problems += [f"{name} is not in the manifest" for name in sorted(present - set(records))]
    for name in sorted(present & set(records)):
        if PurePosixPath(name).is_absolute() or _record(folder / name) != records[name]:
            problems.append(f"{name} is changed")
    return problems


def save_npy(array: NDArray[Any]) -> bytes:
    """The array as an .npy file; ml_dtypes as the integers of the same bits."""
    stream = io.BytesIO()
    plain = np.ascontiguousarray(array).reshape(array.shape)
    np.save(stream, as_exchanged(plain), allow_pickle=False)
    return stream.getvalue()


def save_vector(array: NDArray[Any]) -> bytes:
    """Like `save_npy`; values of float32 that float16 holds exactly take half the bytes."""
    if array.dtype != np.float32:
        return save_npy(array)
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    exact = half.astype(np.float32).tobytes() == array.tobytes()
    return save_npy(half if exact else array)


def load_npy(data: bytes, dtype: str) -> NDArray[Any]:
    """Inverse of `save_npy` and of `save_vector`.

    >>> load_npy(save_npy(np.float32([1, 2])), "float32").tolist()
    [1.0, 2.0]
    """
    array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    if dtype == "float32" and array.dtype == np.float16:
        return array.astype(np.float32)
    return array if str(array.dtype) == dtype else array.view(np.dtype(dtype))


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder for intermediate files.

    Raises:
        OutputError: it fills up, or cannot be made.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="edgec-") as name:
            yield Path(name)
    except OSError as error:
        if error.errno in _NOT_WRITABLE:
            raise _output_error(Path(tempfile.gettempdir()), error) from None
        raise
