"""Work on a cluster of Dask: files that travel, places, certificates, and what is refused."""

from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from distributed import LocalCluster
from distributed.security import Security

from edgec.compiler.errors import ClusterError, UsageError
from edgec.compiler.jobs import cluster as cluster_module
from edgec.compiler.jobs.pool import JobOptions, open_pool
from edgec.compiler.jobs.shared_path import SharedPath


@pytest.fixture(scope="module")
def security() -> Security:
    return Security.temporary()


@pytest.fixture(scope="module")
def local(security: Security) -> Iterator[LocalCluster]:
    """A cluster of one worker in this process, which offers the board `shelf`."""
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        dashboard_address=None,
        protocol="tls",
        security=security,
        resources={"shelf": 1},
    ) as made:
        yield made


def certificates(security: Security, folder: Path) -> dict[str, str]:
    """Return settings of Dask for the files of some certificates."""
    folder.mkdir()
    for name, text in (("ca", security.tls_ca_file), ("cert", security.tls_client_cert)):
        (folder / name).write_text(text)
    (folder / "key").write_text(security.tls_client_key)
    tls = "distributed.comm.tls"
    return {
        f"{tls}.ca-file": str(folder / "ca"),
        f"{tls}.client.cert": str(folder / "cert"),
        f"{tls}.client.key": str(folder / "key"),
    }


def read(shared: SharedPath) -> tuple[str, bool]:
    """Return what a worker reads, and whether it has a copy of its own."""
    path = shared.open()
    return path.read_text(), path != shared.path


def test_files_travel_and_calls_go_to_places(
    local: LocalCluster, security: Security, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("hello")
    options = JobOptions(cluster=local.scheduler_address)
    with dask.config.set(certificates(security, tmp_path / "tls")), open_pool(options) as pool:
        shared = pool.share(tmp_path / "a.txt")
        assert pool.executor().submit(read, shared).result(10) == ("hello", True)
        assert pool.executor("shelf").submit(int, "3").result(10) == 3
        assert pool.offers("shelf")
        with pytest.raises(ClusterError, match="no worker of the cluster offers attic"):
            pool.executor("attic")


def test_a_wrong_certificate_is_refused(
    local: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "SECONDS", 1.0)
    other = certificates(Security.temporary(), tmp_path / "tls")
    options = JobOptions(cluster=local.scheduler_address)
    refused = pytest.raises(ClusterError, match="certificates do not match")
    with dask.config.set(other), refused, open_pool(options):
        pass


def test_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "SECONDS", 0.3)
    refused = pytest.raises(ClusterError, match="no scheduler answers")
    with refused, open_pool(JobOptions(cluster="tcp://127.0.0.1:9")):
        pass
    wrong = pytest.raises(UsageError, match="tcp://HOST:PORT")
    with wrong, open_pool(JobOptions(cluster="localhost:8786")):
        pass
