"""Describe how fast a bundle is on a board.

Times of a real one, instructions where QEMU plays it.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from edgec.compiler.bench.compare import Latency, StepTime, step_times
from edgec.compiler.boards.capabilities import check_bundle, check_compatible, check_target
from edgec.compiler.boards.config import Board
from edgec.compiler.boards.instructions import InstructionCount, count_instructions
from edgec.compiler.boards.rpc import open_board_session, push_bundle
from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.errors import BundleError
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.runtime.programs import Programs
from edgec.compiler.support.progress import Progress
from edgec.targets.target import Target

# Runs in one call of the board: enough that the network does not matter.
BURST_SECONDS = 0.5
PROFILED_RUNS = 10


@dataclass(frozen=True)
class BoardTimes:
    """Board times describe what was measured on a board.

    Attributes:
        threads: the threads that computed.
        latency: times of single runs, on the board's clock.
        steps: profile, in the order of execution; empty if it was not asked for, and for TVM's
            virtual machine.
    """

    threads: int
    latency: Latency
    steps: tuple[StepTime, ...]


def time_on_board(
    bundle: Bundle,
    board: Board,
    inputs: Tensors,
    *,
    threads: int = 1,
    seconds: float = 3.0,
    profile: bool = False,
) -> BoardTimes:
    """Measure on a board, by its own clock.

    Args:
        bundle: what to measure; it is sent if it is not there.
        board: where.
        inputs: input tensors.
        threads: to compute on; 0 is one for each core.
        seconds: measuring time.
        profile: also measure each kernel.

    Raises:
        BundleError: the board cannot run this bundle; nothing was sent.
        BoardError: the board cannot be reached, or failed.
    """
    check_bundle(bundle)
    with open_board_session(board) as session:
        capabilities = session.capabilities()
        check_compatible(bundle.manifest, capabilities)
        name, _ = push_bundle(session, bundle)
        model = session.load(bundle, name, threads)
        model.time(inputs, 1)
        once = model.time(inputs, 1)[0]
        burst = max(1, min(1000, int(BURST_SECONDS / max(once, 1e-6))))
        rounds: list[Sequence[float]] = []
        while not rounds or sum(map(sum, rounds)) < seconds:
            rounds.append(model.time(inputs, burst))
        actual = threads or capabilities.cores
        steps: tuple[StepTime, ...] = ()
        if profile:
            samples = [model.profile(inputs) for _ in range(PROFILED_RUNS)]
            peak = bundle.manifest.target.peak_gflops * actual
            steps = step_times(model.steps(inputs), samples, peak)
    latency = Latency(
        str(bundle.path),
        tuple(time * 1e3 for times in rounds for time in times),
        tuple(statistics.median(times) * 1e3 for times in rounds),
    )
    return BoardTimes(actual, latency, steps)


def count_on_board(
    bundle: Bundle, target: Target, inputs: Tensors, progress: Progress
) -> InstructionCount:
    """Return count instructions on a QEMU board's processor; the board need not be running.

    Args:
        bundle: what to measure.
        target: what QEMU plays; see `config.emulated_target`.
        inputs: input tensors.
        progress: reports what is set up the first time.

    Raises:
        BundleError: the board cannot run this bundle.
        ToolchainError: QEMU cannot be fetched, or has no plugins.
    """
    manifest = bundle.manifest
    if manifest.execution.executor != "static":
        raise BundleError(
            f"{bundle.path}: its shapes depend on data, so TVM's virtual machine runs it; "
            "instructions are counted of static models only"
        )
    check_target(manifest, target)
    program, checked = Programs(manifest.signatures).fitting(inputs)
    return count_instructions(bundle.library, target, list(checked.values()), progress, program)
