"""Provide what Dask runs when a worker starts: files that calls need are unpacked there.

The scheduler keeps it, so that workers that take the place of dead ones have the files, too.
"""

from distributed import Worker, WorkerPlugin

from edgec.compiler.jobs.shared_path import Archive, unpacked_folder


class UnpackFiles(WorkerPlugin):
    """Unpacks an archive on every worker."""

    idempotent = True

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.name = f"edgec-{archive.sha256}"

    def setup(self, worker: Worker) -> None:
        """Unpack it below the folder of a worker."""
        self.archive.unpack(unpacked_folder(worker.local_directory, self.archive.sha256))
