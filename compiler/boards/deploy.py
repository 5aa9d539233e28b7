"""Bring a bundle to a board and prove that it runs there."""

import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from edgec.compiler.boards.capabilities import BoardCapabilities, check_bundle, check_compatible
from edgec.compiler.boards.config import Board
from edgec.compiler.boards.qemu import find_board
from edgec.compiler.boards.rpc import open_board_session, push_bundle
from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.parity.compare import ParityReport
from edgec.compiler.parity.verify_bundle import verify_bundle
from edgec.compiler.support.limits import check_threads
from edgec.compiler.support.progress import Progress, Silent

TIMED_RUNS = 10


@dataclass(frozen=True)
class DeployReport:
    """A deploy report describes what a deployment found.

    Attributes:
        model: name of the model.
        board: where the bundle is now.
        capabilities: what the board is.
        sent_bytes: 0 if the board had the model.
        parity: the parity of the bundle's own test vectors, computed on the board.
        seconds: the seconds of each timed run, on the board's clock.
    """

    model: str
    board: Board
    capabilities: BoardCapabilities
    sent_bytes: int
    parity: ParityReport
    seconds: tuple[float, ...]

    @property
    def median_seconds(self) -> float:
        """Median of the timed runs."""
        return statistics.median(self.seconds)


def deploy_bundle(
    bundle: Bundle | str | Path,
    board: Board | str,
    progress: Progress | None = None,
    threads: int = 0,
) -> DeployReport:
    """Check, send, load, verify and time.

    Args:
        bundle: the bundle or its path.
        board: the board or its name.
        progress: reports each step.
        threads: to compute on; 0 is one for each core.

    Raises:
        BundleError: the board cannot run this bundle; nothing was sent.
        BoardError: the board cannot be reached, or failed.
    """
    check_threads(threads)
    bundle = Bundle.of(bundle)
    board = find_board(board) if isinstance(board, str) else board
    progress = progress or Silent()
    check_bundle(bundle)
    with ExitStack() as stack:
        with progress.step(1, 5, "connect"):
            session = stack.enter_context(open_board_session(board))
        with progress.step(2, 5, "check"):
            capabilities = session.capabilities()
            check_compatible(bundle.manifest, capabilities)
        with progress.step(3, 5, "send"):
            name, sent = push_bundle(session, bundle)
        with progress.step(4, 5, "verify"):
            model = session.load(bundle, name, threads)
            parity = verify_bundle(bundle, session=model)
        with progress.step(5, 5, "time"):
            inputs, _ = bundle.vectors()[0]
            seconds = model.time(inputs, TIMED_RUNS)
    return DeployReport(
        bundle.manifest.model.name, board, capabilities, sent, parity, tuple(seconds)
    )
