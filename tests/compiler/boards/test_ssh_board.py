"""Boards behind ssh: a real SSH server on aarch64 under QEMU, set up from nothing."""

import contextlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.breaking_network import breaking_network
from support.far_board import far_board
from support.ssh_board import SshBoard, free_port

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.boards import rpc, ssh
from edgec.compiler.boards.artifacts import SERVER, server_artifacts
from edgec.compiler.boards.config import Board, Link
from edgec.compiler.boards.deploy import deploy_bundle
from edgec.compiler.boards.server import SCRIPT
from edgec.compiler.boards.setup import clean_board, setup_board, start_server, stop_server
from edgec.compiler.cli.main import main
from edgec.compiler.errors import BoardConfigError, BoardError, ToolchainError
from edgec.compiler.support.progress import Silent

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="needs the OpenSSH client")


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshBoard]:
    """The far side; `ssh pi` leads there."""
    with far_board(tmp_path_factory.mktemp("far")) as side:
        yield side


@pytest.fixture(scope="module")
def board(far: SshBoard) -> Board:
    return Board(name="pi", target="rpi4", link=Link(via="ssh", host="pi", port=free_port()))


@pytest.fixture
def bare(far: SshBoard, board: Board) -> Iterator[Board]:
    """The board with nothing of edgec on it."""
    clean_board(board)
    yield board
    far.stop()
    far.start()


@pytest.fixture
def ready(far: SshBoard, board: Board) -> Board:
    """The board, set up."""
    setup_board(board, Silent())
    return board


