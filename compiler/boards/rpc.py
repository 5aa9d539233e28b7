"""Provide a session on a board over TVM's RPC, in which every step has a time limit."""

import gc
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from pydantic import ValidationError
from tvm import relax, rpc

from edgec.compiler.boards.capabilities import BoardCapabilities
from edgec.compiler.boards.config import LOOPBACK, Board
from edgec.compiler.boards.relay import Relay, open_relay
from edgec.compiler.boards.ssh import NOT_LISTENING
from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.bundle.manifest import LIBRARY, Manifest
from edgec.compiler.errors import BoardError, BundleError
from edgec.compiler.ir.signature import Tensors, TensorSpec
from edgec.compiler.ir.storage import held_as
from edgec.compiler.runtime.programs import Programs
from edgec.compiler.runtime.static_session import StepInfo

# Another session may be on the board: it serves one after the other.
GREET_SECONDS = 30.0
CALL_SECONDS = 30.0
CHUNK_SECONDS = 60.0
LOAD_SECONDS = 120.0
RUN_SECONDS = 600.0
# The board ends a session that lasts longer, should this side be gone and nobody notice.
SESSION_SECONDS = 6 * 3600
CHUNK_BYTES = 2**20
# Of what executor/ffi.c says of a step.
STEP_TEXT_BYTES = 512


class BoardSession:
    """A board session is a connection to a board; made by `open_board_session`."""

    def __init__(self, board: Board, relay: Relay) -> None:
        self.board = board
        self._relay = relay
        self._remote: Any = None

    @contextmanager
    def step(self, title: str, seconds: float) -> Iterator[None]:
        """Turn whatever goes wrong inside into an error that names board and step.

        Raises:
            BoardError: TVM reports an error, or the step takes longer than it may.
        """
        self._relay.limit(seconds)
        try:
            yield
        except (RuntimeError, OSError, ValueError, AttributeError) as error:
            reason = _reason(error)
            if reason == _BROKEN:
                if self._relay.expired():
                    reason = f"no answer in {seconds:.0f} s"
                elif failure := self._relay.tunnel_failure():
                    reason = failure
            raise board_error(self.board, f"{title}: {reason}") from None
        finally:
            self._relay.limit(0)

    def greet(self, key: str) -> None:
        """Shake hands."""
        with self.step("connect", GREET_SECONDS):
            self._remote = rpc.connect(
                LOOPBACK[0], self._relay.port, key, session_timeout=SESSION_SECONDS
            )

    def call(self, function: str, *arguments: Any) -> Any:
        """Call one of the server's functions (boards/server/server.c)."""
        return self._remote.get_function(f"edgec.board.{function}")(*arguments)

    def capabilities(self) -> BoardCapabilities:
        """Return what the board is."""
        with self.step("ask for its features", CALL_SECONDS):
            try:
                return BoardCapabilities.model_validate(json.loads(self.call("facts")))
            except ValidationError:
                raise RuntimeError(
                    "its server is of another version of edgec; set the board up again"
                ) from None

    def push(self, file: Path, name: str) -> int:
        """Send a file unless the board has it; how many bytes were sent."""
        size = file.stat().st_size
        with self.step("look for the model", CALL_SECONDS):
            if int(self.call("kept", name)) == size:
                return 0
        self.send(file, name)
        with self.step("keep the model", CALL_SECONDS):
            self.call("keep", name)
        return size

    def send(self, file: Path, name: str) -> None:
        """Send a file that is there until the session ends."""
        size = file.stat().st_size
        with file.open("rb") as stream:
            for start in itertools.count(0, CHUNK_BYTES):
                data = bytearray(stream.read(CHUNK_BYTES))
                if not data:
                    break
                with self.step(f"send the model, at {start} of {size} bytes", CHUNK_SECONDS):
                    self.call("append", name, data)

    def load_module(self, name: str) -> Any:
        """Return a library that was sent, as a TVM module; to be called inside a step."""
        return self._remote.load_module(name)

    def tensor(self, data: NDArray[Any]) -> Any:
        """Return a copy of some bytes on the board; to be called inside a step."""
        tensor = tvm.runtime.empty((data.nbytes,), "uint8", self._remote.cpu(0))
        if data.nbytes:
            tensor.copyfrom(np.ascontiguousarray(data).reshape(-1).view(np.uint8))
        return tensor

    def load(self, bundle: Bundle, name: str, threads: int = 0) -> "BoardModel":
        """Load a file that was pushed, as the library of a bundle."""
        manifest = bundle.manifest
        with self.step("load the model", LOAD_SECONDS):
            module = self.load_module(name)
            device = self._remote.cpu(0)
            if manifest.execution.executor == "static":
                return _StaticModel(self, module, device, manifest, threads)
            return _VmModel(self, module, device, manifest)

    def close(self) -> None:
        """Leave the board."""
        self._remote = None
        # Objects on the board are let go of while the connection stands.
        with self.step("leave", CALL_SECONDS):
            gc.collect()
        self._relay.close()


