"""Send damaged frames to a stage, under sanitizers.

python tests/benchmarks/fuzz_stage.py [--cases N] [--seed N]
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from support.stage_fuzz import build, run


def main() -> None:
    """Run all cases under the sanitizers of addresses and behaviour, some under that of threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    for sanitizers, share in (("address,undefined", 1), ("thread", 4)):
        with tempfile.TemporaryDirectory() as folder:
            run(build(Path(folder), sanitizers), arguments.seed, arguments.cases // share)
        print(
            f"{arguments.cases // share} sessions with damaged frames: {sanitizers}: nothing found"
        )


if __name__ == "__main__":
    main()
