"""Run, check and measure a bundle here or on a board, by the board's name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.errors import UsageError
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.runtime.inputs import generate_inputs
from edgec.compiler.support.limits import check_positive, check_seed, check_threads
from edgec.compiler.support.progress import Progress, Silent

# What talks to boards is imported by the functions that do: a bundle is run here without TVM.
if TYPE_CHECKING:
    from edgec.compiler.boards.instructions import InstructionCount
    from edgec.compiler.boards.remote_timing import BoardTimes
    from edgec.compiler.parity.compare import ParityReport


class _Runs(Protocol):
    def run(self, inputs: Tensors, program: str | None = None) -> Tensors: ...

    def reset(self) -> None: ...


@contextmanager
def model_on(bundle: Bundle, board: str | None, threads: int = 0) -> Iterator[_Runs]:
    """Provide a bundle's model, loaded here or on the board of this name."""
    check_threads(threads)
    if board is None:
        yield bundle.open(threads)
        return
    from edgec.compiler.boards.capabilities import check_bundle, check_compatible
    from edgec.compiler.boards.qemu import find_board
    from edgec.compiler.boards.rpc import open_board_session, push_bundle

    check_bundle(bundle)
    with open_board_session(find_board(board)) as session:
        check_compatible(bundle.manifest, session.capabilities())
        file, _ = push_bundle(session, bundle)
        yield session.load(bundle, file, threads)


def run_bundle(
    bundle: Bundle | str | Path,
    inputs: Tensors | None = None,
    *,
    board: str | None = None,
    seed: int = 0,
    threads: int = 0,
    program: str | None = None,
    pad: bool = False,
) -> Tensors:
    """Run a bundle once, here or on a board.

    Args:
        bundle: the bundle or its path.
        inputs: by name; generated ones otherwise.
        board: name of the board; None is this machine.
        seed: the seed of generated inputs.
        threads: to compute on; 0 is one for each core.
        program: the program whose inputs are generated; None is the first.
        pad: see `Bundle.run`.

    Returns:
        Outputs by name.

    Raises:
        UsageError: there is no such program, or a board is to pad.
        TensorInputError: the inputs do not fit.
        BundleError: the bundle is for another machine.
        BoardError: the board cannot be reached, or failed.
    """
    bundle = Bundle.of(bundle)
    if inputs is None:
        inputs = example_inputs(bundle, seed, program)
    if pad:
        if board is not None:
            raise UsageError("--pad is for runs on this machine, not on a board")
        return bundle.run(inputs, threads, pad=True)
    with model_on(bundle, board, threads) as model:
        return model.run(inputs)


def verify_on(
    board: str | None,
    bundle: Bundle | str | Path,
    *,
    model: str | Path | None = None,
    seeds: tuple[int, ...] = (1,),
    inputs: Tensors | None = None,
    expected: Tensors | None = None,
) -> "ParityReport":
    """Verify a bundle by what a board computes; see `verify_bundle`.

    Args:
        board: name of the board; None is this machine.
        bundle: the bundle or its path.
        model: the ONNX file, to compare on fresh inputs too.
        seeds: one set of fresh inputs each.
        inputs: inputs to compare on in place of fresh ones.
        expected: what they must give; None asks the model.
    """
    from edgec.compiler.parity.verify_bundle import verify_bundle

    bundle = Bundle.of(bundle)
    for seed in seeds:
        check_seed(seed)
    with model_on(bundle, board) as session:
        return verify_bundle(
            bundle, model=model, seeds=seeds, inputs=inputs, expected=expected, session=session
        )


def bench_on(
    board: str,
    bundle: Bundle | str | Path,
    inputs: Tensors | None = None,
    *,
    program: str | None = None,
    threads: int = 1,
    seconds: float = 3.0,
    profile: bool = False,
    progress: Progress | None = None,
) -> "BoardTimes | InstructionCount":
    """Measure a bundle on a board: times of a real one, instructions of one that QEMU plays.

    Args:
        board: its name.
        bundle: the bundle or its path.
        inputs: by name; generated ones otherwise.
        program: the program whose inputs are generated; None is the first.
        threads: to compute on; 0 is one for each core.
        seconds: measuring time.
        profile: measure each kernel as well.
        progress: reports what is set up for QEMU the first time.

    Raises:
        UsageError: more than one thread under QEMU, which counts on one.
        BundleError: the board cannot run this bundle.
        BoardError: the board cannot be reached, or failed.
    """
    from edgec.compiler.boards.config import emulated_target
    from edgec.compiler.boards.qemu import find_board
    from edgec.compiler.boards.remote_timing import count_on_board, time_on_board

    check_threads(threads)
    check_positive("--seconds", seconds)
    bundle = Bundle.of(bundle)
    if inputs is None:
        inputs = example_inputs(bundle, program=program)
    target = emulated_target(board)
    if target is not None:
        if threads != 1:
            raise UsageError("under QEMU instructions are counted, on one thread: leave --threads")
        return count_on_board(bundle, target, inputs, progress or Silent())
    return time_on_board(
        bundle, find_board(board), inputs, threads=threads, seconds=seconds, profile=profile
    )


def example_inputs(bundle: Bundle, seed: int = 0, program: str | None = None) -> Tensors:
    """Return generated inputs that a program of a bundle accepts, by default the first."""
    manifest = bundle.manifest
    specs = manifest.signature_of(program).inputs
    return generate_inputs(specs, seed, manifest.settings.index_bounds)
