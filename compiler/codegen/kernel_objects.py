"""Lead from kernels to object files: compiled on all cores, each content only once.

Every kernel is a module of its own for LLVM. What it becomes depends on its code and the target
alone, not on the model around it, so a library is the same whether its kernels were compiled or
found in the cache.
"""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import cache
from pathlib import Path

import tvm
import tvm_ffi
from tvm import tirx

from edgec.compiler.kernels.emit import emitter
from edgec.compiler.support.content_cache import ContentCache
from edgec.compiler.support.cores import usable_cores
from edgec.compiler.support.progress import Progress, Silent, counted
from edgec.compiler.support.versions import tool_versions
from edgec.targets.target import Target

# A kernel is some ten kilobytes.
CACHE_BYTES = 256 * 2**20


def compile_kernels(
    functions: Mapping[str, tirx.PrimFunc],
    target: Target,
    folder: Path,
    progress: Progress | None = None,
) -> list[Path]:
    """Compile each kernel to an object file, on as many threads as the process may use.

    TVM lets go of Python's lock while LLVM works.

    Args:
        functions: code by the kernel's name, its symbol.
        target: what to generate code for.
        folder: takes the object files.
        progress: is told of each kernel.

    Returns:
        The files, in the order of the kernels.
    """
    kernels = _Kernels(target, folder)
    threads = max(1, min(usable_cores(), len(functions)))
    with ThreadPoolExecutor(threads, "edgec-kernels") as executor:
        made = [executor.submit(kernels.make, *item) for item in functions.items()]
        try:
            done: Iterable[Future[Path]] = as_completed(made)
            for future in counted(done, progress or Silent(), "kernels", len(made)):
                future.result()
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in made]


def write_object(functions: dict[str, tirx.PrimFunc], target: Target, path: Path) -> None:
    """Generate machine code of kernels into an object file."""
    emitter.to_object(functions, tvm.target.Target(target.llvm())).write_to_file(str(path))


class _Kernels:
    """Kernels are made for one target into one folder."""

    def __init__(self, target: Target, folder: Path) -> None:
        self._target = target
        self._folder = folder
        self._cache = ContentCache("kernels", CACHE_BYTES)
        self._makers = _makers() + tvm.ir.save_json(tvm.target.Target(target.llvm()))

    def make(self, name: str, function: tirx.PrimFunc) -> Path:
        """Write the object file of a kernel, from the cache if that has it."""
        path = self._folder / f"{name}.o"
        # The name is a digest of what was asked for, which settles what 64 bits alone would not.
        code = tvm_ffi.structural_hash(function)
        key = hashlib.sha256(f"{self._makers}{name} {code}".encode()).hexdigest()
        self._cache.write(key, path, lambda to: write_object({name: function}, self._target, to))
        return path


@cache
def _makers() -> str:
    """Return what made a kernel, beside its code and the target: tools, and what calls LLVM."""
    source = Path(emitter.__file__).read_bytes()
    return f"{tool_versions()}{hashlib.sha256(source).hexdigest()}"
