"""Time a round on a board: as `measure.py`, for a library that is sent there first.

TVM's client holds Python's lock while it waits, so this too is a process of its own. Besides the
fields of `measure.py` the request holds `board` (its configuration). The answer is the same, or
`failure` with `reached`: whether the board answered at all.
"""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from edgec.compiler.boards.config import Board
from edgec.compiler.boards.rpc import BoardSession, open_session
from edgec.compiler.errors import BoardError
from edgec.compiler.tune.measure import WARM_UP, end_with_parent, filled, save, statistics_of

STEP_SECONDS = 300.0
NAME = "round.so"


def main() -> None:
    """Answer one request."""
    end_with_parent()
    request = json.load(sys.stdin)
    # TVM writes to standard output as well.
    with contextlib.redirect_stdout(sys.stderr):
        answer = measure(request)
    json.dump(answer, sys.stdout)


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Connect, send, load, run, time."""
    board = Board.model_validate(request["board"])
    reached = False
    try:
        with open_session(board) as session:
            reached = True
            session.send(Path(request["library"]), NAME)
            return _time(session, request)
    except BoardError as error:
        return {"failure": str(error), "reached": reached}


def _time(session: BoardSession, request: dict[str, Any]) -> dict[str, Any]:
    with session.step("load a round", STEP_SECONDS):
        module = session.load_module(NAME)
        handle = module["edgec_open"](request["threads"])
        if not handle:
            raise RuntimeError("no memory or no threads for the model")
    with session.step("fill its inputs", STEP_SECONDS):
        given = [session.tensor(filled(spec)) for spec in request["inputs"]]
        taken = [session.tensor(np.zeros(size, np.uint8)) for size in request["output_bytes"]]
        times = session.tensor(np.zeros(8 * request["steps"], np.uint8))
    runs: list[Any] = []
    started, spent = time.monotonic(), 0.0
    while len(runs) < WARM_UP + request["least_runs"] or spent < request["seconds"]:
        with session.step("time a round", STEP_SECONDS):
            status = int(module["edgec_run_timed"](handle, *given, *taken, times))
            if status != 0:
                raise RuntimeError(f"the model gave status {status}: no memory on the board")
            runs.append(times.numpy().view(np.uint64))
        spent = time.monotonic() - started
    with session.step("read the outputs", STEP_SECONDS):
        if "outputs" in request:
            save(request, [tensor.numpy() for tensor in taken])
        module["edgec_close"](handle)
    return statistics_of(np.array(runs[WARM_UP:], np.float64) * 1e-9)


if __name__ == "__main__":
    # Loaded before the board's session begins: it must not be loaded while a step's time runs.
    assert tvm.__version__
    main()
