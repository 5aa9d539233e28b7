"""Bring a bundle to a board and prove that it runs there."""

import statistics
from contextlib import ExitStack
from dataclasses import dataclass

from edgec.compiler.boards.capabilities import BoardFacts, check_bundle, check_compatible
from edgec.compiler.boards.config import Board
from edgec.compiler.boards.rpc import open_session, push_bundle
from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.parity.compare import ParityReport
from edgec.compiler.parity.verify_bundle import verify_bundle
from edgec.compiler.support.progress import Progress

TIMED_RUNS = 10


@dataclass(frozen=True)
class DeployReport:
    """What a deployment found.

    Attributes:
        board: where the bundle is now.
        facts: what the board is.
        sent_bytes: 0 if the board had the model.
        parity: of the bundle's own test vectors, computed on the board.
        seconds: of each timed run, on the board's clock.
    """

    board: Board
    facts: BoardFacts
    sent_bytes: int
    parity: ParityReport
    seconds: tuple[float, ...]

    @property
    def median_seconds(self) -> float:
        """Median of the timed runs."""
        return statistics.median(self.seconds)


def deploy_bundle(
    bundle: Bundle, board: Board, progress: Progress, threads: int = 0
) -> DeployReport:
    """Check, send, load, verify and time.

    Raises:
        BundleError: the board cannot run this bundle; nothing was sent.
        BoardError: the board cannot be reached, or failed.
    """
    check_bundle(bundle)
    with ExitStack() as stack:
        with progress.step(1, 5, "connect"):
            session = stack.enter_context(open_session(board))
        with progress.step(2, 5, "check"):
            facts = session.facts()
            check_compatible(bundle.manifest, facts)
        with progress.step(3, 5, "send"):
            name, sent = push_bundle(session, bundle)
        with progress.step(4, 5, "verify"):
            model = session.load(bundle, name, threads)
            parity = verify_bundle(bundle, run=model.run)
        with progress.step(5, 5, "time"):
            inputs, _ = bundle.vectors()[0]
            seconds = model.time(inputs, TIMED_RUNS)
    return DeployReport(board, facts, sent, parity, tuple(seconds))
