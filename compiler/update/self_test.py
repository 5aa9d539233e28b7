"""Test a bundle in a process of its own: its vectors, and how long a run takes.

A model that hangs, crashes or takes all memory takes that process with it and not the agent.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.errors import EdgecError, SelfTestError
from edgec.compiler.parity.compare import worst_of
from edgec.compiler.parity.vectors import compare_vectors

SECONDS = 300.0
_MODULE = "edgec.compiler.update.self_test"
_WARM_UP_RUNS = 2
_MOST_RUNS = 30
_RUN_SECONDS = 2.0


def self_test(
    bundle: Path, most_latency_ms: float | None = None, seconds: float = SECONDS
) -> float:
    """Run a bundle on its test vectors, and time its first one.

    Args:
        bundle: what is tested.
        most_latency_ms: what a median run may take; None: any time.
        seconds: what the whole test may take.

    Returns:
        The median time of a run [ms].

    Raises:
        SelfTestError: it fails, and why.
    """
    command = [sys.executable, "-m", _MODULE, str(bundle)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise SelfTestError(f"its test took over {seconds:g} s") from None
    try:
        result = json.loads(done.stdout)
        problem, latency_ms = result["problem"], float(result["latency_ms"])
    except (ValueError, KeyError, TypeError):
        how = f"by signal {-done.returncode}" if done.returncode < 0 else f"by {done.returncode}"
        raise SelfTestError(f"its test ended {how} and without a result") from None
    if problem:
        raise SelfTestError(problem)
    if most_latency_ms is not None and latency_ms > most_latency_ms:
        raise SelfTestError(
            f"a run takes {latency_ms:.3g} ms here, and {most_latency_ms:g} are allowed"
        )
    return latency_ms


def _measure(path: Path) -> dict[str, object]:
    """Return what is wrong with a bundle, and the median time of a run [ms]."""
    bundle = Bundle.load(path)
    session = bundle.open()
    report = worst_of(compare_vectors(bundle, session))
    report.check("on its test vectors")
    fed, _ = bundle.vectors()[0]
    session.reset()
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < _MOST_RUNS and (not times or time.perf_counter() - begun < _RUN_SECONDS):
        start = time.perf_counter()
        session.run(fed)
        times.append((time.perf_counter() - start) * 1e3)
    return {"problem": "", "latency_ms": statistics.median(times[_WARM_UP_RUNS:] or times)}


def _main(path: Path) -> None:
    try:
        result = _measure(path)
    except (EdgecError, MemoryError) as error:
        result = {"problem": str(error) or "not enough memory", "latency_ms": 0}
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
