"""Tuning on boards: two under QEMU behind a tracker, one of which is killed; and by counting."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgec.compiler.boards.config import Board, Link
from edgec.compiler.boards.qemu import start_board, stop_board
from edgec.compiler.boards.relay import count_boards
from edgec.compiler.cli.main import main
from edgec.compiler.lowering.tuning_records import Database, best_records
from edgec.compiler.support.progress import Silent

SHAPE = ["--shape", "image=1,1,8,8"]


@pytest.fixture(scope="module", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("state")
        patch.setenv("XDG_STATE_HOME", str(folder))
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        yield folder / "edgec" / "boards"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "digits.onnx"
    assert main(["models", "digits", "-o", str(path)]) == 0
    return path


@contextlib.contextmanager
def tracker() -> Iterator[Link]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tvm.exec.rpc_tracker", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--port-end", str(port + 1)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for_port(port)
        yield Link(via="tracker", port=port, key="farm")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_port(port: int) -> None:
    """The tracker imports TVM before it listens, which takes long where others compute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise AssertionError("the tracker does not listen")


def wait_for_boards(board: Board, count: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):
            if count_boards(board) == count:
                return
        time.sleep(0.2)
    raise AssertionError(f"the tracker does not know {count} boards")


def test_a_board_that_dies_and_comes_back(
    digits: Path, tmp_path: Path, own_state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database, log = tmp_path / "db.jsonl", tmp_path / "log"
    with tracker() as link:
        farm = Board(name="farm", target="rpi3", link=link, emulated=True)
        address = f"127.0.0.1:{link.port}"
        add = ["board", "add", "farm", "-t", "rpi3", "--tracker", address, "--key", "farm"]
        try:
            start_board("qemu-rpi3", Silent(), link)
            start_board("qemu-rpi4", Silent(), link)
            wait_for_boards(farm, 2)
            assert main([*add, "--emulated"]) == 0
            killer = threading.Thread(target=kill_and_restart, args=(database, own_state, link))
            killer.start()
            tune = ["tune", str(digits), *SHAPE, "-t", "rpi3", "--board", "farm", "-q"]
            tune += ["--db", str(database), "--trials", "20", "--log", str(log)]
            assert main(tune) == 0
            killer.join()
        finally:
            stop_board("qemu-rpi3")
            stop_board("qemu-rpi4")
    records = Database.read(database).records
    trials = {(r.key, r.decision_text) for r in records if not r.confirmed}
    assert len(trials) == 20
    assert all(record.emulated and record.target == "rpi3" for record in records)
    assert {r.machine for r in records} == {"board farm"}
    events = [json.loads(line[line.index("{") :]) for line in log.read_text().splitlines()]
    devices = {event["device"] for event in events if event["event"] == "round"}
    assert devices == {"farm #1", "farm #2"}
    failures = [event for event in events if event["event"] in ("rest", "failed")]
    assert failures, "nothing was killed in the middle of a round"
    bundle = tmp_path / "digits.edgec"
    compile_it = ["compile", str(digits), *SHAPE, "-t", "rpi3", "-o", str(bundle)]
    assert main([*compile_it, "--records", str(database)]) == 0
    # Lines are broken after a path of any length.
    assert "was measured in an emulator" in " ".join(capsys.readouterr().err.split())


def kill_and_restart(database: Path, state: Path, link: Link) -> None:
    """Once something was measured, kill a board in the middle of a session, start it again."""
    while not database.exists():
        time.sleep(0.05)
    pid = json.loads((state / "qemu-rpi4" / "state.json").read_text())["pid"]
    while not Path(f"/proc/{pid}/task/{pid}/children").read_text().strip():
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    time.sleep(2.0)
    start_board("qemu-rpi4", Silent(), link)


def test_a_qemu_board_is_tuned_by_counting(digits: Path, tmp_path: Path) -> None:
    """Counts are exact: the same decision has the same count in every run."""
    start_board("qemu-rpi4", Silent())
    try:
        found = []
        for number in range(2):
            database = tmp_path / f"{number}.jsonl"
            tune = ["tune", str(digits), *SHAPE, "-t", "rpi4", "--board", "qemu-rpi4", "-q"]
            tune += ["--strategy", "exhaustive", "--trials", "12", "--db", str(database)]
            assert main(tune) == 0
            records = Database.read(database).records
            assert all(record.emulated for record in records)
            found.append({(r.key, r.decision_text): r.seconds for r in records if not r.confirmed})
        assert found[0] == found[1]
        assert len(found[0]) == 12
        best = best_records(records)
        for key, record in best.items():
            times = [s for (k, _), s in found[1].items() if k == key and s is not None]
            assert record.seconds == pytest.approx(min(times), rel=0.02)
    finally:
        stop_board("qemu-rpi4")


def test_a_board_that_is_off_says_so(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = ["tune", str(digits), *SHAPE, "--db", str(tmp_path / "db"), "--trials", "3"]
    assert main([*tune, "-t", "rpi4", "--board", "qemu-rpi4"]) == 6
    assert "edgec board start qemu-rpi4" in capsys.readouterr().err
    assert main([*tune, "-t", "rpi4", "--board", "qemu-rpi"]) == 4
    assert "did you mean" in capsys.readouterr().err
    assert main([*tune, "--board", "qemu-rpi4"]) == 2
    assert not (tmp_path / "db").exists()
