"""Run a compiled library on this machine.

Loads TVM's runtime (a few megabytes) and not its compiler, so that `edgec run` starts at once.
"""

import ctypes
import importlib.util
import platform
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi
from numpy.typing import NDArray

from edgec.compiler.errors import BundleError, TensorInputError, ToolchainError
from edgec.compiler.parity import Tensors
from edgec.compiler.signature import Signature
from edgec.compiler.vectors import check_inputs
from edgec.targets.native import CPUINFO, X86_EXTENSIONS, X86_LEVELS, cpu_flags
from edgec.targets.target import Target

# Kernels may use aligned vector loads of the widest register there is.
ALIGNMENT_BYTES = 64

# DLPack device type and TVM allocator: host memory, pooled.
_CPU, _POOLED_ALLOCATOR = 1, 2


class Session:
    """A loaded model.

    Args:
        library: shared library that `edgec.compiler.build` made.
        target: what it was compiled for; must be able to run here.
        signature: inputs and outputs of its `main`.

    Raises:
        BundleError: this machine cannot run code for the target.
    """

    def __init__(self, library: Path, target: Target, signature: Signature) -> None:
        obstacle = why_not_here(target)
        if obstacle:
            raise BundleError(
                f"{library.parent.name}/{library.name} is for target {target.name}: {obstacle}; "
                "compile for --target native, or run it on its board"
            )
        load_tvm_runtime()
        self._signature = signature
        try:
            module = _load(library)
            machine = module["vm_load_executable"]()
        except (RuntimeError, AttributeError) as error:
            first = str(error).strip().splitlines()[-1]
            raise BundleError(f"{library} cannot be loaded: {first}") from None
        machine["vm_initialization"](_CPU, 0, _POOLED_ALLOCATOR)
        # The function does not keep the machine alive.
        self._machine = machine
        self._main = machine["main"]

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Outputs by name.

        Raises:
            TensorInputError: an input is missing or has the wrong shape or dtype.
        """
        checked = check_inputs(self._signature.inputs, inputs)
        result = self._main(*(_to_device(array) for array in checked.values()))
        results = [result] if isinstance(result, tvm_ffi.Tensor) else list(result)
        return {
            spec.name: _to_numpy(value, spec.dtype)
            for spec, value in zip(self._signature.outputs, results, strict=True)
        }


def _load(library: Path) -> tvm_ffi.Module:
    """Load a library under a name that was never used before.

    The dynamic loader takes a path that it has loaded once for the same library, even if
    another file is there by now: a bundle that was compiled again would run its old code.
    """
    with tempfile.TemporaryDirectory(prefix="edgec-") as folder:
        alias = Path(folder) / library.name
        alias.symlink_to(library.resolve())
        return tvm_ffi.load_module(str(alias))


def why_not_here(target: Target) -> str:
    """Why this machine cannot run code for a target; empty if it can.

    >>> from edgec.targets import load_target
    >>> "this machine is" in why_not_here(load_target("riscv64"))
    True
    """
    machine = platform.machine()
    if target.architecture != machine:
        return f"its code is for {target.architecture}, this machine is {machine}"
    if machine != "x86_64":
        return ""
    flags = cpu_flags(CPUINFO.read_text(encoding="utf-8", errors="replace"))
    by_llvm_name = {llvm: flag for flag, llvm in X86_EXTENSIONS.items()}
    needed = set(X86_LEVELS.get(target.cpu, ()))
    for feature in target.features:
        name = feature[1:]
        if feature.startswith("+"):
            needed.add(by_llvm_name.get(name, name))
    missing = sorted(needed - flags)
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


def _to_device(array: NDArray[Any]) -> tvm_ffi.Tensor:
    """A copy whose first byte is aligned: TVM takes NumPy's memory as it is, and crashes."""
    source = np.ascontiguousarray(array)
    memory = np.empty(source.nbytes + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    aligned = memory[start : start + source.nbytes].view(source.dtype).reshape(array.shape)
    aligned[...] = source.reshape(array.shape)
    try:
        return tvm_ffi.from_dlpack(aligned)
    except BufferError:
        raise TensorInputError(f"inputs of dtype {array.dtype} are not supported yet") from None


def _to_numpy(value: tvm_ffi.Tensor, dtype: str) -> NDArray[Any]:
    # A copy: the memory belongs to the virtual machine's pool.
    array = np.array(np.from_dlpack(value))
    return array if str(array.dtype) == dtype else array.view(np.dtype(dtype))
