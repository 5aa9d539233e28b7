"""Check a plan's stages for other instruction sets under QEMU, by the chain of its bundles.

What a build for this machine showed of the graph is shown of the code itself.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from edgec.compiler.boards.config import QEMU_PREFIX, qemu_board_names
from edgec.compiler.boards.qemu import find_board, start_board, stop_board
from edgec.compiler.boards.run import model_on
from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.errors import BoardError, ParityError, ToolchainError
from edgec.compiler.parity.compare import compare, worst_of
from edgec.compiler.parity.expected import Expected
from edgec.compiler.parity.vectors import Runs
from edgec.compiler.runtime.session import why_not_here
from edgec.compiler.split.compiled_stage import run_chain
from edgec.compiler.split.plan import Plan
from edgec.compiler.support.progress import Progress


def check_emulated(
    folder: Path, plan: Plan, expected: Mapping[str, Expected], progress: Progress
) -> None:
    """Run the chain of a plan's bundles, those for other machines under QEMU.

    Nothing is done if all run here; where QEMU cannot be had, the user is told.

    Args:
        folder: holds the bundles.
        plan: what joins them.
        expected: what each program must compute, by its name.
        progress: reports what is set up the first time.

    Raises:
        ParityError: the outputs are out of tolerance.
    """
    bundles = {name: Bundle.load(folder / name) for name in plan.bundles}
    foreign = {
        bundle.manifest.target.name
        for bundle in bundles.values()
        if why_not_here(bundle.manifest.target)
    }
    without = sorted(name for name in foreign if _board(name) not in qemu_board_names())
    if not foreign or without:
        if without:
            progress.warn(f"no QEMU plays {', '.join(without)}: a build for this machine ran")
        return
    try:
        with ExitStack() as stack:
            for name in sorted(foreign):
                stack.enter_context(_running(_board(name), progress))
            _check(stack, plan, bundles, expected)
    except (ToolchainError, BoardError) as error:
        progress.warn(f"the stages were not run under QEMU, a build for this machine ran: {error}")


def _check(
    stack: ExitStack, plan: Plan, bundles: Mapping[str, Bundle], expected: Mapping[str, Expected]
) -> None:
    models: dict[str, Runs] = {}
    for name, bundle in bundles.items():
        target = bundle.manifest.target
        board = _board(target.name) if why_not_here(target) else None
        models[name] = stack.enter_context(model_on(bundle, board, 1))
    for program in plan.programs:
        must = expected[program.name]
        for stage in program.stages:
            models[stage.bundle].reset()
        chain = [
            (models[s.bundle], bundles[s.bundle].manifest.signatures[s.program])
            for s in program.stages
        ]
        runs = run_chain(chain, [step.inputs for step in must.called_steps])
        reports = []
        for step, run in zip(must.called_steps, runs, strict=True):
            found = {name: array for part in run for name, array in part.outputs.items()}
            actual = {name: found[name] for name in step.outputs}
            reports.append(compare(step.outputs, actual, must.tolerance))
        report = worst_of(reports)
        if not report.passed:
            raise ParityError(
                f"the stages under QEMU do not compute the model: {report.problems()}"
            )


def _board(target: str) -> str:
    return f"{QEMU_PREFIX}{target}"


@contextmanager
def _running(board: str, progress: Progress) -> Iterator[None]:
    """Have a QEMU board run; one that ran before runs on."""
    before = find_board(board).link is not None
    start_board(board, progress)
    try:
        yield
    finally:
        if not before:
            stop_board(board)
