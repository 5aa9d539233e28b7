"""Provide time rounds on a board: as `measure.py`, for libraries that are sent there first.

TVM's client holds Python's lock while it waits, so this too is a process of its own. Besides the
fields of `measure.py` a request holds `board` (its configuration). The answer is the same, or
`failure` with `reached`: whether the board answered at all. It answers request after request.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgec.compiler.boards.config import Board
from edgec.compiler.boards.rpc import BoardSession, open_board_session
from edgec.compiler.errors import BoardError
from edgec.compiler.tune.measure import end_with_parent, filled, save, take_turns

STEP_SECONDS = 300.0
NAME = "round.so"


def main() -> None:
    """Answer requests, one line each, until there are no more."""
    end_with_parent()
    # TVM writes to standard output as well.
    with contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            answer = measure(json.loads(line))
            print(json.dumps(answer), file=sys.__stdout__, flush=True)


def measure(request: dict[str, Any]) -> Any:
    """Connect, send, load, run, time."""
    board = Board.model_validate(request["board"])
    reached = False
    try:
        with open_board_session(board) as session:
            reached = True
            models = [
                _RemoteModel(session, f"round-{number}.so", model, request["threads"])
                for number, model in enumerate(request["models"])
            ]
            answer = take_turns([model.run for model in models], request)
            save(request, [result for model in models for result in model.outputs()])
            for model in models:
                model.close()
            return answer
    except BoardError as error:
        return {"failure": str(error), "reached": reached}


class _RemoteModel:
    """A remote model is a library that is loaded on a board, with memory to run it on."""

    def __init__(
        self, session: BoardSession, name: str, model: dict[str, Any], threads: int
    ) -> None:
        self._session = session
        session.send(Path(model["library"]), name)
        with session.step("load a round", STEP_SECONDS):
            self._module = session.load_module(name)
            self._handle = self._module["edgec_open"](threads)
            if not self._handle:
                raise RuntimeError("no memory or no threads for the model")
        with session.step("fill its inputs", STEP_SECONDS):
            given = [session.tensor(filled(spec)) for spec in model["inputs"]]
            self._taken = [session.tensor(np.zeros(n, np.uint8)) for n in model["output_bytes"]]
            self._times = session.tensor(np.zeros(8 * model["steps"], np.uint8))
        self._arguments = [self._handle, 0, *given, *self._taken, self._times]

    def run(self) -> list[int]:
        """See `measure.Run`."""
        with self._session.step("time a round", STEP_SECONDS):
            status = int(self._module["edgec_run_timed"](*self._arguments))
            if status != 0:
                raise RuntimeError(f"the model gave status {status}: no memory on the board")
            return [int(value) for value in self._times.numpy().view(np.uint64)]

    def outputs(self) -> list[Any]:
        """Return what the last run gave."""
        with self._session.step("read the outputs", STEP_SECONDS):
            return [tensor.numpy() for tensor in self._taken]

    def close(self) -> None:
        """Let go of it, while the session stands."""
        with self._session.step("unload a round", STEP_SECONDS):
            self._module["edgec_close"](self._handle)
            del self._arguments, self._taken, self._times, self._module


if __name__ == "__main__":
    main()
