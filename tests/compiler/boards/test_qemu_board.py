"""A real board under QEMU: deploying, every way to reach it, and what may go wrong."""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
from support.breaking_network import breaking_network

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.boards import rpc
from edgec.compiler.boards.capabilities import BoardCapabilities, check_compatible
from edgec.compiler.boards.config import Board, Link
from edgec.compiler.boards.deploy import deploy_bundle
from edgec.compiler.boards.qemu import find_board, start_board, stop_board
from edgec.compiler.boards.secret import keep_secret, new_secret
from edgec.compiler.cli.main import main
from edgec.compiler.errors import BoardConfigError, BoardError, BundleError
from edgec.compiler.support.progress import Silent

NAME = "qemu-rpi4"


@pytest.fixture(scope="module", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("state")
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder / "edgec" / "boards" / NAME


@pytest.fixture(scope="module")
def running(own_state: Path) -> Iterator[Board]:
    board = start_board(NAME, Silent())
    yield board
    stop_board(NAME)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return compiled(tmp_path_factory.mktemp("bundle"), "rpi4")


def compiled(folder: Path, target: str) -> Bundle:
    assert main(["models", "digits", "-o", str(folder / "digits.onnx")]) == 0
    options = CompileOptions(shapes={"image": (1, 1, 8, 8)})
    return compile_model(folder / "digits.onnx", target, options, output=folder / f"{target}.edgec")


def processes(text: str) -> list[int]:
    """Processes whose command line holds a text."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if text in (folder / "cmdline").read_bytes().decode(errors="replace"):
                    found.append(int(folder.name))
    return found


def test_deploy_verifies_and_sends_once(
    running: Board, bundle: Bundle, own_state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = deploy_bundle(bundle, running, Silent())
    assert first.parity.passed
    assert first.sent_bytes == bundle.library.stat().st_size
    assert len(first.seconds) == 10
    assert min(first.seconds) > 0
    assert deploy_bundle(bundle, running, Silent()).sent_bytes == 0
    assert len(list((own_state / "files" / "kept").iterdir())) == 1
    assert list((own_state / "files" / "session").iterdir()) == []
    assert main(["deploy", str(bundle.path), "--board", NAME, "-q"]) == 0
    assert "under QEMU" in capsys.readouterr().out


def test_run_and_verify_on_the_board(
    running: Board, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs, expected = bundle.vectors()[0]
    np.savez(tmp_path / "in.npz", allow_pickle=False, **inputs)
    arguments = ["--input", str(tmp_path / "in.npz"), "-o", str(tmp_path / "out.npz")]
    assert main(["run", str(bundle.path), "--board", NAME, *arguments]) == 0
    with np.load(tmp_path / "out.npz") as saved:
        for name, array in expected.items():
            np.testing.assert_allclose(saved[name], array, rtol=1e-4, atol=1e-4)
    assert main(["verify", str(bundle.path), "--board", NAME]) == 0
    assert main(["board", "ping", NAME]) == 0
    assert "aarch64" in capsys.readouterr().out


def test_a_changed_expectation_fails_on_the_board(running: Board, bundle: Bundle) -> None:
    with rpc.open_board_session(running) as session:
        name, _ = rpc.push_bundle(session, bundle)
        model = session.load(bundle, name)
        inputs, expected = bundle.vectors()[0]
        other = {key: value + 1 for key, value in inputs.items()}
        for key, array in model.run(other).items():
            assert not np.allclose(array, expected[key], rtol=1e-3)


def test_the_check_refuses_a_cpu_without_a_feature(
    running: Board, tmp_path: Path, own_state: Path
) -> None:
    newer = compiled(tmp_path, "rpi5")
    before = sorted((own_state / "files" / "kept").iterdir())
    with pytest.raises(BundleError, match=r"CPU lacks .*asimddp"):
        deploy_bundle(newer, running, Silent())
    assert main(["run", str(newer.path), "--board", NAME]) == 4
    assert sorted((own_state / "files" / "kept").iterdir()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "x86_64"}, "its code is for aarch64, the board is x86_64"),
        ({"glibc": "2.27"}, "it needs glibc 2.28, the board has 2.27"),
        ({"memory_bytes": 10_000_000}, "MB of memory, 10 MB are free"),
        ({"disk_bytes": 1000}, "MB of disk space, 0 MB are free"),
        ({"hwcap": 1}, "CPU lacks asimd"),
    ],
)
def test_the_check_says_what_is_in_the_way(
    running: Board, bundle: Bundle, change: dict[str, object], message: str
) -> None:
    with rpc.open_board_session(running) as session:
        capabilities = session.capabilities()
    check_compatible(bundle.manifest, capabilities)
    with pytest.raises(BundleError, match=message):
        check_compatible(
            bundle.manifest, BoardCapabilities(**{**capabilities.model_dump(), **change})
        )


def test_file_names_stay_in_their_folder(running: Board) -> None:
    with rpc.open_board_session(running) as session:
        for name in ("../x", "/x", ".x", "a/b", ""):
            with pytest.raises(BoardError, match="bad file name"), session.step("try", 10):
                session.call("append", name, bytearray(b"x"))


def test_garbage_is_no_model_and_the_board_serves_on(
    running: Board, bundle: Bundle, tmp_path: Path
) -> None:
    garbage = tmp_path / "garbage.so"
    garbage.write_bytes(b"no library" * 100)
    with rpc.open_board_session(running) as session:
        session.push(garbage, "garbage.so")
        with pytest.raises(BoardError, match=r"load the model: .*invalid ELF header"):
            session.load(bundle, "garbage.so")
    assert deploy_bundle(bundle, running, Silent()).parity.passed


def test_a_board_that_is_off(own_state: Path) -> None:
    off = Board(name="off", target="rpi4", link=Link(port=free_port()))
    with pytest.raises(BoardError, match=r"board off \(127.*\): connect: .*Connection refused"):
        open_and_leave(off)
    with pytest.raises(BoardError, match=r"not running; start it: edgec board start qemu-rpi3"):
        open_and_leave(find_board("qemu-rpi3"))
    assert main(["board", "ping", "qemu-rpi3"]) == 6


def test_a_peer_that_never_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rpc, "GREET_SECONDS", 1.0)
    keep_secret(tmp_path / "secret", new_secret())
    with socket.create_server(("127.0.0.1", 0)) as mute:
        link = Link(port=mute.getsockname()[1], secret=str(tmp_path / "secret"))
        board = Board(name="mute", target="rpi4", link=link)
        start = time.monotonic()
        with pytest.raises(BoardError, match="connect: no answer in 1 s"):
            open_and_leave(board)
        assert time.monotonic() - start < 10


def test_a_second_client_waits_its_turn(running: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    with rpc.open_board_session(running) as session:
        monkeypatch.setattr(rpc, "GREET_SECONDS", 1.0)
        with pytest.raises(BoardError, match="connect: no answer in 1 s"):
            open_and_leave(running)
        monkeypatch.undo()
        assert session.capabilities().architecture == "aarch64"
    open_and_leave(running)


def test_a_wrong_key(running: Board) -> None:
    assert running.link is not None
    link = running.link.model_copy(update={"key": "other"})
    with pytest.raises(BoardError, match="connect: the server there answers to another key"):
        open_and_leave(running.model_copy(update={"link": link}))


def test_a_session_that_dies_takes_no_other_with_it(
    running: Board, bundle: Bundle, own_state: Path
) -> None:
    server = json.loads((own_state / "state.json").read_bytes())["pid"]
    with rpc.open_board_session(running) as session:
        (child,) = set(processes(str(own_state / "files"))) - {server}
        os.kill(child, signal.SIGKILL)
        with pytest.raises(BoardError, match="the connection broke: the model crashed or ran out"):
            session.capabilities()
    assert deploy_bundle(bundle, running, Silent()).parity.passed


def test_a_full_disk(running: Board, bundle: Bundle, own_state: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.so"
    file.write_bytes(bytes(100_000))
    with rpc.open_board_session(running) as session:
        (own_state / "files" / "session" / "full.so").symlink_to("/dev/full")
        with pytest.raises(BoardError, match=r"send the model, .*No space left on device"):
            session.push(file, "full.so")
    assert not (own_state / "files" / "kept" / "full.so").exists()
    assert deploy_bundle(bundle, running, Silent()).parity.passed


def test_no_memory_for_the_model(
    running: Board, bundle: Bundle, own_state: Path, tmp_path: Path
) -> None:
    model = tmp_path / "wide.onnx"
    onnx.save(wide_model(), model)
    wide = compile_model(model, "rpi4", CompileOptions(), output=tmp_path / "wide.edgec")
    assert wide.manifest.execution.arena_bytes > 30_000_000
    server = json.loads((own_state / "state.json").read_bytes())["pid"]
    size = int(Path(f"/proc/{server}/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.prlimit(server, resource.RLIMIT_AS)
    # Sessions are children of the server: this is all that they get, under QEMU's own memory.
    resource.prlimit(server, resource.RLIMIT_AS, (size + 24_000_000, before[1]))
    try:
        with pytest.raises(BoardError, match="load the model: no memory or no threads"):
            deploy_bundle(wide, running, Silent(), threads=1)
        assert main(["deploy", str(wide.path), "--board", NAME, "--threads", "1", "-q"]) == 6
    finally:
        resource.prlimit(server, resource.RLIMIT_AS, before)
    assert deploy_bundle(bundle, running, Silent()).parity.passed
    assert list((own_state / "files" / "session").iterdir()) == []


def wide_model() -> onnx.ModelProto:
    graph = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        wide (float[1, 1, 1024, 1024] x) => (float[1, 1, 1024, 1024] y)
        {
            middle = Conv<pads = [1, 1, 1, 1]>(x, first)
            y = Conv<pads = [1, 1, 1, 1]>(middle, second)
        }
    """)
    generator = np.random.default_rng(0)
    for name, shape in (("first", (8, 1, 3, 3)), ("second", (1, 8, 3, 3))):
        values = generator.standard_normal(shape).astype(np.float32)
        graph.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return graph


