"""Lead from programs to a shared library, or from a module for the virtual machine to one.

The static executor's library holds the kernels, the programs' tables, the executor's C sources
and the weights; it needs nothing but the C library. Models of data-dependent shape go to TVM's
Relax virtual machine instead, whose library needs TVM's runtime.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from numpy.typing import NDArray
from tvm import IRModule, relax
from tvm.ir import GenericConst

from edgec.compiler.codegen.emit_c import UNIT_BYTES, Weights, constants_source, program_source
from edgec.compiler.codegen.executor import EXPORTS, FOLDER, HEADERS, soname
from edgec.compiler.codegen.executor_object import executor_object
from edgec.compiler.codegen.kernel_objects import compile_kernels
from edgec.compiler.codegen.link import link_shared
from edgec.compiler.codegen.memory import ALIGNMENT_BYTES, plan_memory
from edgec.compiler.errors import OutputError, UnsupportedModelError
from edgec.compiler.ir.program import Program
from edgec.compiler.support.progress import Progress
from edgec.targets.target import Target

# The constants on their own, in an object and in the library.
COPIES_OF_CONSTANTS = 3
CODE_BYTES = 32 * 2**20
# Code reaches what is within 2 GiB of it, and code itself takes some of that.
MAX_WEIGHT_BYTES = 2**31 - CODE_BYTES
# Constants that a kernel reads once for each tile: biases, scales, quantizers.
SMALL_BYTES = 1024


def build_library(
    programs: Sequence[Program],
    target: Target,
    library: Path,
    name: str = "model",
    digest: bytes = bytes(32),
    progress: Progress | None = None,
) -> int:
    """Generate code for the static executor and link it.

    Args:
        programs: the scheduled programs of the model, of the same states.
        target: what to generate code for.
        library: the shared library to write; its folder takes the intermediate files.
        name: the name of the model, as `model_identifier` gives it: programs that link several
            models tell them apart by it.
        digest: 32 bytes that tell the model's saved state from that of others.
        progress: is told of each kernel that is compiled.

    Returns:
        The bytes of the arena, which is as large as the largest program's.

    Raises:
        UnsupportedModelError: the weights are more than a library holds.
        ToolchainError: the linker is missing or fails.
        OutputError: the disk of `library` is too full.
    """
    # Programs share most of them.
    weight_bytes = max(sum(v.size_bytes for v in program.constants()) for program in programs)
    if weight_bytes > MAX_WEIGHT_BYTES:
        raise UnsupportedModelError(
            f"the weights take {weight_bytes / 1e6:.0f} MB; a library holds at most "
            f"{MAX_WEIGHT_BYTES / 1e6:.0f} MB: quantize them, or split the model"
        )
    arrays = {id(v.array): v.size_bytes for program in programs for v in program.constants()}
    _check_space(library.parent, sum(arrays.values()))
    functions = {name: code for program in programs for name, code in program.functions.items()}
    kernels = compile_kernels(functions, target, library.parent, progress)
    arena_bytes, sources = write_sources(programs, target, library.parent, name, digest)
    link_shared([*kernels, *sources], library, target, exports=EXPORTS, soname=soname(name))
    return arena_bytes


def write_sources(
    programs: Sequence[Program],
    target: Target,
    folder: Path,
    name: str = "model",
    digest: bytes = bytes(32),
) -> tuple[int, list[Path]]:
    """Write the tables and weights of programs, to be linked with their kernels.

    Returns:
        The bytes of the arena, and the files to compile and link, the executor among them.

    Raises:
        ToolchainError: the compiler of the executor is missing or fails.
    """
    constants = _constants(programs)
    with (folder / "weights.bin").open("wb") as stream:
        position = 0
        for offset, array in constants.arrays:
            stream.write(bytes(offset - position))
            stream.write(array.tobytes())
            position = offset + array.nbytes
    plans = [plan_memory(program) for program in programs]
    tables = program_source(programs, plans, Weights(constants.offsets), name, digest)
    (folder / "program.c").write_text(tables)
    (folder / "constants.S").write_text(constants_source(programs, "weights.bin"))
    for file in HEADERS:
        shutil.copyfile(FOLDER / file, folder / file)
    executor = executor_object(target, folder)
    arena_bytes = max(plan.arena_bytes for plan in plans)
    return arena_bytes, [folder / "program.c", folder / "constants.S", executor]


@dataclass(frozen=True)
class _Constants:
    """Constants describe the weights of a library, each content once.

    Attributes:
        offsets: byte offset by `id` of the value.
        arrays: byte offset and values, in the order of the offsets.
    """

    offsets: Mapping[int, int]
    arrays: Sequence[tuple[int, NDArray[Any]]]


def _constants(programs: Sequence[Program]) -> _Constants:
    """Place every constant once, small ones aligned to a vector and others to a cache line."""
    offsets: dict[int, int] = {}
    known: dict[bytes, int] = {}
    arrays: list[tuple[int, NDArray[Any]]] = []
    position = 0
    for value in (value for program in programs for value in program.constants()):
        array = value.array
        assert array is not None
        digest = hashlib.sha256(array.tobytes()).digest()
        if digest not in known:
            alignment = UNIT_BYTES if array.nbytes < SMALL_BYTES else ALIGNMENT_BYTES
            known[digest] = position + -position % alignment
            arrays.append((known[digest], array))
            position = known[digest] + array.nbytes
        offsets[id(value)] = known[digest]
    return _Constants(offsets, arrays)


def build_vm_library(module: IRModule, target: Target, library: Path) -> None:
    """Generate code for the Relax virtual machine and link it.

    Args:
        module: lowered, with generic schedules.
        target: what to generate code for.
        library: the shared library to write.

    Raises:
        ToolchainError: the linker is missing or fails.
        OutputError: the disk of `library` is too full.
    """
    _check_space(library.parent, _constant_bytes(module))
    executable = relax.build(module, tvm.target.Target(target.llvm()))

    def link(path: str, objects: Sequence[str], **_: Any) -> None:
        # The virtual machine that loads it has TVM's runtime.
        link_shared([Path(name) for name in objects], Path(path), target, complete=False)

    link.output_format = "so"  # type: ignore[attr-defined]
    executable.export_library(str(library), fcompile=link)


def _constant_bytes(module: IRModule) -> int:
    total = 0

    def visit(expression: Any) -> None:
        nonlocal total
        if isinstance(expression, GenericConst):
            total += expression.value.numpy().nbytes

    relax.analysis.post_order_visit(module["main"], visit)
    return total


def _check_space(folder: Path, constant_bytes: int) -> None:
    """Refuse before LLVM starts: it ends the whole process when a write fails."""
    needed = COPIES_OF_CONSTANTS * constant_bytes + CODE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"no space left in {folder.parent}: {free / 1e6:.0f} MB are free, compiling needs "
            f"about {needed / 1e6:.0f} MB; set TMPDIR to a larger disk"
        )
