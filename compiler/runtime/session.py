"""Run a compiled library on this machine.

A static model's library runs by itself: this file calls its C interface (executor/edgec.h).
A model of data-dependent shape runs on TVM's virtual machine; its runtime (a few megabytes, not
the compiler) is loaded for that.
"""

import ctypes
import importlib.util
import platform
import re
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import BundleError, TensorInputError, ToolchainError
from edgec.compiler.ir.signature import Signature, Tensors, TensorSpec
from edgec.compiler.ir.storage import as_exchanged, held_as
from edgec.compiler.runtime.executor import Executor
from edgec.compiler.runtime.fork import watch_forks
from edgec.compiler.runtime.inputs import check_inputs
from edgec.compiler.runtime.library import BAD_INDEX, load_model, pointers
from edgec.compiler.support.cores import usable_cores
from edgec.targets.native import CPUINFO, cpu_flags
from edgec.targets.target import Target

ALIGNMENT_BYTES = 64
# Names of the functions that TVM's virtual machine calls and that TVM has in Python only.
IN_PYTHON = re.compile(rb"relax\.run\.\w+")


class Session(Protocol):
    """A session is a loaded model."""

    def run(self, inputs: Tensors | NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return outputs by name.

        Raises:
            TensorInputError: an input is missing, has the wrong shape or dtype, or holds an index
                beyond its table.
        """

    def run_shared(self, inputs: Tensors | NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run like `run`, but the next run may overwrite the arrays."""


def open_session(
    library: Path,
    target: Target,
    signature: Signature,
    executor: Executor,
    threads: int = 0,
    index_bounds: Mapping[str, int] = MappingProxyType({}),
    title: str = "",
) -> Session:
    """Load a library, and return a session that any thread may call.

    Args:
        library: shared library that `edgec.compiler.codegen.build` made.
        target: what it was compiled for; must be able to run here.
        signature: inputs and outputs.
        executor: what runs it.
        threads: threads to compute on; 0 is one for each core that this process may use.
        index_bounds: rows that an input chooses from, by name; a static library knows its own.
        title: what the library is called in messages; by default by its path.

    Raises:
        BundleError: this machine cannot run code for the target, or the library is damaged.
    """
    obstacle = why_not_here(target)
    if obstacle:
        title = title or f"{library.parent.name}/{library.name}"
        raise BundleError(
            f"{title} is for target {target.name}: {obstacle}; compile for --target "
            "native, or run it on its board"
        )
    # The dynamic loader takes a path that it has loaded once for the same library, even if
    # another file is there by now: a bundle that was compiled again would run its old code.
    # So every load is under a name that was never used before.
    with tempfile.TemporaryDirectory(prefix="edgec-") as folder:
        alias = Path(folder) / "model.so"
        # Not resolved: a file in memory has no other name.
        alias.symlink_to(library.absolute())
        try:
            if executor == "static":
                return StaticSession(alias, signature, threads)
            return VmSession(alias, signature, threads, index_bounds)
        except (OSError, RuntimeError, AttributeError) as error:
            first = str(error).strip().splitlines()[-1]
            raise BundleError(f"{library} cannot be loaded: {first}") from None


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


class StaticSession:
    """A static session is a static model, loaded; see `open_session`.

    Any thread may call it. Runs take turns: each computes on all threads of the session.
    """

    def __init__(self, library: Path, signature: Signature, threads: int) -> None:
        self._signature = signature
        self._model = load_model(str(library))
        self._handle = self._model.open(threads)
        if not self._handle:
            raise RuntimeError("no memory or no threads for a session")
        self._outputs: list[NDArray[Any]] = []
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

    def run(self, inputs: Tensors | NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return outputs by name; the arrays belong to the caller."""
        outputs = self._new_outputs()
        self._run(self.prepare(inputs), outputs)
        return self._named(outputs)

    def run_shared(self, inputs: Tensors | NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return outputs by name in the session's own arrays, which the next run overwrites.

        Only for a session that one thread uses.
        """
        self.run_prepared(self.prepare(inputs))
        return self._named(self._outputs)

    def prepare(self, inputs: Tensors | NDArray[Any]) -> list[NDArray[Any]]:
        """Return checked inputs in memory that a run can use without copying."""
        checked = check_inputs(self._signature.inputs, inputs)
        return [_aligned_copy(array) for array in checked.values()]

    def run_prepared(self, prepared: list[NDArray[Any]]) -> None:
        """Run without copying inputs or outputs: what a benchmark measures."""
        self._run(prepared, self._shared_outputs())

    def run_timed(self, prepared: list[NDArray[Any]]) -> NDArray[np.uint64]:
        """Return time of each step in nanoseconds."""
        count = self._model.step_count
        times = (ctypes.c_uint64 * max(1, count))()
        outputs = pointers(self._shared_outputs())
        with self.lock:
            status = self._model.run_timed(self._handle, pointers(prepared), outputs, times)
            self._check(status)
        return np.array(times[:count], np.uint64)

    def steps(self) -> list[StepInfo]:
        """Return what `run_timed` times."""
        structs = (self._model.step(index) for index in range(self._model.step_count))
        return [StepInfo(s.label.decode(), s.template.decode(), s.flops) for s in structs]

    def _run(self, prepared: list[NDArray[Any]], outputs: list[NDArray[Any]]) -> None:
        given, results = pointers(prepared), pointers(outputs)
        with self.lock:
            status = self._model.run(self._handle, given, results)
            self._check(status)

    def _check(self, status: int) -> None:
        if status == 0:
            return
        message = self._model.error(self._handle).decode(errors="replace")
        raise (TensorInputError if status == BAD_INDEX else MemoryError)(message)

    def _new_outputs(self) -> list[NDArray[Any]]:
        return [_aligned(_shape(spec), spec.dtype) for spec in self._signature.outputs]

    def _shared_outputs(self) -> list[NDArray[Any]]:
        if not self._outputs:
            self._outputs = self._new_outputs()
        return self._outputs

    def _named(self, outputs: list[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        pairs = zip(self._signature.outputs, outputs, strict=True)
        return {spec.name: array for spec, array in pairs}


class SessionPool:
    """A session pool is sessions of one model that run at the same time.

    The weights are in memory once.

    Any thread may call `run`; it takes a session that is free, or waits for one.
    """

    def __init__(self, sessions: Sequence[Session]) -> None:
        self._sessions = tuple(sessions)
        self.lock = threading.RLock()
        self.after_fork()
        watch_forks(self)

    def after_fork(self) -> None:
        """Make all sessions free: nobody uses them in a child."""
        self._free = list(self._sessions)
        self._returned = threading.Condition(self.lock)

    def run(self, inputs: Tensors | NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return outputs by name; the arrays belong to the caller."""
        with self._returned:
            self._returned.wait_for(lambda: self._free)
            session = self._free.pop()
        try:
            return session.run(inputs)
        finally:
            with self._returned:
                self._free.append(session)
                self._returned.notify()


def _shape(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(extent or 0 for extent in spec.shape)


def _aligned(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Return an array whose first byte is aligned."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[start : start + size].view(np.dtype(dtype)).reshape(shape)


def _aligned_copy(array: NDArray[Any]) -> NDArray[Any]:
    copy = _aligned(array.shape, str(array.dtype))
    copy[...] = array
    return copy


class VmSession:
    """A session runs a model on TVM's virtual machine; see `open_session`.

    Any thread may call it. TVM's threads belong to the thread that calls them, so one thread of
    the session's own does, and a new one in a child of fork.
    """

    # DLPack device type and TVM allocator: host memory, pooled.
    _CPU, _POOLED_ALLOCATOR = 1, 2

    def __init__(
        self,
        library: Path,
        signature: Signature,
        threads: int,
        index_bounds: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        import tvm_ffi

        load_tvm_runtime()
        if IN_PYTHON.search(library.read_bytes()):
            # Importing it registers them.
            importlib.import_module("tvm.relax")
        self._ffi = tvm_ffi
        self._view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")
        self._signature = signature
        self._threads = threads or usable_cores()
        self._index_bounds = index_bounds
        machine = tvm_ffi.load_module(str(library))["vm_load_executable"]()
        machine["vm_initialization"](self._CPU, 0, self._POOLED_ALLOCATOR)
        # The function does not keep the machine alive.
        self._vm = machine
        self._main = machine["main"]
        self._caller: ThreadPoolExecutor | None = None
        self.lock = threading.RLock()
        watch_forks(self)

    def after_fork(self) -> None:
        """Forget the parent's thread."""
        self._caller = None

    def run_shared(self, inputs: Tensors | NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return outputs by name, in arrays of their own: see `run`."""
        return self.run(inputs)

    def run(self, inputs: Tensors | NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return outputs by name."""
        checked = check_inputs(self._signature.inputs, inputs, self._index_bounds)
        with self.lock:
            if self._caller is None:
                self._caller = ThreadPoolExecutor(1, "edgec", self._configure)
            return self._caller.submit(self._call, checked).result()

    def _configure(self) -> None:
        # Mode 1: as many threads as asked for, on the fastest cores.
        self._ffi.get_global_func("runtime.config_threadpool")(1, self._threads)

    def _call(self, checked: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        result = self._main(*(self._to_device(array) for array in checked.values()))
        results = [result] if isinstance(result, self._ffi.Tensor) else list(result)
        return {
            spec.name: self._to_numpy(value, spec.dtype)
            for spec, value in zip(self._signature.outputs, results, strict=True)
        }

    def _to_device(self, array: NDArray[Any]) -> Any:
        held = held_as(str(array.dtype))
        # TVM takes NumPy's memory as it is, and crashes where that is not aligned.
        tensor = self._ffi.from_dlpack(_aligned_copy(as_exchanged(array)))
        return self._as(tensor, held) if str(tensor.dtype) != held else tensor

    def _to_numpy(self, value: Any, dtype: str) -> NDArray[Any]:
        exchanged = as_exchanged(np.empty(0, np.dtype(dtype))).dtype
        if str(value.dtype) != str(exchanged):
            value = self._as(value, str(exchanged))
        # A copy: the memory belongs to the virtual machine's pool.
        return np.array(np.from_dlpack(value)).view(np.dtype(dtype))

    def _as(self, tensor: Any, dtype: str) -> Any:
        """Return the same memory as a tensor of another dtype of the same size."""
        return self._view(tensor, self._ffi.Shape(tensor.shape), self._ffi.dtype(dtype), 0)


def why_not_here(target: Target) -> str:
    """Return why this machine cannot run code for a target; empty if it can.

    >>> from edgec.targets import load_target
    >>> "this machine is" in why_not_here(load_target("riscv64"))
    True
    """
    machine = platform.machine()
    if target.architecture != machine:
        return f"its code is for {target.architecture}, this machine is {machine}"
    if target.needed_flags is None:
        return ""
    flags = cpu_flags(CPUINFO.read_text(encoding="utf-8", errors="replace"))
    missing = sorted(target.needed_flags - flags)
    return f"this CPU lacks {', '.join(missing)}" if missing else ""


@cache
def load_tvm_runtime() -> None:
    """Load `libtvm_runtime.so` of the installed apache-tvm, without importing tvm.

    Raises:
        ToolchainError: apache-tvm is not installed.
    """
    found = importlib.util.find_spec("tvm")
    if found is None or not found.submodule_search_locations:
        raise ToolchainError("package apache-tvm is not installed; pip install edgec")
    library = Path(found.submodule_search_locations[0]) / "lib" / "libtvm_runtime.so"
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
