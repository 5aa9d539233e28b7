"""Measure a bundle; called where work is done, see `jobs`."""

from edgec.compiler.bench.compare import bench_bundles
from edgec.compiler.boards.remote_timing import BoardTimes
from edgec.compiler.boards.run import bench_on
from edgec.compiler.jobs.shared_path import SharedPath

SECONDS = 1.0


def measure_latency(bundle: SharedPath, board: str) -> float | None:
    """Return the median latency of a bundle on one thread [ms]; None where instructions count.

    Args:
        bundle: the bundle.
        board: a board's name; empty: this machine.

    Raises:
        BundleError: it does not run there.
        BoardError: the board cannot be reached, or failed.
    """
    path = bundle.open()
    if not board:
        return bench_bundles([path], seconds=SECONDS).bundles[0].median_ms
    times = bench_on(board, path, seconds=SECONDS)
    return times.latency.median_ms if isinstance(times, BoardTimes) else None