def test_a_network_cut_in_the_middle_of_an_upload(
    running: Board, bundle: Bundle, own_state: Path, tmp_path: Path
) -> None:
    file = tmp_path / "large.so"
    file.write_bytes(bytes(4_000_000))
    assert running.link is not None
    with breaking_network(running.link.port, 2_000_000) as port:
        link = running.link.model_copy(update={"port": port})
        with (
            rpc.open_board_session(running.model_copy(update={"link": link})) as session,
            pytest.raises(
                BoardError, match="send the model, at 1048576 of 4000000 bytes: the conn"
            ),
        ):
            session.push(file, "large.so")
    assert deploy_bundle(bundle, running, Silent()).parity.passed
    assert not (own_state / "files" / "kept" / "large.so").exists()
    assert list((own_state / "files" / "session").iterdir()) == []


def test_a_server_killed_in_a_session(bundle: Bundle, own_state: Path) -> None:
    stop_board(NAME)
    board = start_board(NAME, Silent())
    with rpc.open_board_session(board) as session:
        for pid in processes(str(own_state / "files")):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(BoardError, match="the connection broke"):
            session.capabilities()
    assert find_board(NAME).link is None, "the state file of a dead server counts for nothing"
    again = start_board(NAME, Silent())
    assert deploy_bundle(bundle, again, Silent()).parity.passed
    assert stop_board(NAME)
    assert processes(str(own_state / "files")) == []


