"""Run a static model's library, by its C interface (codegen/executor/edgec.h)."""

import ctypes
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import (
    BadInputError,
    TensorInputError,
    UsageError,
    did_you_mean,
)
from edgec.compiler.ir.signature import Signature, Tensors, TensorSpec
from edgec.compiler.runtime.aligned import aligned, aligned_copy
from edgec.compiler.runtime.fork import watch_forks
from edgec.compiler.runtime.inputs import check_inputs
from edgec.compiler.runtime.library import BAD_INDEX, OTHER_STATE, load_model, pointers
from edgec.compiler.runtime.programs import Programs, cut
from edgec.compiler.support.files import write_atomically

NO_STATE = "this model has no state to save or load"
_ERRORS: dict[int, type[Exception]] = {BAD_INDEX: TensorInputError, OTHER_STATE: BadInputError}


@dataclass(frozen=True)
class StepInfo:
    """Step information describes one kernel call of a static model.

    Attributes:
        label: operators that it computes.
        template: kernel template, or `generic`.
        flops: floating-point operations.
    """

    label: str
    template: str
    flops: int


@dataclass(frozen=True)
class Prepared:
    """Prepared inputs fit a program, and are where a run can use them without copying.

    Attributes:
        program: the number of the program.
        arrays: the inputs in its order.
    """

    program: int
    arrays: list[NDArray[Any]]


