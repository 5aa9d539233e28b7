"""Link object files into a library or program for a target, with no system toolchain.

The package `ziglang` brings a C compiler driver with a linker and the C library's symbols for
every architecture and glibc version; a target file may name another driver instead.
"""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgec.compiler.codegen.elf import check_library
from edgec.compiler.errors import ToolchainError
from edgec.targets.target import Target

# The first link for a target builds stubs of its C library, once.
TIMEOUT_SECONDS = 600

# How functions of other libraries are called: directly, not through code of the linker's.
CALLS = "-fno-plt"
# Kernels come as objects: what is compiled here takes less than a microsecond of a run.
_SMALL = (
    "-std=gnu11",
    "-fPIC",
    "-Os",
    "-fomit-frame-pointer",
    "-fno-asynchronous-unwind-tables",
    "-fno-unwind-tables",
    CALLS,
    "-ffunction-sections",
    "-fdata-sections",
)
_SMALL_LINK = ("-Wl,--gc-sections", "-Wl,--hash-style=gnu")
# Neither symbols beyond the dynamic ones nor a build identifier.
_BARE = ("-s", "-Wl,--build-id=none")
_LIBRARIES = ("-lm", "-ldl", "-lpthread")


def link_shared(
    objects: Sequence[Path],
    output: Path,
    target: Target,
    *,
    checked: bool = True,
    exports: Sequence[str] = (),
    soname: str = "",
    complete: bool = True,
    includes: Sequence[Path] = (),
) -> None:
    """Link objects, and compile and link C and assembly sources, into a shared library.

    The result depends on the objects alone: no build identifier, no symbols beyond the
    dynamic ones. Unless it is not `checked`, it is read back to see whether the target can run it.

    Args:
        objects: in the order of their code.
        output: the library; its folder takes the list of exports.
        target: what to link for.
        checked: see above.
        exports: patterns of names, all names if there are none; what no exported function needs
            is left out.
        soname: what programs that are linked with it look for; the file's name if it is empty.
        complete: whether to refuse functions that neither the objects nor the C library have; the
            program that loads it brings them otherwise.
        includes: folders of header files.

    Raises:
        ToolchainError: the linker is missing or fails, or the target cannot run what it made.
    """
    options = ["-shared", *_SMALL, *_SMALL_LINK, f"-Wl,-soname,{soname or output.name}"]
    options += [f"-I{folder}" for folder in includes]
    if complete:
        options.append("-Wl,-z,defs")
    if exports:
        script = output.parent / "exports.txt"
        script.write_text(f"{{ global: {'; '.join(exports)}; local: *; }};\n")
        options.append(f"-Wl,--version-script={script.resolve()}")
    _run_driver([*options, *_BARE, "-o", output, *objects, *_LIBRARIES], output.parent, target)
    if checked:
        check_library(output, target)


def link_program(
    sources: Sequence[Path],
    output: Path,
    target: Target,
    includes: Sequence[Path] = (),
) -> None:
    """Compile and link C sources into a program.

    Args:
        sources: C files.
        output: the program.
        target: what to link for.
        includes: folders of header files.

    Raises:
        ToolchainError: the compiler is missing or fails, or the target cannot run what it made.
    """
    # What a program does not call of a library's source is left out.
    small = ("-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections")
    options = ["-std=gnu11", "-O2", *small, *(f"-I{folder}" for folder in includes)]
    _run_driver([*options, *_BARE, "-o", output, *sources, *_LIBRARIES], output.parent, target)
    check_library(output, target)


def compile_object(source: Path, output: Path, target: Target) -> None:
    """Compile a C source to an object that `link_shared` links.

    Raises:
        ToolchainError: the compiler is missing or fails.
    """
    _run_driver([*_SMALL, "-c", "-o", output, source], output.parent, target)


def compiler_identity(target: Target) -> str:
    """Return what `compile_object` makes of a source depends on, beside the source.

    Raises:
        ToolchainError: the compiler is missing.
    """
    program, *arguments = driver(target)
    status = Path(program).resolve().stat()
    return f"{status.st_size} {status.st_mtime_ns} {arguments} {_SMALL}"


def _run_driver(arguments: Sequence[str | Path], folder: Path, target: Target) -> None:
    words = (str(word.resolve()) if isinstance(word, Path) else word for word in arguments)
    command = [*driver(target), *words]
    # Zig keeps a copy of all that it compiles, weights among it, for a next time that never comes.
    # Only what it makes of the C library serves every link; that is in a cache of its own.
    with tempfile.TemporaryDirectory(prefix="edgec-zig-") as objects_of_zig:
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env={**os.environ, "ZIG_LOCAL_CACHE_DIR": objects_of_zig},
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ToolchainError(
                f"linking for {target.name} took over {TIMEOUT_SECONDS} s: {' '.join(command[:4])}"
            ) from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = " ".join(lines[:3])[:400] or f"exit code {done.returncode}"
        raise ToolchainError(f"linking for {target.name} failed: {reason}")


def driver(target: Target) -> list[str]:
    """Return the compiler driver for a target, with the arguments that select it.

    Raises:
        ToolchainError: it is not installed.
    """
    if target.linker == "zig":
        package = importlib.util.find_spec("ziglang")
        if package is None or not package.submodule_search_locations:
            raise ToolchainError("package ziglang is not installed; pip install ziglang")
        # The program itself: `python -m ziglang` only finds it, at the price of another Python.
        program = Path(package.submodule_search_locations[0]) / "zig"
        return [str(program), "cc", "-target", zig_triple(target)]
    path = shutil.which(target.linker)
    if path is None:
        raise ToolchainError(
            f"linker {target.linker!r} of target {target.name} is not on PATH; install it, or set "
            'linker = "zig" in the target file'
        )
    return [path]


def zig_triple(target: Target) -> str:
    """Return Zig's name of an architecture with the C library's version.

    >>> from edgec.targets import load_target
    >>> zig_triple(load_target("rpi3-32bit"))
    'arm-linux-gnueabihf.2.28'
    """
    system = target.triple.rpartition("-")[2]
    return f"{target.instruction_set.zig}-linux-{system}.{target.glibc}"
