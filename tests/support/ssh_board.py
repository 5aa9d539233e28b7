"""A board with a real SSH server, all of it aarch64: Debian's dash, busybox and dropbear on QEMU.

PRoot starts the programs, so neither root nor binfmt_misc is needed. Run as a program it waits
for connections: `ssh_board.py PORT COMMAND…`, the command gets each as its standard input and
output. What daemons leave behind on the board are descendants of this process.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

BOARD_PACKAGES = ("dropbear-bin", "dash", "busybox-static", "libc-bin", "libstdc++6")
HOST_PACKAGES = ("proot", "libtalloc2")
PR_SET_CHILD_SUBREAPER = 36


class SshBoard:
    """An SSH board has an account `me` with the folder `home`, which other boards do not share.

    Attributes:
        port: where its SSH server listens, on loopback.
        home: the home folder of its user.
        commands: a folder to have first on PATH: its `ssh` knows this board as `pi`.
    """

    def __init__(self, folder: Path, emulator: str, cache: Path) -> None:
        self._root = folder / "root"
        self.home = self._root / "home" / "me"
        self.commands = folder / "bin"
        self.config = folder / "ssh_config"
        self._folder = folder
        self._userland = _userland(cache)
        self._emulator = emulator
        self._listener: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        for part in ("bin", "root/etc", "root/home/me/.ssh"):
            (folder / part).mkdir(parents=True)
        key = folder / "key"
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        shutil.copyfile(key.with_suffix(".pub"), self.home / ".ssh" / "authorized_keys")
        for path in (self.home, self.home / ".ssh"):
            path.chmod(0o700)
        for name in ("bin", "sbin", "lib"):
            (self._root / name).symlink_to(f"usr/{name}")
        (self._root / "etc" / "passwd").write_text("me:x:1000:1000::/home/me:/bin/sh\n")
        (self._root / "etc" / "shells").write_text("/bin/sh\n")
        _run(*self.command("dropbearkey", "-t", "ed25519", "-f", "/etc/host_key"))
        self.config.write_text(
            f"Host pi\n HostName 127.0.0.1\n Port {self.port}\n User me\n"
            f"Host *\n IdentityFile {key}\n IdentitiesOnly yes\n"
            f" UserKnownHostsFile {folder / 'known_hosts'}\n StrictHostKeyChecking ask\n"
            " HostKeyAlias board\n"
        )
        ssh = self.commands / "ssh"
        ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.config} "$@"\n')
        ssh.chmod(0o755)
        self.start()
        try:
            _run(str(ssh), "-oStrictHostKeyChecking=accept-new", "pi", "true")
        except BaseException:
            self.stop()
            raise

    def command(self, *words: str) -> list[str]:
        """Return what runs an aarch64 program of the board on this machine."""
        proot = self._userland / "host" / "usr"
        # The last for df, which looks for mounts by their names on this machine.
        binds = ("/dev", "/proc", f"{self._userland / 'board' / 'usr'}:/usr", str(self.home))
        return [
            *(
                "env",
                "-i",
                f"LD_LIBRARY_PATH={next((proot / 'lib').glob('*/libtalloc.so.2')).parent}",
            ),
            *("PATH=/usr/bin:/usr/sbin", str(proot / "bin" / "proot"), "-0", "-w", "/"),
            *("-q", f"{self._emulator} -cpu cortex-a72", "-r", str(self._root)),
            *(word for path in binds for word in ("-b", path)),
            *words,
        ]

    def start(self, *before: str) -> None:
        """Start the SSH server; `before` are programs that limit what it can do."""
        shell = self.command("dropbear", "-i", "-s", "-r", "/etc/host_key")
        self._listener = subprocess.Popen(
            [*before, sys.executable, "-I", __file__, str(self.port), *shell],
            stdin=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.05)
        raise TimeoutError("the SSH server does not listen")

    def stop(self) -> None:
        """End the SSH server and everything on the board."""
        if self._listener is None:
            return
        for pid in [*self.processes(), self._listener.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._listener.wait()
        self._listener = None

    def processes(self, text: str = "") -> list[int]:
        """Return processes on the board whose command line holds a text."""
        assert self._listener is not None
        return [pid for pid in _descendants(self._listener.pid) if text in _command_line(pid)]


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _userland(cache: Path) -> Path:
    """Return the board's programs, and PRoot for this machine, fetched once."""
    final = cache / "ssh-board-2"
    if final.is_dir():
        return final
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ssh-board.", dir=cache) as name:
        partial = Path(name) / "userland"
        downloads = Path(name) / "apt"
        for part in ("lists/partial", "cache/archives/partial"):
            (downloads / part).mkdir(parents=True)
        host = _run("dpkg", "--print-architecture").decode().strip()
        apt = ["apt-get", "-q", "-y", "-o", f"Dir::State::Lists={downloads / 'lists'}"]
        apt += ["-o", f"Dir::Cache={downloads / 'cache'}", "-o", "Dir::State::Status=/dev/null"]
        apt += ["-o", "APT::Sandbox::User=", "-o", "Debug::NoLocking=1"]
        apt += ["-o", f"APT::Architectures::={host}", "-o", "APT::Architectures::=arm64"]
        _run(*apt, "update")
        wanted = [*HOST_PACKAGES, *(f"{package}:arm64" for package in BOARD_PACKAGES)]
        _run(*apt, "install", "--download-only", "--no-install-recommends", *wanted)
        _make_folders(partial / "board")
        for file in (downloads / "cache" / "archives").glob("*.deb"):
            if file.name.endswith("_arm64.deb"):
                _unpack(file, partial / "board")
            elif file.name.split("_")[0] in HOST_PACKAGES:
                _unpack(file, partial / "host")
        programs = partial / "board" / "usr" / "bin"
        (programs / "sh").unlink(missing_ok=True)
        (programs / "sh").symlink_to("dash")
        for applet in _APPLETS:
            (programs / applet).symlink_to("busybox")
        with contextlib.suppress(OSError):
            # Another test process may have been faster.
            partial.rename(final)
    return final


_APPLETS = (
    *("cat", "grep", "head", "id", "ln", "ls", "mkdir", "mv", "rm", "setsid", "sha256sum"),
    *("sleep", "stat", "sync", "tail", "tar", "touch", "tr", "uname"),
)


def _make_folders(root: Path) -> None:
    for name in ("bin", "sbin", "lib"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")


def _unpack(package: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    archive = BytesIO(_run("dpkg-deb", "--fsys-tarfile", str(package)))
    with tarfile.open(fileobj=archive) as tar:
        # Older packages have /bin and /lib beside /usr; on the board they are the same.
        members = [item for item in tar if not item.isdir() and "/usr/share/" not in item.name]
        tar.extractall(folder, members, filter="tar")


def _run(*command: str) -> bytes:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=600, check=False
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def _descendants(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    parents[int(folder.name)] = int(fields[1])
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found[1:]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def serve(port: int, command: Sequence[str]) -> None:
    """Run the command for every connection, and collect what ends."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            if select.select([listener], [], [], 0.05)[0]:
                client, _ = listener.accept()
                with client:
                    subprocess.Popen(
                        command, stdin=client, stdout=client, stderr=subprocess.DEVNULL
                    )
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2:])