class StaticSession:
    """A static session is a static model, loaded; see `open_session`.

    Any thread may call it. Runs take turns: each computes on all threads of the session. A session
    of a model with state is one stream: each run begins with the state that the one before left.
    """

    def __init__(self, library: Path, programs: Mapping[str, Signature], threads: int) -> None:
        self._programs = Programs(programs)
        self._model = load_model(str(library))
        self._handle = self._model.open(threads)
        if not self._handle:
            raise RuntimeError("no memory or no threads for a session")
        self._outputs: dict[int, list[NDArray[Any]]] = {}
        self.lock = threading.RLock()
        watch_forks(self)

    def after_fork(self) -> None:
        """Do nothing: the library notices that it runs in another process."""

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._model.close(self._handle)
            self._handle = None

    @property
    def threads(self) -> int:
        """Return threads that compute."""
        return int(self._model.threads(self._handle))

    @property
    def addresses(self) -> tuple[int, int]:
        """Return where `edgec_model` and `edgec_session` are, for other C that runs the model."""
        return ctypes.addressof(self._model), self._handle

    def use_threads(self, threads: int) -> int:
        """Compute on so many of the session's threads from now on, 0 on all; how many they are."""
        with self.lock:
            return int(self._model.use_threads(self._handle, threads))

    def run(
        self, inputs: Tensors | NDArray[Any], program: str | None = None
    ) -> dict[str, NDArray[Any]]:
        """Return outputs by name; the arrays belong to the caller.

        The program is the one of this name, or the first one that takes inputs of these shapes.
        """
        prepared = self.prepare(inputs, program)
        outputs = self.new_outputs(prepared.program)
        self.run_into(prepared, outputs)
        return self.named(prepared.program, outputs)

    def run_shared(self, inputs: Tensors | NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return outputs by name in the session's own arrays, which the next run overwrites.

        Only for a session that one thread uses.
        """
        prepared = self.prepare(inputs)
        self.run_prepared(prepared)
        return self.named(prepared.program, self._shared_outputs(prepared.program))

    def run_padded(self, inputs: Tensors | NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run like `run`, on inputs that are filled up with zeros; see `Programs.padded`.

        Raises:
            UsageError: the model has a state, which would take the zeros for inputs.
            TensorInputError: the inputs fit no program.
        """
        if self._model.state_count:
            raise UsageError("a model with a state takes no padding: it would remember the zeros")
        full, shapes = self._programs.padded(inputs)
        return cut(self.run(full), shapes)

    def prepare(self, inputs: Tensors | NDArray[Any], program: str | None = None) -> Prepared:
        """Return checked inputs in memory that a run can use without copying."""
        number, checked = self._programs.fitting(inputs, program=program)
        return Prepared(number, [aligned_copy(array) for array in checked.values()])

    def run_prepared(self, prepared: Prepared) -> None:
        """Run without copying inputs or outputs: what a benchmark measures."""
        self.run_into(prepared, self._shared_outputs(prepared.program))

    def run_timed(self, prepared: Prepared) -> NDArray[np.uint64]:
        """Return time of each step in nanoseconds."""
        count = self._model.programs[prepared.program].step_count
        times = (ctypes.c_uint64 * max(1, count))()
        self.run_into(prepared, self._shared_outputs(prepared.program), times)
        return np.array(times[:count], np.uint64)

    def steps(self, program: int = 0) -> list[StepInfo]:
        """Return what `run_timed` times."""
        count = self._model.programs[program].step_count
        structs = (self._model.program_step(program, index) for index in range(count))
        return [StepInfo(s.label.decode(), s.template.decode(), s.flops) for s in structs]

    def reset(self) -> None:
        """Begin anew: all state is zeros."""
        with self.lock:
            self._model.reset(self._handle)

    def save(self, path: str | Path) -> None:
        """Write the state to a file, which any session of this model can load.

        Raises:
            UsageError: the model has no state.
            OutputError: the file cannot be written.
        """
        write_atomically(Path(path), self.saved())

    def load(self, path: str | Path) -> None:
        """Read the state from a file that `save` wrote, on whatever machine.

        Raises:
            UsageError: the model has no state.
            BadInputError: it cannot be read, or is of another model; the state stays as it is.
        """
        try:
            saved = Path(path).read_bytes()
        except OSError as error:
            raise BadInputError(f"state {path} cannot be read: {error.strerror}") from None
        try:
            self.restore(saved)
        except BadInputError as error:
            raise BadInputError(f"{path}: {error}") from None

    def saved(self) -> bytes:
        """Return the state as `save` writes it.

        Raises:
            UsageError: the model has no state.
        """
        self._check_state()
        buffer = ctypes.create_string_buffer(self._model.saved_bytes)
        with self.lock:
            self._model.save(self._handle, buffer)
        return buffer.raw

    def restore(self, saved: bytes) -> None:
        """Take over a state that `saved` gave; see `load`."""
        self._check_state()
        with self.lock:
            self._check(self._model.restore(self._handle, saved, len(saved)))

    def state(self, name: str) -> NDArray[Any]:
        """Return a copy of a state by the name of its input.

        Raises:
            UsageError: no state has this name.
        """
        with self.lock:
            return self._state(name).copy()

    def set_state(self, name: str, values: NDArray[Any]) -> None:
        """Change a state.

        Raises:
            UsageError: no state has this name.
            TensorInputError: the values are not of its shape and dtype.
        """
        with self.lock:
            memory = self._state(name)
            spec = TensorSpec(name, memory.shape, str(memory.dtype))
            memory[...] = check_inputs([spec], {name: values})[name]

    def _state(self, name: str) -> NDArray[Any]:
        states = [self._model.states[index] for index in range(self._model.state_count)]
        names = [state.name.decode() for state in states]
        if name not in names:
            raise UsageError(f"{name} is no state{did_you_mean(name, names)}; states: {names}")
        state = states[names.index(name)]
        address = self._model.state(self._handle, names.index(name))
        memory = (ctypes.c_uint8 * state.bytes).from_address(address)
        values = np.frombuffer(memory, np.dtype(state.dtype.decode()))
        return values.reshape(state.shape[: state.rank])

    def _check_state(self) -> None:
        if not self._model.state_count:
            raise UsageError(NO_STATE)

    def run_into(self, prepared: Prepared, outputs: list[NDArray[Any]], times: Any = None) -> None:
        """Run and write the outputs of `new_outputs`; the time of each step if there is room."""
        given, results = pointers(prepared.arrays), pointers(outputs)
        with self.lock:
            status = self._model.run_program(self._handle, prepared.program, given, results, times)
            self._check(status)

    def _check(self, status: int) -> None:
        if status == 0:
            return
        message = self._model.error(self._handle).decode(errors="replace")
        raise _ERRORS.get(status, MemoryError)(message)

    def new_outputs(self, program: int) -> list[NDArray[Any]]:
        """Return memory for the outputs of a program."""
        specs = self._programs.all[program].outputs
        return [aligned(_shape(spec), spec.dtype) for spec in specs]

    def _shared_outputs(self, program: int) -> list[NDArray[Any]]:
        if program not in self._outputs:
            self._outputs[program] = self.new_outputs(program)
        return self._outputs[program]

    def named(self, program: int, outputs: list[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs of a program by their names."""
        pairs = zip(self._programs.all[program].outputs, outputs, strict=True)
        return {spec.name: array for spec, array in pairs}


def _shape(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(extent or 0 for extent in spec.shape)
