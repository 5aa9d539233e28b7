"""Provide the static executor as an object file, compiled once for each kind of target."""

import hashlib
from pathlib import Path

from edgec.compiler.codegen.executor import FOLDER, HEADERS, SOURCES, UNIT
from edgec.compiler.codegen.link import compile_object, compiler_identity
from edgec.compiler.support.content_cache import ContentCache
from edgec.targets.target import Target

# An executor is some ten kilobytes.
CACHE_BYTES = 16 * 2**20


def executor_object(target: Target, folder: Path) -> Path:
    """Write the executor's object file into a folder.

    Raises:
        ToolchainError: the compiler is missing or fails.
    """
    path = folder / "executor.o"
    digest = hashlib.sha256(compiler_identity(target).encode())
    for name in (UNIT, *HEADERS, *SOURCES):
        digest.update((FOLDER / name).read_bytes())
    cache = ContentCache("executors", CACHE_BYTES)
    cache.write(digest.hexdigest(), path, lambda to: compile_object(FOLDER / UNIT, to, target))
    return path
