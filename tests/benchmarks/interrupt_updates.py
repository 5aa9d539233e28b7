"""Kill updates and cut their link at 200 points each; a model has to work after every one.

    python tests/benchmarks/interrupt_updates.py [KILLS [CUTS]]

Each interrupted update starts from a board that runs release 1. Then what `current` is has to load
and to pass its vectors, and another update has to bring release 2. The negative control is an agent
without slots, at the same points.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

# This process forks.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

from support.interrupted_updates import measure
from support.releases import CHANNEL, Releases, changed_bundle
from support.signed_bundle import make_signed_bundle


def main(kills: int = 200, cuts: int = 200) -> None:
    """Print what was found, as JSON."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CONFIG_HOME"] = name
        signed = make_signed_bundle(folder)
        second = changed_bundle(
            signed.path, folder / "second.edgec", signed.key, {"note.txt": os.urandom(20_000)}
        )
        releases = Releases.new(folder / "repository")
        releases.open().publish(CHANNEL, signed.path)
        assert releases.board(folder / "board").update().what == "installed"
        releases.open().publish(CHANNEL, second)
        print(json.dumps(measure(folder / "board", kills, cuts)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
