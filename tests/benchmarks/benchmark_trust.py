"""Measure what signatures and encryption cost when a bundle is loaded.

    python tests/benchmarks/benchmark_trust.py BUNDLE [--rounds N]

The bundle was compiled with --runner for this machine. Its variants (plain, signed under a policy,
encrypted, both) take turns; medians are printed, and their ratios to the plain one and to the
signed one. `runner` is the whole process up to its end, with one run; `python` is Bundle.load and
open in a process that imported edgec; both read files that the system has in memory.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from edgec.compiler import Bundle
from edgec.compiler.bundle.bundle import write_bundle
from edgec.compiler.bundle.manifest import ENCRYPTED, LIBRARY
from edgec.compiler.trust.age import encrypt_file
from edgec.compiler.trust.identities import new_identity
from edgec.compiler.trust.keys import keys_folder, load_public_key, new_key
from edgec.compiler.trust.policy import Policy, policy_file

PYTHON = """
import sys, time
from edgec.compiler import Bundle
import edgec.compiler.runtime.session, cryptography.hazmat.primitives.ciphers.aead
import cryptography.hazmat.primitives.asymmetric.ed25519
start = time.perf_counter()
Bundle.load(sys.argv[1]).open(1)
print(time.perf_counter() - start)
"""


def variants(bundle: Bundle, folder: Path) -> dict[str, Path]:
    """Write the variants; each by its name."""
    manifest = bundle.manifest
    embedded = "embed/"
    plain = {n: bundle.path / n for n in manifest.files if not n.startswith(embedded)}
    key, identity = new_key("maker"), new_identity("board")
    encrypt_file(bundle.path / LIBRARY, folder / ENCRYPTED, [identity.recipient])
    hidden = {**{n: p for n, p in plain.items() if n != LIBRARY}, ENCRYPTED: folder / ENCRYPTED}
    made = {}
    for name, files, keys in (
        ("plain", plain, ()),
        ("signed", plain, (key,)),
        ("encrypted", hidden, ()),
        ("encrypted and signed", hidden, (key,)),
    ):
        made[name] = write_bundle(folder / f"{name}.edgec", manifest, files, keys).path
    return made


def runner_seconds(bundle: Path) -> float:
    """Return the time of a process of the runner."""
    start = time.perf_counter()
    subprocess.run([bundle / "run", "--threads", "1"], check=True, capture_output=True)
    return time.perf_counter() - start


def python_seconds(bundle: Path) -> float:
    """Return the time of load and open in Python."""
    command = [sys.executable, "-c", PYTHON, str(bundle)]
    return float(subprocess.run(command, check=True, capture_output=True).stdout)


def main() -> None:
    """Measure in turns and print."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("bundle", type=Path)
    arguments.add_argument("--rounds", type=int, default=7)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CONFIG_HOME"] = name
        made = variants(Bundle.load(given.bundle), folder)
        os.environ["EDGEC_IDENTITY"] = f"file:{keys_folder() / 'board.identity'}"
        rules = Policy(policy_file(), require_signature=False)
        rules.with_trusted("maker", load_public_key("maker")).write()
        measure("runner", made, runner_seconds, given.rounds)
        measure("python", made, python_seconds, given.rounds)


def measure(
    title: str, made: dict[str, Path], seconds: Callable[[Path], float], rounds: int
) -> None:
    """Print medians of a way to load, with ratios."""
    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, path in made.items():
            times[name].append(seconds(path))
    medians = {name: statistics.median(found) for name, found in times.items()}
    for name, median in medians.items():
        print(
            f"{title:7} {name:21} {median * 1e3:8.1f} ms  {median / medians['plain']:5.2f} of plain"
            f"  {median / medians['signed']:5.2f} of signed"
        )


if __name__ == "__main__":
    main()
