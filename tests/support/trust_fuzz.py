"""Build and run `fuzz_trust.c`, with sanitizers of GCC."""

import os
import shutil
import subprocess
from pathlib import Path

from edgec.compiler.trust.age import Identity, encrypt_file
from edgec.compiler.trust.keys import new_key
from edgec.compiler.trust.native import FOLDER, SOURCES
from edgec.compiler.trust.policy import Policy
from edgec.compiler.trust.signature import Digest, sign

GCC = shutil.which("gcc")
# One whole chunk and a part.
PLAIN_BYTES = (1 << 16) + 1000


def prepare(folder: Path) -> None:
    """Write what is damaged; the variable XDG_CONFIG_HOME names a folder of the test."""
    keys = [new_key(name) for name in ("one", "two")]
    files = {f"f/{number}.npy": Digest(number, f"{number:064x}") for number in range(5)}
    # Of two signatures one may go, with its line: the other is still true.
    (folder / "signature.txt").write_bytes(sign(files, keys[:1]))
    rules = Policy(folder / "trust.toml").with_trusted("one", keys[0].public)
    rules.with_revoked("two", keys[1].public).write()
    identity, other = Identity.new(), Identity.new()
    (folder / "board.identity").write_text(f"# for a board\n{identity}\n")
    (folder / "plain").write_bytes(os.urandom(PLAIN_BYTES))
    encrypt_file(folder / "plain", folder / "x.age", [other.recipient, identity.recipient])


def build(folder: Path, sanitizers: str = "address") -> Path:
    """Return the program, built with some of GCC's sanitizers."""
    assert GCC is not None
    program = folder / "fuzz_trust"
    sources = [FOLDER / name for name in SOURCES]
    options = ["-std=gnu11", "-O1", "-g", f"-fsanitize={sanitizers}", f"-I{FOLDER}"]
    options += ["-fno-sanitize-recover=all"]
    main = Path(__file__).with_name("fuzz_trust.c")
    subprocess.run([GCC, *options, "-o", program, main, *sources], check=True)
    return program


def run(program: Path, folder: Path, seed: int, cases: int) -> None:
    """Run some cases.

    Raises:
        AssertionError: with what the program said.
    """
    command = [str(program), str(folder), str(seed), str(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
