"""A stage on a board that has a name, behind a real SSH server on aarch64 under QEMU."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.far_board import far_board
from support.split_model import FEATURES, write_plan
from support.ssh_board import SshBoard

from edgec.compiler.boards.config import Board, Link, add_board
from edgec.compiler.cli.main import main
from edgec.compiler.distribute.plan_session import PlanSession

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="needs the OpenSSH client")

PATIENT = 20.0  # seconds; the machine of the tests may be busy
INPUTS = {name: np.ones((1, FEATURES), np.float32) for name in ("x", "y")}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a plan whose stage a is for a Raspberry Pi 4."""
    return write_plan(tmp_path_factory.mktemp("plans") / "mixed.plan", "a=rpi4,b=native")


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshBoard]:
    """Return what the boards `pi`, and `desk`, which is no Raspberry Pi, lead to."""
    with far_board(tmp_path_factory.mktemp("far")) as side:
        link = Link(via="ssh", host="pi", port=9090)
        add_board(Board(name="pi", target="rpi4", link=link))
        add_board(Board(name="desk", target="x86-64-v3", link=link))
        add_board(Board(name="near", target="rpi4", link=Link(port=9090)))
        yield side


def eventually(test: Callable[[], bool]) -> bool:
    until = time.monotonic() + PATIENT
    while not test() and time.monotonic() < until:
        time.sleep(0.02)
    return test()


def test_a_stage_is_sent_started_and_ended_on_a_board(
    mixed: Path, far: SshBoard, capsys: pytest.CaptureFixture[str]
) -> None:
    with PlanSession(mixed, {"a": "board:pi"}, timeout=PATIENT) as session:
        assert session.whole is not None
        np.testing.assert_allclose(
            session.run(INPUTS)["z"], session.whole.run(INPUTS)["z"], rtol=1e-4, atol=1e-5
        )
        assert session.answers == {"plan": 1}
        (folder,) = (far.home / ".local/share/edgec/stages").iterdir()
        sent = folder.stat().st_ino
        assert far.processes("--serve")
        assert not [path for path in folder.rglob("*") if "key" in path.name]
        # However the connection ends, so does the stage; then another is started.
        os.kill(session.pids["a.edgec"], signal.SIGKILL)
        assert eventually(lambda: not far.processes("--serve"))
        session.run(INPUTS)
        assert "device a" in session.losses[0]
        assert eventually(lambda: session.linked is not None)
        session.run(INPUTS)
        assert session.answers == {"plan": 2, "whole": 1}
    assert eventually(lambda: not far.processes("--serve"))
    assert folder.stat().st_ino == sent, "it was sent once"
    for board, message in (
        ("desk", "its code is for aarch64, the board is x86_64"),
        ("near", "board near is not reached through ssh; start its stage there"),
        ("pie", "board 'pie' is unknown; did you mean pi?"),
    ):
        assert main(["run", "--plan", str(mixed), "--device", f"a=board:{board}"]) != 0
        assert message in capsys.readouterr().err
