"""Provide the place where work is done: processes of this machine, or a cluster of Dask.

Work is a function of a module and arguments that can be pickled, given to an `Executor`.
"""

from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from edgec.compiler.errors import EdgecError, JobLostError, UsageError
from edgec.compiler.jobs.local import LocalExecutor
from edgec.compiler.jobs.shared_path import SharedPath
from edgec.compiler.support.cores import usable_cores
from edgec.compiler.support.limits import check_count

_T = TypeVar("_T")

MAX_WORKERS = 1024
REASON_CHARACTERS = 300


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Job options describe where work is done.

    Attributes:
        cluster: address of a Dask scheduler, `tcp://host:port` or `tls://host:port`; empty: here.
        workers: processes here; None: one for each core. A cluster has its own number.
    """

    cluster: str = ""
    workers: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: says which setting.
        """
        check_count("--workers", self.workers, 1, MAX_WORKERS)
        if self.cluster and self.workers is not None:
            raise UsageError("--workers and --cluster contradict each other: a cluster has its own")


class Pool(Protocol):
    """A pool is where work is done."""

    def executor(self, place: str = "") -> Executor:
        """Return what takes calls.

        Args:
            place: the resource that a worker of a cluster must offer, such as a board's name or
                `host-CPU`; it is held by one call at a time. Empty: any worker.

        Raises:
            ClusterError: no worker offers it.
        """
        ...

    def offers(self, place: str) -> bool:
        """Return whether a worker of a cluster offers a resource; False where there is none."""
        ...

    def share(self, path: Path) -> SharedPath:
        """Return a file or folder as an argument of calls, which find it wherever they run."""
        ...


@dataclass(frozen=True)
class Failure:
    """A failure says why a piece of work gave nothing.

    Attributes:
        why: in one line.
        lost: whether its process or machine died, so that it may work another time.
    """

    why: str
    lost: bool = False


def outcome(future: "Future[_T]") -> _T | Failure:
    """Return what a call gave, or why it gave nothing; waits for it.

    Raises:
        CancelledError: it was called off.
    """
    try:
        return future.result()
    except CancelledError:
        raise
    except JobLostError as error:
        return Failure(str(error), lost=True)
    except EdgecError as error:
        return Failure(str(error))
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        why = (lines[-1].strip() if lines else type(error).__name__)[:REASON_CHARACTERS]
        # Dask's, which is not imported for its sake.
        lost = type(error).__name__ == "KilledWorker"
        return Failure(f"the workers that ran it died: {why}" if lost else why, lost)


@contextmanager
def open_pool(options: JobOptions) -> Iterator[Pool]:
    """Provide the workers; what still waits is called off at the end.

    Raises:
        ClusterError: the cluster cannot be reached or does not fit.
        ToolchainError: the package `distributed` is missing.
    """
    if options.cluster:
        from edgec.compiler.jobs.cluster import open_cluster

        with open_cluster(options.cluster) as cluster:
            yield cluster
        return
    here = _Here(options.workers or usable_cores())
    try:
        yield here
    finally:
        here.close()


class _Here:
    def __init__(self, workers: int) -> None:
        self._executor = LocalExecutor([None] * workers)

    def executor(self, place: str = "") -> Executor:
        return self._executor

    def offers(self, place: str) -> bool:
        return False

    def share(self, path: Path) -> SharedPath:
        return SharedPath(path.resolve())

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)
