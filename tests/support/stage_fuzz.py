"""Build and run `fuzz_stage.c`, with sanitizers of GCC."""

import shutil
import subprocess
from pathlib import Path

from edgec.compiler.bundle.runner import FOLDER as RUNNER
from edgec.compiler.codegen.executor import FOLDER as EXECUTOR
from edgec.compiler.trust.native import FOLDER as TRUST

GCC = shutil.which("gcc")


def build(folder: Path, sanitizers: str = "address,undefined") -> Path:
    """Return the program, built with some of GCC's sanitizers."""
    assert GCC is not None
    program = folder / "fuzz_stage"
    options = ["-std=gnu11", "-O1", "-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    includes = [f"-I{path}" for path in (RUNNER, EXECUTOR, TRUST)]
    sources = [Path(__file__).with_name("fuzz_stage.c"), RUNNER / "stage.c"]
    sources += [RUNNER / "connection.c", TRUST / "noise.c"]
    # Monocypher is not ours, and takes sanitizers a while.
    cipher = folder / "monocypher.o"
    subprocess.run([GCC, "-O1", "-c", "-o", cipher, TRUST / "monocypher.c"], check=True)
    command = [GCC, *options, *includes, "-o", program, *sources, cipher, "-lpthread"]
    subprocess.run(command, check=True)
    return program


def run(program: Path, seed: int, cases: int) -> None:
    """Run some cases.

    Raises:
        AssertionError: with the last that the program said.
    """
    command = [str(program), str(seed), str(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