@pytest.fixture
def stopped() -> Iterator[None]:
    stop_board(NAME)
    yield
    stop_board(NAME)


@pytest.mark.parametrize("via", ["tracker", "proxy"])
def test_through_tracker_and_proxy(via: str, stopped: None, bundle: Bundle) -> None:
    port = free_port()
    with registry(via, port):
        link = Link.model_validate({"via": via, "port": port, "key": "pi"})
        board = start_board(NAME, Silent(), link)
        with pytest.raises(BoardConfigError, match="stop it first"):
            start_board(NAME, Silent(), link.model_copy(update={"key": "other"}))
        for _ in range(2):
            assert deploy_bundle(bundle, board, Silent()).parity.passed
    if via == "tracker":
        with pytest.raises(BoardError, match=r"cannot connect to 127|tracker at .* broke off"):
            open_and_leave(board)
        # The board finds the way back by itself.
        with registry(via, port):
            assert deploy_bundle(bundle, board, Silent()).parity.passed


@contextlib.contextmanager
def registry(via: str, port: int) -> Iterator[None]:
    """TVM's tracker or proxy."""
    command = [sys.executable, "-m", f"tvm.exec.rpc_{via}", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--port-end", str(port + 1)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(port)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_lock_of_a_process_that_died(stopped: None, own_state: Path) -> None:
    own_state.mkdir(parents=True, exist_ok=True)
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from edgec.compiler.boards.config import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    lock = own_state / "lock"
    died = subprocess.run([sys.executable, "-c", script, str(lock)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert lock.exists()
    open_and_leave(start_board(NAME, Silent()))


def open_and_leave(board: Board) -> None:
    with rpc.open_board_session(board):
        pass


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise TimeoutError(f"nobody listens on {port}")
