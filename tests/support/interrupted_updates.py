"""Updates that are killed, or whose link is cut, at a chosen point; and what they left.

The process that imports this forks: it has to have one thread.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from support.releases import QUICK

from edgec.compiler import Bundle
from edgec.compiler.errors import EdgecError, RepositoryError
from edgec.compiler.parity.compare import worst_of
from edgec.compiler.parity.vectors import compare_vectors
from edgec.compiler.update.agent import Agent, Outcome
from edgec.compiler.update.install import build_bundle
from edgec.compiler.update.release import Release

# Calls of the system, by the names of the functions that make them: an update is killed before one.
CALLS = frozenset(
    """chmod close flock flush fork_exec fsync mkdir open read readlink rename replace rmdir seek
    symlink truncate unlink write""".split()  # noqa: SIM905 - a list is longer
)


class InPlaceAgent(Agent):
    """The negative control: an agent that writes over the model that runs."""

    def _install(self, release: Release) -> None:
        active = self.slots.active()
        assert active is not None
        build_bundle(release, self.slots.bundle(active), self.client.chunk)


def in_child(call: Callable[[], None]) -> int:
    """Return how a call in a forked process ended: 0, 1 for an error, below 0 for a signal."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            call()
            code = 0
        except EdgecError as error:
            print(error, file=sys.stderr)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def count_calls(update: Callable[[], object]) -> int:
    """Return how many points there are to kill an update at, which is carried out."""
    counted = 0

    def count(_frame: FrameType, event: str, function: Any) -> None:
        nonlocal counted
        counted += event == "c_call" and function.__name__ in CALLS

    sys.setprofile(count)
    try:
        update()
    finally:
        sys.setprofile(None)
    return counted


def kill_at(point: int, update: Callable[[], object]) -> bool:
    """Kill an update with signal 9 before its system call of this number; return whether it was."""

    def run() -> None:
        left = point

        def count(_frame: FrameType, event: str, function: Any) -> None:
            nonlocal left
            if event == "c_call" and function.__name__ in CALLS:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        update()

    return in_child(run) == -signal.SIGKILL


def cut_at(byte: int, agent: Agent) -> Outcome | None:
    """Update over a link that ends after so many bytes; None if it did not get that far."""
    fetcher = agent.client._fetcher
    fetch = fetcher._fetch

    def cut(url: str) -> Any:
        for piece in fetch(url):
            if fetcher.received_bytes > byte:
                raise RepositoryError("the link was cut")
            yield piece

    fetcher._fetch = cut  # type: ignore[method-assign]
    try:
        return agent.update()
    except EdgecError:
        return None


def works(folder: Path) -> int | None:
    """Return the release that runs in a folder; None if nothing does."""

    def run() -> None:
        bundle = Bundle.load(folder / "current")
        worst_of(compare_vectors(bundle, bundle.open(1))).check("of the current slot")

    agent = Agent(folder)
    release = agent.slots.release(agent.slots.active())
    return release.number if in_child(run) == 0 and release else None


def measure(folder: Path, kills: int, cuts: int) -> dict[str, int]:
    """Interrupt updates of a board at points spread over all, and count what is left.

    Args:
        folder: of a board that can update from release 1 to release 2; it is copied.
        kills: how often the process is killed.
        cuts: how often the link is cut.

    Returns:
        `broken`: interrupted updates that left no model that works; `unfinished`: those after
        which another update did not install release 2; `in_place_broken`: models that an agent
        without slots leaves broken at the same points.
    """
    with tempfile.TemporaryDirectory() as scratch:
        board = Path(scratch) / "board"

        def fresh(kind: type[Agent] = Agent) -> Agent:
            shutil.rmtree(board, ignore_errors=True)
            shutil.copytree(folder, board, symlinks=True)
            return kind(board, QUICK)

        agent = fresh()
        points = count_calls(agent.update)
        received = agent.client.received_bytes
        assert works(board) == 2
        found = dict.fromkeys(
            ("points", "bytes", "kills", "killed", "cuts", "broken", "unfinished"), 0
        )
        found |= {"points": points, "bytes": received, "kills": kills, "cuts": cuts}

        def judge() -> None:
            found["broken"] += works(board) not in (1, 2)
            in_child(lambda: check(Agent(board, QUICK).update()))
            found["unfinished"] += works(board) != 2

        for number in range(kills):
            agent = fresh()
            found["killed"] += kill_at(spread(number, kills, points), agent.update)
            judge()
        for number in range(cuts):
            assert cut_at(spread(number, cuts, received), fresh()) is None
            judge()
        found["in_place_broken"] = 0
        for number in range(kills):
            kill_at(spread(number, kills, points), fresh(InPlaceAgent).update)
            found["in_place_broken"] += works(board) is None
        for byte in (*(spread(number, cuts, received) for number in range(cuts)), received - 1):
            cut_at(byte, fresh(InPlaceAgent))
            found["in_place_broken"] += works(board) is None
        return found


def spread(number: int, count: int, points: int) -> int:
    """Return the number-th of some points that are spread evenly."""
    return (2 * number + 1) * points // (2 * count)


def check(outcome: Outcome) -> None:
    """Make sure that a release was installed, or was already."""
    assert outcome.what in ("installed", "unchanged"), outcome


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
