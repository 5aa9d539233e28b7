"""Provide tune a model in one call."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import onnx

from edgec.compiler.boards.config import Board
from edgec.compiler.boards.qemu import find_board
from edgec.compiler.boards.relay import count_boards
from edgec.compiler.boards.rpc import open_board_session
from edgec.compiler.errors import BoardError, InterruptedRunError, OutputError, UsageError
from edgec.compiler.jobs.pool import JobOptions, open_pool
from edgec.compiler.lowering.tuning_records import Database
from edgec.compiler.options import CompileOptions
from edgec.compiler.runtime.session import why_not_here
from edgec.compiler.support.files import check_output_file
from edgec.compiler.support.html_report import Subject
from edgec.compiler.support.progress import Progress
from edgec.compiler.tune.devices import BoardDevice, CountingDevice, Device, Host
from edgec.compiler.tune.events import LogFile, Several
from edgec.compiler.tune.options import TuneOptions
from edgec.compiler.tune.report_data import TuneReport, TuningObserver
from edgec.compiler.tune.rounds import KernelBuilder
from edgec.compiler.tune.session import Tuner
from edgec.compiler.tune.tasks import Task, plan_tuning, select_tasks
from edgec.compiler.tune.tuning_report import Conditions, write_tuning_report
from edgec.targets import Target, load_target

_SCRATCH = "edgec-tune-"


def tuning_tasks(
    model: str | Path | onnx.ModelProto,
    target: str | Path | Target = "native",
    options: CompileOptions | None = None,
    tasks: str = "",
) -> tuple[Task, ...]:
    """List the kernels of a model that there is a choice for, the largest first.

    Args:
        model: the ONNX file, or what was read from one.
        target: a target, its name, or the path of a target file.
        options: what shapes the model: shapes, frozen inputs, compression and quantization.
        tasks: which of them; see `TuneOptions`.
    """
    target = target if isinstance(target, Target) else load_target(target)
    return select_tasks(plan_tuning(model, target, options or CompileOptions()).tasks, tasks)


def tune_model(
    model: str | Path | onnx.ModelProto,
    target: str | Path | Target,
    database: str | Path,
    options: TuneOptions,
    compile_options: CompileOptions | None = None,
    *,
    watch: Callable[[Tuner], TuningObserver] | None = None,
    progress: Progress | None = None,
) -> TuneReport:
    """Search for the fastest kernels of a model on a target.

    Everything measured goes to the database at once; the same call goes on after a stop.

    Args:
        model: the ONNX file, or what was read from one.
        target: a target, its name, or the path of a target file.
        database: file of records; read, and added to.
        options: how long, where and how to search; `seconds` or `trials` must be given.
        compile_options: what shapes the model: shapes, frozen inputs, compression and quantization.
        watch: makes the observer that is notified of every event.
        progress: reports what takes long before the search: calibration and rounding.

    Raises:
        UsageError: the settings contradict each other or the target.
        BoardError: no board answers.
        ClusterError: the cluster cannot be reached.
        InterruptedRunError: a signal came; what was measured is in the database.
        EdgecError: see `compile_model`.
    """
    if options.seconds is None and options.trials is None:
        raise UsageError("say how long to search: --time 8h or --trials 2000")
    database = Path(database)
    target = target if isinstance(target, Target) else load_target(target)
    Database.read(database, missing_ok=True)
    check_output_file(database, make_folders=True)
    if options.report is not None:
        check_output_file(options.report, make_folders=True)
    boards = _boards(options, target)
    compile_options = compile_options or CompileOptions(seed=options.seed)
    plan = plan_tuning(model, target, compile_options, progress)
    chosen = select_tasks(plan.tasks, options.tasks)
    _check_some_answer(boards)
    slots: list[Device] = []

    def devices(kernels: KernelBuilder) -> Sequence[Device]:
        slots.extend(_devices(boards, target, options.threads, kernels))
        return slots

    observers = Several()
    with _scratch_folder() as folder, ExitStack() as stack:
        elsewhere = None
        if options.cluster:
            pool = stack.enter_context(open_pool(JobOptions(cluster=options.cluster)))
            elsewhere = pool.executor()
        tuner = Tuner(plan, chosen, target, database, options, folder, observers, elsewhere)
        if options.log is not None:
            observers.observers.append(stack.enter_context(LogFile(options.log)))
        if watch is not None:
            observers.observers.append(watch(tuner))
        try:
            result = tuner.run(devices)
        except KeyboardInterrupt:
            raise InterruptedRunError(
                f"interrupted; {tuner.measured} trials of this run are in {database}, the "
                "same command goes on from there"
            ) from None
    if options.report is not None:
        first = slots[0]
        name = model.graph.name if isinstance(model, onnx.ModelProto) else Path(model).name
        write_tuning_report(
            options.report,
            result,
            Subject(name, target.name),
            Conditions(
                machine=first.machine,
                threads=first.threads,
                peak_gflops=target.peak_gflops * first.threads,
                emulated=first.emulated,
            ),
        )
    return result


def _boards(options: TuneOptions, target: Target) -> list[Board]:
    """Return the boards to measure on; none is this machine."""
    reason = why_not_here(target)
    if reason and not options.boards:
        raise UsageError(
            f"target {target.name}: {reason}, so there is nothing to measure on; name a board with "
            "--board (edgec board list)"
        )
    boards = [find_board(name) for name in options.boards]
    for board in boards:
        if load_target(board.target).architecture != target.architecture:
            raise UsageError(f"board {board.name} is for {board.target}, not for {target.name}")
    return boards


def _devices(
    boards: Sequence[Board], target: Target, threads: int, kernels: KernelBuilder
) -> Iterator[Device]:
    if not boards:
        yield Host(threads, kernels)
    for board in boards:
        if board.is_qemu:
            yield CountingDevice(board, target)
            continue
        count = count_boards(board)
        numbers = range(1, count + 1) if count > 1 else (0,)
        yield from (BoardDevice(board, threads or 1, number) for number in numbers)


def _check_some_answer(boards: Sequence[Board]) -> None:
    """Fail at once where no board is there; one that is away may come back later."""
    problems: list[BoardError] = []
    for board in boards:
        try:
            with open_board_session(board):
                pass
        except BoardError as error:
            problems.append(error)
    if problems and len(problems) == len(boards):
        raise problems[0]


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """Provide a temporary folder; those of runs that were killed are removed."""
    parent = Path(tempfile.gettempdir())
    for old in parent.glob(f"{_SCRATCH}*"):
        pid = old.name.removeprefix(_SCRATCH).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(old, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f"{_SCRATCH}{os.getpid()}-") as name:
            yield Path(name)
    except OSError as error:
        raise OutputError(f"cannot write to {parent}: {error.strerror or error}") from None
