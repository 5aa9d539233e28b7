"""Have 500 simulated boards on loopback follow one release through one coordinator.

    python tests/benchmarks/benchmark_fleet.py [BOARDS [FAIL_PERCENT]]

A simulated board reads a real repository with the real client (metadata and the release's
description), asks the coordinator, installs nothing, and reports. Prints the coordinator's peak
memory and the time of all, then what a release that fails on too many boards came to.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.releases import CHANNEL, Releases
from support.signed_bundle import make_signed_bundle

from edgec.compiler.update.client import Mirror, UpdateClient
from edgec.compiler.update.reports import Report, ask_coordinator, board_key, send_report

SECRET = "fleet" * 8
WORKERS = 16
COMMAND = [sys.executable, "-m", "edgec.compiler", "fleet", "serve"]


def simulate(
    url: str, releases: Releases, folder: Path, name: str, number: int, works: bool
) -> bool:
    """Return whether one board installed a release; it asks again while others are first."""
    key = board_key(SECRET, name)
    folder.mkdir()
    client = UpdateClient(folder, releases.root, [Mirror.of(str(releases.folder))])
    release = client.find(CHANNEL, name)
    assert release is not None
    assert release.number == number
    while True:
        answer = send_report(url, key, name, Report(channel=CHANNEL, wants=number))
        if answer.proceed:
            break
        if "stopped" in answer.reason:
            return False
        time.sleep(0.05)
    failed = {} if works else {number: "simulated"}
    installed = number if works else number - 1 or None
    send_report(url, key, name, Report(channel=CHANNEL, installed=installed, failed=failed))
    return True


def peak_mb(process: int) -> float:
    """Return the most memory that a process had [MB]."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(peak) * 1024 / 1e6


def main(boards: int = 500, fail_percent: int = 20) -> None:
    """Print what was measured."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CONFIG_HOME"] = name
        signed = make_signed_bundle(folder)
        releases = Releases.new(folder / "repository")
        secret = folder / "secret"
        secret.write_text(SECRET)
        with subprocess.Popen(
            [*COMMAND, folder / "fleet", "--secret-file", secret, "--port", "0"],
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            for number, failing in ((1, 0), (2, fail_percent)):
                releases.open().publish(CHANNEL, signed.path)
                begun = time.perf_counter()

                def one(board: int, number: int = number, failing: int = failing) -> bool:
                    where = folder / f"{number}-{board}"
                    works = board % 100 >= failing
                    return simulate(url, releases, where, f"board-{board}", number, works)

                with ThreadPoolExecutor(WORKERS) as workers:
                    took = sum(workers.map(one, range(boards)))
                seconds = time.perf_counter() - begun
                found = json.loads(ask_coordinator(url, SECRET, "status"))
                (status,) = [r for r in found["releases"] if r["number"] == number]
                print(f"release {number}: {boards} boards, {took} began, {seconds:.1f} s: {status}")
            print(f"the coordinator's peak is {peak_mb(process.pid):.0f} MB")
            process.send_signal(signal.SIGINT)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"children's CPU time {used.ru_utime + used.ru_stime:.1f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
