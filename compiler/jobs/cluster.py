"""Provide work on a cluster of Dask: https://distributed.dask.org.

Certificates for `tls://` are those of Dask's own settings (`distributed.comm.tls`). What is
scheduled where, what is repeated when a worker dies, and after how many deaths a call is given up
(`distributed.scheduler.allowed-failures`) is Dask's business.
"""

import importlib.metadata
import logging
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgec.compiler.errors import ClusterError, ToolchainError, UsageError
from edgec.compiler.jobs.shared_path import Archive, SharedPath

SECONDS = 10.0
_KINDS = ("tcp://", "tls://")


@contextmanager
def open_cluster(address: str) -> Iterator["Cluster"]:
    """Provide the workers of a scheduler.

    Raises:
        UsageError: the address is of another kind.
        ToolchainError: the package `distributed` is missing.
        ClusterError: it cannot be reached, refuses us, has no workers, or another edgec.
    """
    if not address.startswith(_KINDS):
        raise UsageError(f"--cluster {address}: write tcp://HOST:PORT or tls://HOST:PORT")
    try:
        from distributed import Client
    except ImportError:
        raise ToolchainError(
            'a cluster needs the package distributed: pip install "edgec[cluster]"'
        ) from None
    # It tells its own story of what we say in one line.
    for name in ("distributed.comm", "distributed.core", "distributed.client", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    connect: Any = Client
    try:
        client = connect(address, timeout=SECONDS, set_as_default=False)
    except (OSError, TypeError, ValueError) as error:
        raise ClusterError(f"cluster {address}: {_reason(error)}") from None
    try:
        _check_workers(client, address)
        yield Cluster(client)
    finally:
        client.close(timeout=SECONDS)


def _reason(error: BaseException) -> str:
    """Return what is at the bottom of an error, in one line."""
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(inner)
    texts = [str(each) for each in chain]
    if any("certificate" in text.lower() or "ssl" in text.lower() for text in texts):
        text = next(t for t in reversed(texts) if "certificate" in t.lower() or "ssl" in t.lower())
        return (
            f"the certificates do not match ({_one_line(text)}); set those of this cluster, "
            "DASK_DISTRIBUTED__COMM__TLS__CA_FILE and __CLIENT__CERT, __CLIENT__KEY"
        )
    return f"no scheduler answers within {SECONDS:.0f} s; is `dask scheduler` running there?"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]


def _check_workers(client: Any, address: str) -> None:
    """Refuse a cluster that cannot do our work.

    Raises:
        ClusterError: there are no workers, or they have another edgec.
    """
    try:
        client.wait_for_workers(1, timeout=SECONDS)
    except TimeoutError:
        raise ClusterError(
            f"cluster {address} has no workers; start some: dask worker {address} --nthreads 1"
        ) from None
    own = importlib.metadata.version("edgec")
    try:
        found: dict[str, str] = client.run(importlib.metadata.version, "edgec")
    except importlib.metadata.PackageNotFoundError:
        raise ClusterError(f"cluster {address}: a worker has no edgec; install {own}") from None
    except OSError as error:
        raise ClusterError(f"cluster {address}: {_one_line(str(error))}") from None
    others = {worker: version for worker, version in found.items() if version != own}
    for worker, version in others.items():
        raise ClusterError(f"cluster {address}: {worker} has edgec {version}, here is {own}")


class Cluster:
    """A cluster is the workers of one scheduler."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def executor(self, place: str = "") -> Executor:
        """Return what takes calls; see `Pool`.

        Raises:
            ClusterError: no worker offers the place.
        """
        if place and not self.offers(place):
            raise ClusterError(
                f"no worker of the cluster offers {place}; start one where it is, with "
                f'--resources "{place}=1"'
            )
        resources = {"resources": {place: 1}} if place else {}
        executor: Executor = self._client.get_executor(pure=False, **resources)
        return executor

    def offers(self, place: str) -> bool:
        """Return whether a worker offers a resource."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        return any(place in worker["resources"] for worker in workers)

    def share(self, path: Path) -> SharedPath:
        """Return a file or folder, which every worker gets once, those to come as well."""
        from edgec.compiler.jobs.worker_plugin import UnpackFiles

        archive = Archive.of(path)
        self._client.register_plugin(UnpackFiles(archive))
        return SharedPath(path.resolve(), archive.sha256)
