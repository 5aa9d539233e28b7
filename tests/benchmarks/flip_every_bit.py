"""Flip every bit of every file of a small signed bundle: Python and the runner refuse each.

    XDG_CONFIG_HOME=/tmp/flips python tests/benchmarks/flip_every_bit.py [--every N]

The suite flips a few (tests/compiler/trust/test_signature.py). Prints the flips of each file and
the time. The runner is a process of its own for each flip, as it is on a board.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from support.signed_bundle import SignedBundle, make_signed_bundle

from edgec.compiler import Bundle
from edgec.compiler.errors import TrustError


def main() -> None:
    """Flip, ask both, and count."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--every", type=int, default=1, metavar="N", help="One bit in N.")
    every = arguments.parse_args().every
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CONFIG_HOME"] = name
        bundle = make_signed_bundle(Path(name))
        start, total = time.monotonic(), 0
        for file in sorted(path for path in bundle.path.rglob("*") if path.is_file()):
            flips = flip(bundle, file, every)
            total += flips
            path = file.relative_to(bundle.path)
            print(f"{path}: {flips} flips, {time.monotonic() - start:.0f} s", flush=True)
        print(f"{total} flips, all refused by Python and by the runner")


def flip(bundle: SignedBundle, file: Path, every: int) -> int:
    """Flip the bits of a file one after the other; how many.

    Raises:
        AssertionError: one was not refused.
    """
    data = file.read_bytes()
    command = [str(bundle.runner), "--bundle", str(bundle.path), "--input", str(bundle.image)]
    environment = {"XDG_CONFIG_HOME": str(bundle.image.parent)}
    places = range(0, 8 * len(data), every)
    for place in places:
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        file.write_bytes(changed)
        try:
            Bundle.load(bundle.path)
        except TrustError:
            pass
        else:
            raise AssertionError(f"Python takes {file} with bit {place} flipped")
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        where = f"{file} with bit {place} flipped: {done}"
        assert done.returncode == 8, where
        assert not done.stdout, where
        assert done.stderr.startswith(b"run: error: bundle "), where
    file.write_bytes(data)
    return len(places)


if __name__ == "__main__":
    main()
