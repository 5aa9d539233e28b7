"""From scheduled functions to a shared library."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import IRModule, relax
from tvm.ir import GenericConst

from edgec.compiler.errors import OutputError
from edgec.compiler.link import link_shared
from edgec.targets.target import Target

# The object with the constants, the one with the code, and the library of both.
COPIES_OF_CONSTANTS = 3
CODE_BYTES = 32 * 2**20


def build_library(module: IRModule, target: Target, output: Path) -> None:
    """Generate code and link it.

    Args:
        module: lowered and scheduled.
        target: what to generate code for.
        output: the shared library to write.

    Raises:
        ToolchainError: the linker is missing or fails.
        OutputError: the disk of `output` is too full.
    """
    _check_space(output.parent, module)
    executable = relax.build(module, tvm.target.Target(target.llvm()))

    def link(library: str, objects: Sequence[str], **_: Any) -> None:
        link_shared([Path(path) for path in objects], Path(library), target)

    link.output_format = "so"  # type: ignore[attr-defined]
    executable.export_library(str(output), fcompile=link)


def _check_space(folder: Path, module: IRModule) -> None:
    """Refuse before LLVM starts: it ends the whole process when a write fails."""
    constants = 0

    def visit(expression: Any) -> None:
        nonlocal constants
        if isinstance(expression, GenericConst):
            constants += expression.value.numpy().nbytes

    relax.analysis.post_order_visit(module["main"], visit)
    needed = COPIES_OF_CONSTANTS * constants + CODE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"no space left in {folder.parent}: {free / 1e6:.0f} MB are free, compiling needs "
            f"about {needed / 1e6:.0f} MB; set TMPDIR to a larger disk"
        )
