"""Lead from a program to a shared library, or from a module for the virtual machine to one.

The static executor's library holds the kernels, the program's tables, the executor's C sources
and the weights; it needs nothing but the C library. Models of data-dependent shape go to TVM's
Relax virtual machine instead, whose library needs TVM's runtime.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tvm
from tvm import IRModule, relax
from tvm.ir import GenericConst

from edgec.compiler.codegen.emit_c import UNIT_BYTES, Weights, constants_source, program_source
from edgec.compiler.codegen.executor import EXPORTS, FOLDER, HEADERS, soname
from edgec.compiler.codegen.executor_object import executor_object
from edgec.compiler.codegen.kernel_objects import compile_kernels
from edgec.compiler.codegen.link import link_shared
from edgec.compiler.codegen.memory import ALIGNMENT_BYTES, MemoryPlan, plan_memory
from edgec.compiler.errors import OutputError, UnsupportedModelError
from edgec.compiler.ir.program import Program
from edgec.compiler.ir.signature import TensorSpec
from edgec.compiler.support.progress import Progress
from edgec.targets.target import Target

# The constants on their own, in an object and in the library.
COPIES_OF_CONSTANTS = 3
CODE_BYTES = 32 * 2**20
# Code reaches what is within 2 GiB of it, and code itself takes some of that.
MAX_WEIGHT_BYTES = 2**31 - CODE_BYTES
# Constants that a kernel reads once for each tile: biases, scales, quantizers.
SMALL_BYTES = 1024


def build_program(
    program: Program,
    outputs: tuple[TensorSpec, ...],
    target: Target,
    library: Path,
    name: str = "model",
    index_bounds: Mapping[str, int] = MappingProxyType({}),
    progress: Progress | None = None,
) -> MemoryPlan:
    """Generate code for the static executor and link it.

    Args:
        program: the scheduled model.
        outputs: their names.
        target: what to generate code for.
        library: the shared library to write; its folder takes the intermediate files.
        name: the name of the model, as `model_identifier` gives it: programs that link several
            models tell them apart by it.
        index_bounds: rows that an input chooses from, by the name of the input.
        progress: is told of each kernel that is compiled.

    Returns:
        The plan of its memory.

    Raises:
        UnsupportedModelError: the weights are more than a library holds.
        ToolchainError: the linker is missing or fails.
        OutputError: the disk of `library` is too full.
    """
    weight_bytes = sum(value.size_bytes for value in program.constants())
    if weight_bytes > MAX_WEIGHT_BYTES:
        raise UnsupportedModelError(
            f"the weights take {weight_bytes / 1e6:.0f} MB; a library holds at most "
            f"{MAX_WEIGHT_BYTES / 1e6:.0f} MB: quantize them, or split the model"
        )
    _check_space(library.parent, weight_bytes)
    kernels = compile_kernels(program.functions, target, library.parent, progress)
    plan, sources = write_sources(program, outputs, target, library.parent, name, index_bounds)
    link_shared([*kernels, *sources], library, target, exports=EXPORTS, soname=soname(name))
    return plan


def write_sources(
    program: Program,
    outputs: tuple[TensorSpec, ...],
    target: Target,
    folder: Path,
    name: str = "model",
    index_bounds: Mapping[str, int] = MappingProxyType({}),
) -> tuple[MemoryPlan, list[Path]]:
    """Write a program's tables and weights, to be linked with its kernels.

    Returns:
        The plan of its memory, and the files to compile and link, the executor among them.

    Raises:
        ToolchainError: the compiler of the executor is missing or fails.
    """
    weights = _write_weights(program, folder / "weights.bin")
    plan = plan_memory(program)
    tables = program_source(program, plan, weights, outputs, name, index_bounds)
    (folder / "program.c").write_text(tables)
    (folder / "constants.S").write_text(constants_source(program, "weights.bin"))
    for file in HEADERS:
        shutil.copyfile(FOLDER / file, folder / file)
    executor = executor_object(target, folder)
    return plan, [folder / "program.c", folder / "constants.S", executor]


def _write_weights(program: Program, path: Path) -> Weights:
    """Write every constant once, small ones aligned to a vector and others to a cache line."""
    offsets: dict[int, int] = {}
    known: dict[bytes, int] = {}
    position = 0
    with path.open("wb") as stream:
        for value in program.constants():
            assert value.array is not None
            data = value.array.tobytes()
            digest = hashlib.sha256(data).digest()
            if digest not in known:
                padding = -position % (UNIT_BYTES if len(data) < SMALL_BYTES else ALIGNMENT_BYTES)
                stream.write(bytes(padding) + data)
                known[digest] = position + padding
                position += padding + len(data)
            offsets[id(value)] = known[digest]
    return Weights(offsets)


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
