"""The board behind an SSH server, for as long as some tests need it."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from platformdirs import user_cache_path
from support.ssh_board import SshBoard

from edgec.compiler.boards.artifacts import qemu_artifacts
from edgec.compiler.support.progress import Silent
from edgec.targets import load_target


@contextlib.contextmanager
def far_board(folder: Path) -> Iterator[SshBoard]:
    """Provide a board that `ssh pi` leads to, and a configuration of edgec that knows none."""
    command = qemu_artifacts(load_target("rpi4"), Silent()).emulation.command
    first, *others = command[: command.index("-cpu")]
    # Where proot shows this machine's files to the emulator.
    emulator = " ".join([first, *(re.sub("(^|:)/", r"\1/host-rootfs/", word) for word in others)])
    board = SshBoard(folder, emulator, user_cache_path("edgec") / "tests")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(board.commands), prepend=os.pathsep)
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        yield board
    board.stop()
