"""Run a model of data-dependent shape on TVM's virtual machine.

Its runtime is loaded for that.
"""

import ctypes
import importlib.util
import re
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import ToolchainError, UsageError
from edgec.compiler.ir.signature import Signature, Tensors
from edgec.compiler.ir.storage import as_exchanged, held_as
from edgec.compiler.runtime.aligned import aligned_copy
from edgec.compiler.runtime.fork import watch_forks
from edgec.compiler.runtime.inputs import check_inputs
from edgec.compiler.runtime.static_session import NO_STATE
from edgec.compiler.support.cores import usable_cores

# Names of the functions that TVM's virtual machine calls and that TVM has in Python only.
IN_PYTHON = re.compile(rb"relax\.run\.\w+")


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

    def run_padded(self, inputs: Tensors | NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run: these models have one program."""
        return self.run(inputs)

    def reset(self) -> None:
        """Do nothing: these models have no state."""

    def save(self, path: str | Path) -> None:
        """Refuse: these models have no state."""
        raise UsageError(f"{path}: {NO_STATE}")

    def load(self, path: str | Path) -> None:
        """Refuse: these models have no state."""
        raise UsageError(f"{path}: {NO_STATE}")

    def run(
        self, inputs: Tensors | NDArray[Any], program: str | None = None
    ) -> dict[str, NDArray[Any]]:
        """Return outputs by name; there is one program."""
        del program
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
        tensor = self._ffi.from_dlpack(aligned_copy(as_exchanged(array)))
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