@pytest.fixture(scope="module")
def bundle(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    options = CompileOptions(shapes={"image": (1, 1, 8, 8)})
    output = tmp_path_factory.mktemp("bundle") / "digits.edgec"
    return compile_model(digits, "rpi4", options, output=output)


def linked(board: Board, **fields: object) -> Board:
    assert board.link is not None
    return board.model_copy(update={"link": board.link.model_copy(update=fields)})


def installed(far: SshBoard) -> Path:
    (folder,) = (far.home / ".local/share/edgec").glob("server-*")
    return folder


def servers(far: SshBoard) -> list[int]:
    return [pid for pid in far.processes(f"/{SERVER} 127.0.0.1") if not is_proot(pid)]


def is_proot(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().strip() == "proot"


def eventually(test: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not test() and time.monotonic() < deadline:
        time.sleep(0.05)
    return test()


def tunnels() -> list[int]:
    """ssh clients of this process."""
    me = str(os.getpid())
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                words = (folder / "stat").read_text()
                if words.rpartition(")")[2].split()[1] == me and "(ssh)" in words:
                    found.append(int(folder.name))
    return found


def test_one_command_sets_a_board_up(
    far: SshBoard, bare: Board, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bare.link is not None
    add = ["board", "add", "mine", "-t", "rpi4", "--port", str(bare.link.port)]
    # Without the alias of ssh's configuration.
    ssh_options = ["--ssh", "me@127.0.0.1", "--ssh-port", str(far.port)]
    assert main([*add, *ssh_options]) == 0
    assert main(["board", "start", "mine"]) == 6
    assert "it is not set up: edgec board setup mine" in capsys.readouterr().err
    assert main(["board", "setup", "mine", "-q"]) == 0
    assert "mine: set up, 6." in capsys.readouterr().out
    (server,) = servers(far)
    assert main(["board", "ping", "mine"]) == 0
    assert "aarch64" in capsys.readouterr().out
    assert main(["deploy", str(bundle.path), "--board", "mine", "-q"]) == 0
    assert main(["verify", str(bundle.path), "--board", "mine"]) == 0
    capsys.readouterr()
    assert main(["board", "setup", "mine", "-q"]) == 0
    assert capsys.readouterr().out == "mine: already set up; it answers\n"
    assert servers(far) == [server]
    assert main(["board", "stop", "mine"]) == 0
    assert eventually(lambda: far.processes() == [])
    assert main(["board", "start", "mine"]) == 0
    assert main(["board", "remove", "mine"]) == 0
    assert "edgec board remove mine --clean" in capsys.readouterr().out
    assert len(servers(far)) == 1
    assert main([*add, *ssh_options]) == 0
    assert main(["board", "remove", "mine", "--clean"]) == 0
    assert eventually(lambda: far.processes() == [])
    assert not (far.home / ".local/share/edgec").exists()
    assert tunnels() == []


def test_the_server_is_its_users_alone(far: SshBoard, ready: Board) -> None:
    folder = far.home / ".local/share/edgec"
    assert folder.stat().st_mode & 0o777 == 0o700
    (server,) = servers(far)
    opened = {
        str(file.readlink()) for file in Path(f"/proc/{server}/fd").iterdir() if file.exists()
    }
    files = {name for name in opened if "socket" not in name and str(far.home) not in name}
    assert files <= {"/dev/null"}, "it would hold the connection that started it"


def test_only_what_changed_is_sent(far: SshBoard, ready: Board) -> None:
    folder = installed(far)
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    (folder / "libtvm_runtime_extra.so").write_bytes(b"damaged")
    report = setup_board(ready, Silent())
    assert report.sent_bytes == sizes["libtvm_runtime_extra.so"]
    # An older server on the same runtime.
    stop_server(ready)
    folder = folder.rename(folder.with_name("server-000000000000"))
    (folder / SERVER).write_bytes(b"old")
    report = setup_board(ready, Silent())
    assert report.sent_bytes == sizes[SERVER]
    assert report.changed
    assert installed(far).name != folder.name
    assert {file.name: file.stat().st_size for file in installed(far).iterdir()} == sizes


def test_two_setups_at_once(far: SshBoard, bare: Board) -> None:
    with ThreadPoolExecutor() as pool:
        command = [sys.executable, "-m", "edgec.compiler", "board"]
        assert bare.link is not None
        port = str(bare.link.port)
        add = [*command, "add", "twice", "-t", "rpi4", "--ssh", "pi", "--port", port]
        assert subprocess.run(add, stdout=subprocess.DEVNULL, check=False).returncode == 0
        setup = [*command, "setup", "twice", "-q"]
        runs = [pool.submit(subprocess.run, setup, capture_output=True) for _ in range(2)]
        texts = sorted(run.result().stdout.decode() for run in runs)
    assert texts[0] == "twice: already set up; it answers\n"
    assert "twice: set up, 6." in texts[1]
    assert len(servers(far)) == 1


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"host": "nobody@pi"}, [], r"ssh: .*Permission denied.*needs a key"),
        (
            {},
            ["-oUserKnownHostsFile=/dev/null"],
            r"ssh: Host key verification failed.*by hand, it says why: ssh pi$",
        ),
        ({"ssh_port": 1}, [], "ssh: connect to host 127.0.0.1 port 1: Connection refused"),
        ({"host": "no-such-host.invalid"}, [], "ssh: Could not resolve hostname"),
    ],
)
def test_no_way_through_ssh(
    far: SshBoard,
    board: Board,
    fields: dict[str, object],
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = linked(board, **fields)
    for option in options:
        name, _, value = option.removeprefix("-o").partition("=")
        monkeypatch.setitem(ssh._OPTIONS, name, value)
    with pytest.raises(BoardError, match=rf"board pi \(ssh .*\): connect: {message}"):
        open_and_leave(there)
    with pytest.raises(BoardError, match=rf"look at the board: {message}"):
        setup_board(there, Silent())
    assert tunnels() == []


def test_a_server_that_is_not_running(ready: Board) -> None:
    stop_server(ready)
    with pytest.raises(
        BoardError,
        match=r"not port \d+ of its loopback: connect failed.*; edgec board setup pi starts",
    ):
        open_and_leave(ready)
    assert tunnels() == []
    assert start_server(ready)
    open_and_leave(ready)


def test_an_ssh_server_that_never_answers(
    far: SshBoard, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ssh._OPTIONS, "ConnectTimeout", "1")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        there = linked(board, ssh_port=mute.getsockname()[1])
        with pytest.raises(BoardError, match=r"connect: ssh: Connection .* timed out"):
            open_and_leave(there)
    assert tunnels() == []


def test_no_ssh(board: Board, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for attempt in (open_and_leave, start_server, clean_board):
        with pytest.raises(ToolchainError, match=r"ssh is not on PATH.*install the OpenSSH client"):
            attempt(board)


def test_a_board_that_is_not_its_target(far: SshBoard, bare: Board) -> None:
    other = bare.model_copy(update={"target": "x86-64-v3"})
    with pytest.raises(BoardConfigError, match="is aarch64, its target x86-64-v3 is x86_64"):
        setup_board(other, Silent())
    with pytest.raises(BoardConfigError, match=r"TVM offers no runtime for armv7l.*--runner"):
        setup_board(bare.model_copy(update={"target": "rpi3-32bit"}), Silent())
    assert not list((far.home / ".local/share/edgec").glob("server-*"))


def test_a_board_that_is_not_behind_ssh() -> None:
    direct = Board(name="pi", target="rpi4", link=Link(port=9090))
    with pytest.raises(BoardConfigError, match="add it with --ssh USER@HOST"):
        setup_board(direct, Silent())


def test_no_systemd_there(far: SshBoard, ready: Board) -> None:
    before = servers(far)
    with pytest.raises(BoardError, match="it has no systemd; leave out --service"):
        setup_board(ready, Silent(), service=True)
    assert servers(far) == before
    assert not (far.home / ".config").exists()


def test_a_port_that_is_taken(far: SshBoard, bare: Board) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(BoardError, match=f"cannot listen on 127.0.0.1:{port}: Address already"):
            setup_board(linked(bare, port=port), Silent())
    assert servers(far) == []
    assert setup_board(bare, Silent()).sent_bytes == 0


def test_a_disk_too_small(far: SshBoard, bare: Board) -> None:
    folder = far.home / ".local/share/edgec"
    folder.mkdir(parents=True, exist_ok=True)
    far.stop()
    mount = f'mount -t tmpfs -o size=2m edgec {folder} && exec "$@"'
    far.start("unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh")
    with pytest.raises(BoardError, match=r"it has 2.1 MB of free disk space, the server needs 7."):
        setup_board(bare, Silent())


def test_a_disk_that_fills_up_in_setup(far: SshBoard, bare: Board) -> None:
    far.stop()
    far.start("prlimit", "--fsize=1000000")
    with pytest.raises(BoardError, match=r"send: .*(File|file)"):
        setup_board(bare, Silent())
    folder = far.home / ".local/share/edgec"
    assert eventually(lambda: list(folder.iterdir()) == [])
    far.stop()
    far.start()
    assert setup_board(bare, Silent()).sent_bytes > 6_000_000


def test_a_network_cut_in_setup(far: SshBoard, bare: Board) -> None:
    with (
        breaking_network(far.port, 2_000_000) as port,
        pytest.raises(BoardError, match="send: ssh: "),
    ):
        setup_board(linked(bare, ssh_port=port), Silent())
    folder = far.home / ".local/share/edgec"
    assert eventually(lambda: list(folder.iterdir()) == [])
    assert tunnels() == []
    assert setup_board(bare, Silent()).sent_bytes > 6_000_000


def test_a_network_cut_in_an_upload(
    far: SshBoard, ready: Board, bundle: Bundle, tmp_path: Path
) -> None:
    file = tmp_path / "large.so"
    file.write_bytes(os.urandom(4_000_000))
    with (
        breaking_network(far.port, 2_000_000) as port,
        rpc.open_board_session(linked(ready, ssh_port=port)) as session,
        pytest.raises(BoardError, match="send the model, at 1048576 of 4000000 bytes: ssh: "),
    ):
        session.push(file, "large.so")
    assert tunnels() == []
    assert deploy_bundle(bundle, ready, Silent()).parity.passed
    files = far.home / ".local/share/edgec/files"
    assert not (files / "kept" / "large.so").exists()
    assert list((files / "session").iterdir()) == []


def test_a_server_killed_in_a_session(far: SshBoard, ready: Board, bundle: Bundle) -> None:
    with rpc.open_board_session(ready) as session:
        for pid in servers(far):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(BoardError, match="the connection broke"):
            session.capabilities()
    assert tunnels() == []
    assert start_server(ready)
    assert deploy_bundle(bundle, ready, Silent()).parity.passed


def test_a_client_killed_in_a_session_leaves_no_ssh(far: SshBoard, ready: Board) -> None:
    assert ready.link is not None
    script = (
        "import sys, time\n"
        "from edgec.compiler.boards.config import Board\n"
        "from edgec.compiler.boards.rpc import open_board_session\n"
        "with open_board_session(Board.model_validate_json(sys.argv[1])):\n"
        "    print('there', flush=True)\n"
        "    time.sleep(60)\n"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", script, ready.model_dump_json()], stdout=subprocess.PIPE
    )
    assert client.stdout is not None
    assert client.stdout.readline() == b"there\n"
    forward = f"-W 127.0.0.1:{ready.link.port}"
    assert len(processes(forward)) == 1
    client.kill()
    client.wait()
    client.stdout.close()
    assert eventually(lambda: processes(forward) == [])
    open_and_leave(ready)


SYSTEMD = Path("/lib/systemd/systemd")
# A systemd of its own that sees no other process and no other file system's changes.
WITH_SYSTEMD = """
set -eu
mount -t tmpfs edgec /run
mkdir -p /run/systemd/system /run/user/0
umount -R /sys/fs/cgroup
mount -t cgroup2 edgec /sys/fs/cgroup
export HOME="$1" XDG_RUNTIME_DIR=/run/user/0
unset XDG_CONFIG_HOME
/lib/systemd/systemd --user --log-target=null &
until systemctl --user show --property=Version >/dev/null 2>&1; do sleep 0.1; done
script=$2
port=$3
act() { echo "$1:"; sh -c "$(cat "$script")" edgec "$@"; }
act check_service
act secret >/dev/null
act start mine "$port" '' service
# It replaces the shell that started it, which `look` does not count.
until act look | grep -q edgec:running=; do sleep 0.1; done
act look
act start mine "$port" ''
systemctl --user is-enabled edgec-server
systemctl --user is-active edgec-server
act stop
act start mine "$port" ''
act clean
systemctl --user is-active edgec-server || :
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or not SYSTEMD.exists() or platform.machine() != "x86_64",
    reason="needs root, systemd and x86-64 to start a systemd of its own",
)
def test_a_service_of_systemd(tmp_path: Path) -> None:
    folder = tmp_path / ".local/share/edgec/server-mine"
    shutil.copytree(server_artifacts("x86_64", Silent(), first_step=1, steps=2), folder)
    (folder / SERVER).chmod(0o700)
    port = str(free_port())
    spaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    done = subprocess.run(
        [*spaces, "sh", "-c", WITH_SYSTEMD, "sh", str(tmp_path), str(SCRIPT), port],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "edgec:file=" not in line]
    assert lines[:4] == ["check_service:", "edgec:lingers=no", "start:", "edgec:started=yes"]
    assert "edgec:service=yes" in lines
    (running,) = [line for line in lines if line.startswith("edgec:running=")]
    assert f"/server-mine/{SERVER} 127.0.0.1 {port} " in running
    # The second start finds it running.
    again = lines.index("start:", 3)
    assert lines[again : again + 4] == ["start:", "enabled", "active", "stop:"]
    assert lines[-3:] == ["clean:", lines[-2], "inactive"]
    assert lines[-2].startswith("edgec:stopped=")
    assert not folder.parent.exists()
    assert not list((tmp_path / ".config/systemd/user").rglob("edgec*"))


def processes(text: str) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if text in words:
                    found.append(int(folder.name))
    return found


def open_and_leave(board: Board) -> None:
    with rpc.open_board_session(board):
        pass