@contextmanager
def open_board_session(board: Board) -> Iterator[BoardSession]:
    """Provide a session on a board, for a `with` statement.

    Raises:
        BoardError: the board cannot be reached, or does not answer.
    """
    if board.link is None:
        raise BoardError(
            f"board {board.name} is not running; start it: edgec board start {board.name}"
        )
    try:
        relay, key = open_relay(board, GREET_SECONDS)
    except BoardError as error:
        raise board_error(board, f"connect: {error}") from None
    session = BoardSession(board, relay)
    try:
        session.greet(key)
        yield session
    finally:
        session.close()


def push_bundle(session: BoardSession, bundle: Bundle) -> tuple[str, int]:
    """Send a bundle's library if the board lacks it: its name there, and the bytes sent."""
    name = f"{bundle.manifest.files[LIBRARY].sha256}.so"
    return name, session.push(bundle.library, name)


class BoardModel:
    """A board model is a model that is loaded on a board."""

    def __init__(self, session: BoardSession, manifest: Manifest) -> None:
        self._session = session
        self._programs = Programs(manifest.signatures)
        self._index_bounds = manifest.settings.index_bounds

    def run(self, inputs: Tensors, program: str | None = None) -> dict[str, NDArray[Any]]:
        """Return outputs by name, of the named program or the first that takes the inputs.

        Raises:
            TensorInputError: an input is missing, has the wrong shape or dtype, or holds an index
                beyond its table.
            BoardError: the board failed.
        """
        number, checked = self._programs.fitting(inputs, self._index_bounds, program)
        with self._session.step("run the model", RUN_SECONDS):
            outputs = self._run(number, list(checked.values()))
        specs = self._programs.all[number].outputs
        return {spec.name: array for spec, array in zip(specs, outputs, strict=True)}

    def reset(self) -> None:
        """Begin anew: all state is zeros."""

    def time(self, inputs: Tensors, repeat: int) -> list[float]:
        """Seconds of each of some runs, measured on the board."""
        program, checked = self._programs.fitting(inputs, self._index_bounds)
        with self._session.step("time the model", RUN_SECONDS):
            return self._time(program, list(checked.values()), repeat)

    def profile(self, inputs: Tensors) -> NDArray[np.uint64]:
        """Return nanoseconds of each of `steps()` in one run, measured on the board."""
        program, checked = self._programs.fitting(inputs, self._index_bounds)
        with self._session.step("time the kernels", RUN_SECONDS):
            return self._profile(program, list(checked.values()))

    def steps(self, inputs: Tensors) -> list[StepInfo]:
        """Return the kernel calls of a run on inputs; none if TVM's virtual machine runs it."""
        del inputs
        return []

    def _profile(self, program: int, inputs: list[NDArray[Any]]) -> NDArray[np.uint64]:
        del program, inputs
        return np.zeros(0, np.uint64)

    def _run(self, program: int, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        raise NotImplementedError

    def _time(self, program: int, inputs: list[NDArray[Any]], repeat: int) -> list[float]:
        raise NotImplementedError


class _StaticModel(BoardModel):
    """Tensors travel as their bytes: TVM need not know every dtype."""

    def __init__(
        self, session: BoardSession, module: Any, device: Any, manifest: Manifest, threads: int
    ) -> None:
        super().__init__(session, manifest)
        self._module = module
        self._device = device
        self._handle = module["edgec_open"](threads)
        if not self._handle:
            raise RuntimeError("no memory or no threads for the model")

    def _tensors(self, program: int, inputs: list[NDArray[Any]]) -> tuple[list[Any], list[Any]]:
        given = [self._session.tensor(array) for array in inputs]
        return given, [self._empty(_bytes(spec)) for spec in self._programs.all[program].outputs]

    def _empty(self, size: int) -> Any:
        return tvm.runtime.empty((size,), "uint8", self._device)

    def _run(self, program: int, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        given, results = self._tensors(program, inputs)
        self._check(self._module["edgec_run"](self._handle, program, *given, *results))
        return [
            tensor.numpy().view(np.dtype(spec.dtype)).reshape(_shape(spec))
            for spec, tensor in zip(self._programs.all[program].outputs, results, strict=True)
        ]

    def reset(self) -> None:
        with self._session.step("reset the state", CALL_SECONDS):
            self._module["edgec_reset"](self._handle)

    def steps(self, inputs: Tensors) -> list[StepInfo]:
        program, _ = self._programs.fitting(inputs)
        with self._session.step("ask for the kernels", CALL_SECONDS):
            text = self._empty(STEP_TEXT_BYTES)
            count = self._module["edgec_step_count"](program)
            return [self._step(text, program, number) for number in range(count)]

    def _step(self, text: Any, program: int, number: int) -> StepInfo:
        self._module["edgec_step"](program, number, text)
        label, template, flops, *_ = text.numpy().tobytes().decode(errors="replace").split("\0")
        return StepInfo(label, template, int(flops))

    def _profile(self, program: int, inputs: list[NDArray[Any]]) -> NDArray[np.uint64]:
        count = int(self._module["edgec_step_count"](program))
        if count == 0:
            return np.zeros(0, np.uint64)
        given, results = self._tensors(program, inputs)
        times = self._empty(8 * count)
        self._check(self._module["edgec_run_timed"](self._handle, program, *given, *results, times))
        found: NDArray[np.uint64] = times.numpy().view(np.uint64)
        return found

    def _check(self, status: Any) -> None:
        if int(status) != 0:
            raise RuntimeError(f"the model gave status {status}: no memory on the board")

    def _time(self, program: int, inputs: list[NDArray[Any]], repeat: int) -> list[float]:
        given, results = self._tensors(program, inputs)
        timer = self._module.time_evaluator("edgec_run", self._device, number=1, repeat=repeat)
        return list(timer(self._handle, program, *given, *results).results)


class _VmModel(BoardModel):
    """A model runs on TVM's virtual machine, which the board's runtime contains."""

    def __init__(self, session: BoardSession, module: Any, device: Any, manifest: Manifest) -> None:
        super().__init__(session, manifest)
        for spec in (*manifest.signature.inputs, *manifest.signature.outputs):
            if np.dtype(spec.dtype).isbuiltin != 1 or held_as(spec.dtype) != spec.dtype:
                raise BundleError(
                    f"{spec}: a model that TVM's virtual machine runs takes only NumPy's own "
                    "dtypes over RPC"
                )
        self._device = device
        self._vm = relax.VirtualMachine(module, device)

    def _set(self, inputs: list[NDArray[Any]]) -> None:
        tensors = [tvm.runtime.tensor(array, self._device) for array in inputs]
        self._vm.set_input("main", *tensors)

    def _run(self, program: int, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        del program  # There is one.
        self._set(inputs)
        self._vm.invoke_stateful("main")
        results = self._vm.get_outputs("main")
        listed = list(results) if isinstance(results, list | tuple) else [results]
        return [tensor.numpy() for tensor in listed]

    def _time(self, program: int, inputs: list[NDArray[Any]], repeat: int) -> list[float]:
        del program  # There is one.
        self._set(inputs)
        timer: Callable[[str], Any] = self._vm.time_evaluator(
            "invoke_stateful", self._device, number=1, repeat=repeat
        )
        return list(timer("main").results)


def _shape(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(extent or 0 for extent in spec.shape)


def _bytes(spec: TensorSpec) -> int:
    return int(np.prod(_shape(spec), dtype=np.int64)) * np.dtype(spec.dtype).itemsize


def board_error(board: Board, text: str) -> BoardError:
    """Return an error of a board, with its name and where it is."""
    hint = ""
    if board.is_qemu and _BROKEN in text:
        hint = f"; if it is gone: edgec board start {board.name}"
    elif NOT_LISTENING in text:
        hint = f"; edgec board setup {board.name} starts the server there"
    return BoardError(f"board {board.name} ({board.link}): {text}{hint}")


_BROKEN = (
    "the connection broke: the model crashed or ran out of memory there, the server ended, or "
    "the network was cut"
)
# What TVM's client says when it does: the session told to shut down, or the socket's errors.
_BROKEN_SIGNS = ("kShutdown", "RPCCode::kReturn", "RecvAll", "Broken pipe", "reset by peer")


def _reason(error: Exception) -> str:
    """Return what TVM's error means, in one line."""
    text = str(error)
    if "cannot find server that matches key" in text:
        return "the server there answers to another key"
    if any(sign in text for sign in _BROKEN_SIGNS):
        return _BROKEN
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
