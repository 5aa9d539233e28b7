"""Provide `edgec board …`: where bundles are deployed to."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgec.compiler.cli.options import json_option, progress_of, quiet_option
from edgec.compiler.cli.printing import plain, print_json, print_table, size_text
from edgec.compiler.errors import BoardConfigError, UsageError

if TYPE_CHECKING:
    from edgec.compiler.boards.config import Board, Link

_Model = TypeVar("_Model")


def _link_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return ways to a board other than a direct connection."""
    for name, text in (
        ("--key", "What the board's server answers to."),
        ("--proxy", "HOST:PORT of the TVM RPC proxy that the board is behind."),
        ("--tracker", "HOST:PORT of the TVM RPC tracker that knows the board."),
    ):
        command = click.option(name, default="", metavar=text.split()[0], help=text)(command)
    return command


@click.group()
def board() -> None:
    """Boards that bundles are deployed to: real ones by name, and QEMU as qemu-TARGET."""


@board.command()
@click.argument("name")
@click.option("--target", "-t", required=True, help="Target that describes the board.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where its server listens.")
@click.option("--port", type=int, default=9090, show_default=True, help="Of its server.")
@click.option("--ssh", default="", metavar="USER@HOST", help="Tunnel to it through ssh.")
@click.option("--ssh-port", type=int, help="Of its ssh; ssh's own configuration says else.")
@_link_options
@click.option(
    "--secret", default="", metavar="FILE", help="With the secret that its server was given."
)
@click.option("--insecure", is_flag=True, help="Connect to another machine without a tunnel.")
@click.option("--emulated", is_flag=True, help="It is an emulator: its times mean nothing.")
def add(
    name: str,
    *,
    target: str,
    host: str,
    port: int,
    ssh: str,
    ssh_port: int | None,
    tracker: str,
    proxy: str,
    key: str,
    secret: str,
    insecure: bool,
    emulated: bool,
) -> None:
    """Write down a board; one behind ssh is then set up, on others the server is running."""
    from edgec.compiler.boards.config import Board, add_board, why_no_server
    from edgec.targets import load_target

    problem = why_no_server(load_target(target))
    if problem:
        raise BoardConfigError(f"board {name} of target {target}: {problem}")
    link = _registry(tracker, proxy, key, insecure)
    if link is not None and ssh:
        raise UsageError("--ssh goes to the board itself, not to a tracker or proxy")
    if ssh_port is not None and not ssh:
        raise UsageError("--ssh-port needs --ssh")
    if link is None:
        fields: dict[str, Any] = {"host": host, "insecure": insecure}
        if ssh:
            fields = {"via": "ssh", "host": ssh, "ssh_port": ssh_port}
        link = _link(**fields, port=port, key=key)
    if secret and (ssh or proxy):
        raise UsageError("--secret is for a server that you start yourself, not behind a proxy")
    if secret:
        link = link.model_copy(update={"secret": str(Path(secret).absolute())})
    add_board(_checked(Board, name=name, target=target, link=link, emulated=emulated))
    click.echo(f"{name}: {link}, target {target}")


@board.command(name="list")
@json_option
def list_boards(as_json: bool) -> None:
    """List all boards."""
    from edgec.compiler.boards.qemu import all_boards

    boards = all_boards()
    if as_json:
        print_json([item.model_dump(mode="json") for item in boards])
        return
    print_table(
        ["board", "target", "at"],
        [[item.name, item.target, _where(item)] for item in boards],
    )


