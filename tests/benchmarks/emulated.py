"""Run what is built for Arm under QEMU, and count the instructions that it executes.

Programs, and a Python with packages of other runtimes: Debian's Python for arm64 and the packages'
wheels, which are fetched once into the user's cache folder and only unpacked there.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from edgec.compiler.boards.artifacts import counter_parts
from edgec.compiler.errors import ToolchainError
from edgec.compiler.support.files import locked
from edgec.compiler.support.processes import run_program
from edgec.compiler.support.progress import Silent
from edgec.targets.target import Target

RUN_SECONDS = 1800
FETCH_SECONDS = 900
# Numbers of system calls on AArch64. The first is what `os.getppid()` does, and nobody else.
GETPPID, EXIT_GROUP = 173, 94
DEBIAN = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
# What Linux tells of a board's processor, by which runtimes choose their kernels: its features, and
# variant, part and revision of Arm's.
_OLD = "fp asimd evtstrm crc32 cpuid"
_NEW = "atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
PROCESSORS = {
    "cortex-a72": (_OLD, "0x0", "0xd08", "3"),
    "cortex-a76": (f"fp asimd evtstrm aes pmull sha1 sha2 crc32 {_NEW}", "0x4", "0xd0b", "1"),
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Counted:
    """What a program wrote, and how many instructions it had executed at each mark."""

    output: str
    marks: list[int]


def count(
    target: Target, command: Sequence[str], call: int, root: Path | None = None, **variables: str
) -> Counted:
    """Run a program of one thread under QEMU.

    Args:
        target: what QEMU plays.
        command: the program and its arguments.
        call: number of the system call that marks.
        root: the system that the program finds; else the C library alone.
        variables: the environment of the program.

    Raises:
        ToolchainError: it fails; with the last line that it wrote.
    """
    parts = counter_parts(target, Silent())
    with tempfile.TemporaryDirectory(prefix="edgec-count-") as name:
        # The plugin's arguments are separated by commas.
        (Path(name) / "plugin.so").symlink_to(parts.plugin)
        plugin = f"{name}/plugin.so,out={name}/marks,mark={call}"
        system = [] if root is None else ["-L", str(_with_processor(Path(name), root, target))]
        done = subprocess.run(
            [*parts.command, *system, "-plugin", plugin, *command],
            env={"PATH": os.environ["PATH"], **ONE_THREAD, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=RUN_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise ToolchainError(f"{Path(command[0]).name} under QEMU: {lines[-1][:200]}")
        return Counted(done.stdout, [int(m) for m in (Path(name) / "marks").read_text().split()])


def _with_processor(folder: Path, root: Path, target: Target) -> Path:
    """Return a system that tells of one core of a target's processor, not of this machine's."""
    if target.cpu not in PROCESSORS:
        raise ToolchainError(f"what Linux tells of {target.cpu} is not known here")
    features, variant, part, revision = PROCESSORS[target.cpu]
    system = folder / "system"
    system.mkdir()
    for entry in root.iterdir():
        (system / entry.name).symlink_to(entry)
    lines = {
        "processor": "0",
        "BogoMIPS": "108.00",
        "Features": features,
        "CPU implementer": "0x41",
        "CPU architecture": "8",
        "CPU variant": variant,
        "CPU part": part,
        "CPU revision": revision,
    }
    (system / "proc").mkdir()
    text = "".join(f"{name}\t: {value}\n" for name, value in lines.items())
    (system / "proc" / "cpuinfo").write_text(f"{text}\n")
    cores = system / "sys" / "devices" / "system" / "cpu"
    cores.mkdir(parents=True)
    for name in ("possible", "present", "online"):
        (cores / name).write_text("0\n")
    return system


@dataclass(frozen=True)
class ArmPython:
    """A Python for arm64 with packages.

    Attributes:
        root: the system that it runs in.
        program: the interpreter.
        packages: the folder to import from.
    """

    root: Path
    program: Path
    packages: Path

    def count(self, target: Target, script: Path, arguments: Sequence[str]) -> Counted:
        """Run a script, and count up to each `os.getppid()`.

        Raises:
            ToolchainError: it fails.
        """
        return count(
            target,
            [str(self.program), str(script), *arguments],
            GETPPID,
            self.root,
            PYTHONHOME=str(self.root / "usr"),
            PYTHONPATH=str(self.packages),
            PYTHONDONTWRITEBYTECODE="1",
        )


def arm_python(pins: Sequence[str]) -> ArmPython:
    """Return a Python for arm64 that has packages, as `pip install` would choose their wheels.

    Args:
        pins: what pip calls them, as in `ncnn==1.0.20261020`.

    Raises:
        ToolchainError: something cannot be fetched.
    """
    cache = user_cache_path("edgec") / "benchmarks"
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / "lock"):
        root = cache / "arm64-python"
        if not root.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as partial:
                _fetch_python(Path(partial))
                (Path(partial) / "root").rename(root)
        (program,) = (root / "usr" / "bin").glob("python3.[0-9]*")
        digest = hashlib.sha256(" ".join(pins).encode()).hexdigest()[:12]
        packages = cache / f"arm64-packages-{digest}"
        if not packages.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as partial:
                _fetch_packages(Path(partial) / "packages", pins, program.name)
                (Path(partial) / "packages").rename(packages)
    return ArmPython(root, program, packages)


def _fetch_python(folder: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise ToolchainError("Python for arm64 comes from Debian's packages; there is no apt-get")
    for part in ("lists", "archives"):
        (folder / part / "partial").mkdir(parents=True)
    # As on a machine for arm64 on which nothing is installed.
    settings = {
        "APT::Sandbox::User": "",
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "APT::Install-Recommends": "0",
        "Dir::State::Lists": str(folder / "lists"),
        "Dir::State::status": "/dev/null",
        "Dir::Cache": str(folder),
        "Debug::NoLocking": "1",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    for verb in (["update"], ["--download-only", "--yes", "install", *DEBIAN]):
        run_program(["apt-get", "-q", *options, *verb], f"apt-get {verb[0]} failed", FETCH_SECONDS)
    for package in sorted((folder / "archives").glob("*.deb")):
        command = ["dpkg-deb", "-x", str(package), str(folder / "root")]
        run_program(command, f"{package.name} cannot be unpacked", FETCH_SECONDS)


def _fetch_packages(folder: Path, pins: Sequence[str], python: str) -> None:
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(17, 37)]
    command = [
        *(sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"),
        *("--no-deps", "--no-compile", "--only-binary=:all:", "--target", str(folder)),
        *("--python-version", re.sub("^python", "", python)),
        *(word for name in platforms for word in ("--platform", name)),
        *pins,
    ]
    run_program(command, f"no wheels for arm64 of {', '.join(pins)}", FETCH_SECONDS)
