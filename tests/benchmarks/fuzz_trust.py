"""Fuzz what the runner reads of signatures, policies, keys and encrypted files, under sanitizers.

python tests/benchmarks/fuzz_trust.py [--cases N] [--seed N]
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from support.trust_fuzz import build, prepare, run


def main() -> None:
    """Run the cases and say how long they took."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--cases", type=int, default=100_000)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CONFIG_HOME"] = name
        prepare(Path(name))
        program = build(Path(name), "address,undefined")
        start = time.monotonic()
        run(program, Path(name), given.seed, given.cases)
        print(f"{given.cases} cases in {time.monotonic() - start:.0f} s: none was accepted")


if __name__ == "__main__":
    main()