@board.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show what is known of a board."""
    from edgec.compiler.boards.qemu import find_board

    found = find_board(name)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    kind = "emulated: its times mean nothing" if found.emulated else "a real machine"
    print_table(
        ["", ""],
        [["board", name], ["target", found.target], ["at", _where(found)], ["kind", kind]],
    )


@board.command()
@click.argument("name")
@click.option("--service", is_flag=True, help="Let the board's systemd start the server.")
@quiet_option
def setup(name: str, service: bool, quiet: bool) -> None:
    """Bring the server to a board over ssh and start it; nothing is installed system-wide."""
    from edgec.compiler.boards.qemu import find_board
    from edgec.compiler.boards.setup import how_to_linger, setup_board

    found = find_board(name)
    report = setup_board(found, progress_of(quiet), service)
    if report.changed or report.sent_bytes:
        click.echo(f"{name}: set up, {size_text(report.sent_bytes)} sent; it answers")
    else:
        click.echo(f"{name}: already set up; it answers")
    if report.lingers is False:
        click.echo(
            f"systemd stops it at logout, and does not start it with the board, until you type: "
            f"{how_to_linger(found)}"
        )


@board.command()
@click.argument("name")
@_link_options
@quiet_option
def start(name: str, *, tracker: str, proxy: str, key: str, quiet: bool) -> None:
    """Start a QEMU board, or the server of a board that is set up.

    The first start of a QEMU board fetches what it needs.
    """
    from edgec.compiler.boards.qemu import find_board, start_board

    register = _registry(tracker, proxy, key, insecure=False)
    found = find_board(name)
    if found.is_qemu:
        found = start_board(name, progress_of(quiet), register)
    else:
        from edgec.compiler.boards.setup import start_server

        if register is not None:
            raise UsageError("--tracker and --proxy are for QEMU boards")
        start_server(found)
    click.echo(f"{name}: running at {_where(found)}")


@board.command()
@click.argument("name")
def stop(name: str) -> None:
    """Stop a QEMU board, or the server of a board that is set up."""
    from edgec.compiler.boards.qemu import find_board, stop_board

    found = find_board(name)
    if found.is_qemu:
        stopped = stop_board(name)
    else:
        from edgec.compiler.boards.setup import stop_server

        stopped = stop_server(found)
    click.echo(f"{name}: {'stopped' if stopped else 'was not running'}")


@board.command()
@click.argument("name")
@click.option("--clean", is_flag=True, help="Remove from the board what setup put there, too.")
def remove(name: str, clean: bool) -> None:
    """Forget a board."""
    from edgec.compiler.boards.config import configured_boards, remove_board

    known = configured_boards().get(name)
    if known and clean:
        from edgec.compiler.boards.setup import clean_board

        clean_board(known)
    remove_board(name)
    click.echo(f"{name}: removed")
    if known and known.link and known.link.via == "ssh" and not clean:
        click.echo(
            "what setup put on the board stays there, in ~/.local/share/edgec; to remove that "
            f"too, add the board again and type: edgec board remove {name} --clean"
        )


@board.command()
@click.argument("name")
@json_option
def ping(name: str, as_json: bool) -> None:
    """Ask a board what it is."""
    from edgec.compiler.boards.qemu import find_board
    from edgec.compiler.boards.rpc import open_board_session

    with open_board_session(find_board(name)) as session:
        capabilities = session.capabilities()
    fields = {
        "architecture": capabilities.architecture,
        "features": sorted(capabilities.features),
        "glibc": capabilities.glibc,
        "cores": capabilities.cores,
        "memory_bytes": capabilities.memory_bytes,
        "disk_bytes": capabilities.disk_bytes,
    }
    if as_json:
        print_json({"board": name, **fields})
    else:
        click.echo(f"{name}: answers")
        print_table(["", ""], [[key, plain(value)] for key, value in fields.items()])


@board.command(
    name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("name")
@click.argument("program", type=Path)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def execute(context: click.Context, name: str, program: Path, arguments: Sequence[str]) -> None:
    """Run a PROGRAM for a QEMU board's processor here, as a bundle's own `run`."""
    from edgec.compiler.boards.qemu import execute_program

    context.exit(execute_program(name, program, arguments, progress_of(False)))


def _where(item: "Board") -> str:
    return "not running" if item.link is None else str(item.link)


def _registry(tracker: str, proxy: str, key: str, insecure: bool) -> "Link | None":
    """Return the tracker or proxy that two options name, if one does."""
    if tracker and proxy:
        raise UsageError("a board is behind a tracker or a proxy, not both")
    if not tracker and not proxy:
        return None
    host, _, port = (tracker or proxy).rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"{tracker or proxy!r} is no address; write HOST:PORT")
    via = "tracker" if tracker else "proxy"
    return _link(via=via, host=host, port=int(port), key=key, insecure=insecure)


def _link(**fields: Any) -> "Link":
    from edgec.compiler.boards.config import Link

    return _checked(Link, **fields)


def _checked(model: type[_Model], **fields: Any) -> _Model:
    from pydantic import ValidationError

    try:
        return model(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        where: Sequence[Any] = first["loc"]
        name = f"{'.'.join(map(str, where))}: " if where else ""
        raise BoardConfigError(f"{name}{first['msg'].removeprefix('Value error, ')}") from None
