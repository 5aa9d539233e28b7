"""Measure how a bundle starts: a program of its own, so that nothing is warm or loaded before.

`python -m edgec.compiler.bench.start_up BUNDLE THREADS` prints `[milliseconds, MiB]` for the
process that started it.
"""

import json
import resource
import sys
import time
from pathlib import Path

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.runtime.inputs import generate_inputs


def measure(path: str, threads: int) -> tuple[float, float]:
    """Return time from the library to the first result [ms].

    And memory that it made resident [MiB].
    """
    bundle = Bundle.load(path)
    manifest = bundle.manifest
    inputs = generate_inputs(manifest.signature.inputs, 0, manifest.settings.index_bounds)
    before = _resident_mib()
    start = time.perf_counter()
    session = bundle.open(threads)
    session.run(inputs)
    elapsed = (time.perf_counter() - start) * 1e3
    return elapsed, _resident_mib() - before


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    json.dump(measure(sys.argv[1], int(sys.argv[2])), sys.stdout)
