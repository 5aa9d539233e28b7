"""Provide `edgec update …`: keep the model in a folder of this machine up to date."""

from collections.abc import Sequence
from pathlib import Path

import click

from edgec.compiler.cli.options import as_path, json_option, quiet_option
from edgec.compiler.cli.printing import print_json, print_table
from edgec.compiler.errors import BadInputError, EdgecError, SelfTestError


@click.group()
def update() -> None:
    """Updates of the model in a folder: applications open FOLDER/current."""


_folder = click.argument("folder", type=as_path)


@update.command()
@_folder
@click.option(
    "--repository", "mirrors", multiple=True, metavar="URL|FOLDER", help="May be given again."
)
@click.option("--channel", required=True, help="Whose releases.")
@click.option(
    "--root",
    type=as_path,
    required=True,
    metavar="FILE",
    help="The repository's 1.root.json, got from whom you trust.",
)
@click.option("--board", help="This board's name.  [default: the host's]")
@click.option("--coordinator", metavar="URL", help="Is asked before an installation.")
@click.option("--coordinator-key", metavar="FILE", help="Holds this board's key for it.")
@click.option("--after-switch", metavar="COMMAND", help="Run then; if it fails, the old one runs.")
@click.option("--test-seconds", type=float, default=300.0, show_default=True)
def init(
    folder: Path,
    *,
    mirrors: Sequence[str],
    channel: str,
    root: Path,
    board: str | None,
    coordinator: str | None,
    coordinator_key: str | None,
    after_switch: str | None,
    test_seconds: float,
) -> None:
    """Set a FOLDER up for the model of a channel."""
    import platform

    from edgec.compiler.update.agent import AgentSettings, set_up

    try:
        data = root.read_bytes()
    except OSError as error:
        raise BadInputError(f"root {root} cannot be read: {error.strerror}") from None
    settings = AgentSettings(
        channel=channel,
        board=board or platform.node(),
        mirrors=[text if "://" in text else str(Path(text).absolute()) for text in mirrors],
        coordinator=coordinator,
        coordinator_key=str(Path(coordinator_key).absolute()) if coordinator_key else None,
        after_switch=after_switch,
        test_seconds=test_seconds,
    )
    set_up(folder, data, settings)
    click.echo(f"{folder}: follows {channel} as board {settings.board}")


@update.command()
@_folder
@click.option("--again", is_flag=True, help="Try releases that failed before.")
@quiet_option
def run(folder: Path, *, again: bool, quiet: bool) -> None:
    """Look for a release once: install, test, switch, or go back."""
    from edgec.compiler.update.agent import Agent

    agent = Agent(folder, say=_say_nothing if quiet else _say)
    if again:
        agent.forget_failures()
    outcome = agent.update()
    click.echo(f"{folder}: {outcome.message}")
    if outcome.what == "failed":
        raise SelfTestError(f"release {outcome.number} does not run here")


@update.command()
@_folder
@click.option("--every", type=float, default=600.0, show_default=True, metavar="SECONDS")
def agent(folder: Path, *, every: float) -> None:
    """Look for releases again and again; a service manager starts this."""
    import random
    import time

    from edgec.compiler.update.agent import Agent

    while True:
        try:
            outcome = Agent(folder, say=_say).update()
            click.echo(f"{folder}: {outcome.message}", err=True)
        except EdgecError as error:
            click.echo(f"{folder}: {error}", err=True)
        # Boards that started together do not come together.
        time.sleep(every * random.uniform(0.75, 1.25))


@update.command()
@_folder
def back(folder: Path) -> None:
    """Have the old release run again."""
    from edgec.compiler.update.agent import Agent

    click.echo(f"{folder}: {Agent(folder, say=_say).go_back().message}")


@update.command()
@_folder
@json_option
def show(folder: Path, *, as_json: bool) -> None:
    """Show which releases are in the slots of a FOLDER."""
    from edgec.compiler.update.agent import Agent
    from edgec.compiler.update.slots import SLOTS

    slots = Agent(folder).slots
    state = slots.read_state()
    releases = {slot: slots.release(slot) for slot in SLOTS}
    numbers = {slot: found.number if found else None for slot, found in releases.items()}
    active = slots.active()
    if as_json:
        print_json({"active": active, "slots": numbers, "state": state.model_dump()})
        return
    rows = [
        (slot, str(number or "empty"), "runs" if slot == active else "")
        for slot, number in numbers.items()
    ]
    print_table(("slot", "release", ""), rows)
    for number, reason in state.failed.items():
        click.echo(f"release {number} failed: {reason}")


@update.command()
@_folder
@click.option("--every", type=float, default=600.0, show_default=True, metavar="SECONDS")
@click.option("--user", metavar="NAME", help="Runs it, as a unit of the system; else the user's.")
def service(folder: Path, *, every: float, user: str | None) -> None:
    """Print a systemd unit that runs the agent of a FOLDER."""
    from edgec.compiler.update.service import service_unit

    click.echo(service_unit(folder, every, user), nl=False)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _say_nothing(_text: str) -> None:
    pass
