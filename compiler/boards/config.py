"""Provide boards by name: those of the user's configuration file.

And one under QEMU for each target.

The file is `boards.json` in the user's configuration folder; it is replaced as a whole, so that
whoever reads it never sees half of it.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, Self

from platformdirs import user_config_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgec.compiler.errors import BoardConfigError, OutputError, did_you_mean
from edgec.compiler.support.files import locked, write_atomically
from edgec.targets import load_target, target_names
from edgec.targets.target import Target

LOOPBACK = ("127.0.0.1", "localhost")
QEMU_PREFIX = "qemu-"

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{0,64}$")]


class Link(BaseModel):
    """A link describes how a board's server is reached.

    Attributes:
        via: `direct`: the server listens on `host` and `port`; `tracker`, `proxy`: one of TVM's
            listens there and knows the board by its key; `ssh`: `host` is what ssh connects to,
            the server listens on `port` of its loopback interface.
        host: name or IPv4 address.
        port: TCP port.
        key: what the server answers to.
        ssh_port: where ssh connects to; None for what ssh's own configuration says.
        secret: file with the secret that the server there knows; by default one of edgec's own.
        insecure: connect to another machine without a tunnel. TVM's RPC is neither encrypted
            nor authenticated.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    via: Literal["direct", "tracker", "proxy", "ssh"] = "direct"
    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@-]*$")] = LOOPBACK[0]
    port: Annotated[int, Field(ge=1, le=65535)]
    key: Key = ""
    ssh_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    secret: str = ""
    insecure: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.via in ("tracker", "proxy") and not self.key:
            raise ValueError(f"a board behind a {self.via} needs a key")
        if self.via != "ssh" and self.host not in LOOPBACK and not self.insecure:
            raise ValueError(
                f"{self.host} is another machine, and TVM's RPC lets everybody on the way run any "
                "code; connect through ssh, or insist with --insecure"
            )
        return self

    def __str__(self) -> str:
        key = f" key {self.key}" if self.key else ""
        return f"{'' if self.via == 'direct' else f'{self.via} '}{self.host}:{self.port}{key}"


class Board(BaseModel):
    """A board describes a machine with a name.

    Attributes:
        name: what it is called.
        target: name of the target that describes it.
        link: how to reach it; None for a QEMU board that is not running.
        emulated: whether an emulator plays it: then times mean nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    target: str
    link: Link | None
    emulated: bool = False

    @property
    def is_qemu(self) -> bool:
        """Return whether edgec itself starts and stops it."""
        return self.name.startswith(QEMU_PREFIX)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    boards: dict[Name, Board] = {}


def config_file() -> Path:
    """Return where the boards of this user are written down."""
    return user_config_path("edgec") / "boards.json"


def qemu_board_names() -> list[str]:
    """Return boards that need no configuration: one for each target that QEMU can play."""
    return [
        f"{QEMU_PREFIX}{name}"
        for name in target_names()
        if (target := load_target(name)).emulator and not why_no_server(target)
    ]


def emulated_target(name: str) -> Target | None:
    """Return the target that QEMU plays under a board's name, whether or not it can be talked to.

    >>> emulated_target("qemu-riscv64").emulator.program
    'qemu-riscv64'
    >>> emulated_target("riscv64"), emulated_target("qemu-x86-64-v3")
    (None, None)
    """
    target = name.removeprefix(QEMU_PREFIX)
    if target == name or target not in target_names():
        return None
    found = load_target(target)
    return found if found.emulator else None


def why_no_server(target: Target) -> str:
    """Return why nothing of this target can be a board; empty if it can.

    >>> why_no_server(load_target("rpi4"))
    ''
    >>> why_no_server(load_target("riscv64")).partition(";")[0]
    'TVM offers no runtime for riscv64, so edgec cannot talk to such a board'
    """
    if target.instruction_set.has_tvm_runtime:
        return ""
    return (
        f"TVM offers no runtime for {target.architecture}, so edgec cannot talk to such a board; "
        "edgec compile --runner makes a program that runs there by itself"
    )


def configured_boards() -> Mapping[str, Board]:
    """Return boards of the configuration file by name.

    Raises:
        BoardConfigError: the file is damaged.
    """
    return _read(config_file()).boards


def add_board(board: Board) -> None:
    """Write a board down.

    Raises:
        BoardConfigError: the name is taken.
        OutputError: the file cannot be written.
    """
    if board.name.startswith(QEMU_PREFIX):
        raise BoardConfigError(
            f"board name {board.name}: names that begin with {QEMU_PREFIX} are edgec's own; "
            "choose another"
        )
    with _changing() as boards:
        if board.name in boards:
            raise BoardConfigError(
                f"board {board.name} exists; remove it first: edgec board remove {board.name}"
            )
        boards[board.name] = board


def remove_board(name: str) -> None:
    """Forget a board of the configuration file.

    Raises:
        BoardConfigError: there is none of this name.
        OutputError: the file cannot be written.
    """
    with _changing() as boards:
        if name not in boards:
            raise unknown_board(name, boards)
        del boards[name]


def unknown_board(name: str, known: Mapping[str, Board]) -> BoardConfigError:
    """Return the error for a name that no board has."""
    target = emulated_target(name)
    if target is not None:
        return BoardConfigError(
            f"board {name}: {why_no_server(target)}, and here by edgec board exec {name}"
        )
    names = [*known, *qemu_board_names()]
    return BoardConfigError(
        f"board {name!r} is unknown{did_you_mean(name, names)}; edgec board list shows all"
    )


def _read(path: Path) -> _File:
    try:
        return _File.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return _File()
    except OSError as error:
        raise BoardConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BoardConfigError(
            f"{path} is damaged{f' at {where}' if where else ''}: {first['msg']}; repair or "
            "delete it"
        ) from None


@contextmanager
def _changing() -> Iterator[dict[str, Board]]:
    """Provide the boards, to change; they are written when the block ends well."""
    path = config_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            file = _read(path)
            yield file.boards
            write_atomically(path, json.dumps(file.model_dump(mode="json"), indent=1) + "\n")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None
