"""The C that generates text, compiled once for all tests of a process."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from edgec.compiler.bundle.generation_files import GENERATION, build_generation
from edgec.compiler.generation.native import load_generation
from edgec.targets import load_target


@cache
def generation_library() -> Any:
    """Return the functions of generation.so for this machine."""
    folder = Path(tempfile.mkdtemp(prefix="edgec-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    build_generation(folder / GENERATION, load_target("native"))
    return load_generation(folder / GENERATION)
