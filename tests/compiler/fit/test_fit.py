"""`edgec fit` from end to end: a kill loses nothing, and its command makes the same bundle."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from support.cli_calls import Call

from edgec.compiler.bundle.bundle import Bundle

SHAPE = ["--shape", "image=1,1,8,8"]


def facts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("*.json"))}


def test_a_killed_search_goes_on_and_its_command_makes_the_same_bundle(
    call: Call, digits: Path, tmp_path: Path
) -> None:
    images = load_digits().images[:16, None] / 16
    np.save("images.npy", images.astype(np.float32))
    arguments = ["fit", str(digits), *SHAPE, "-t", "rpi4", "--drop", "20%", "--recipes", "int8"]
    arguments += [
        "--latency",
        "1s",
        "--calibration",
        "images.npy",
        "-o",
        "best.edgec",
        "--workers",
        "1",
    ]
    run = subprocess.Popen(
        [sys.executable, "-m", "edgec.compiler", *arguments], start_new_session=True
    )
    folder = tmp_path / "best.fit"
    while not list(folder.glob("evaluated-*.json")) and run.poll() is None:
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    before = facts(folder)
    assert before
    assert not (tmp_path / "best.edgec").exists()

    code, out, err = call(*arguments, "--report", "fit.json")
    assert code == 0, err
    after = facts(folder)
    assert {name: after[name] for name in before} == before
    report = json.loads((tmp_path / "fit.json").read_text())
    tried = [trial for trial in report["trials"] if trial["costs"] is not None]
    assert tried[0]["version"] == "as it is"
    work = report["work"]
    found = {kind: sum(name.startswith(kind) for name in after) for kind in work}
    assert all(work[kind] <= found[kind] for kind in work)
    assert work["evaluated"] < found["evaluated"] == len(tried) == 2
    assert report["command"] == out.splitlines()[-1]

    made = Bundle.load(tmp_path / "best.edgec").manifest
    words = shlex.split(report["command"])
    assert words[0] == "edgec"
    assert call(*words[1:-1], "again.edgec", "-q")[0] == 0
    assert Bundle.load(tmp_path / "again.edgec").manifest == made
