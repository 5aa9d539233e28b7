"""From scheduled functions to a shared library."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import IRModule, relax

from edgec.compiler.link import link_shared
from edgec.targets.target import Target


def build_library(module: IRModule, target: Target, output: Path) -> None:
    """Generate code and link it.

    Args:
        module: lowered and scheduled.
        target: what to generate code for.
        output: the shared library to write.

    Raises:
        ToolchainError: the linker is missing or fails.
    """
    executable = relax.build(module, tvm.target.Target(target.llvm()))

    def link(library: str, objects: Sequence[str], **_: Any) -> None:
        link_shared([Path(path) for path in objects], Path(library), target)

    link.output_format = "so"  # type: ignore[attr-defined]
    executable.export_library(str(output), fcompile=link)
