"""Provide time rounds in a process of its own: `measure.py` reads a request and answers, as JSON.

A kernel that crashes or hangs takes this process with it and not the tuner. It needs NumPy and
the libraries, of edgec only their C interface.

Request: `models` (each `library`, `output_bytes` and `inputs`; these `bytes` and either `file` and
`offset` or `scale`), `threads`, `cores` to stay on, `seconds` to spend on each, `least_runs`, and
perhaps `outputs`, a file to write the outputs of the last run to, one after the other.
Answer: for each model `seconds` of each step, `spread` of whole runs (interquartile range over
median) and `runs`. Several models take turns in short bursts.
"""

import ctypes
import json
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgec.compiler.runtime.library import load_model, pointers

ALIGNMENT = 64
WARM_UP = 2
# A run slower than the median by more than this share was disturbed.
OUTLIER = 0.25
# Runs end before their time when the median is known so well, but not in one short burst.
STABLE = 0.001
LEAST_SHARE = 0.25
# Bursts of each of several models.
TURNS = 5
_PR_SET_PDEATHSIG = 1
# Numbers of this many values are repeated to fill larger weights.
BLOCK = 1 << 18

Run = Callable[[], list[int]]
"""Runs a model once and gives the nanoseconds of its steps."""


def main() -> None:
    """Answer one request."""
    end_with_parent()
    request = json.load(sys.stdin)
    if request["cores"]:
        os.sched_setaffinity(0, request["cores"])
    json.dump(measure(request), sys.stdout)


def end_with_parent() -> None:
    """Let the system kill this process when the tuner ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def measure(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Load, run, time."""
    models = [_HostModel(model, request["threads"]) for model in request["models"]]
    answer = take_turns([model.run for model in models], request)
    save(request, [result for model in models for result in model.results])
    return answer


class _HostModel:
    """A host model is a library that is loaded, with memory to run it on."""

    def __init__(self, model: dict[str, Any], threads: int) -> None:
        self._model = load_model(model["library"])
        self._session = self._model.open(threads)
        if not self._session:
            raise MemoryError("no memory or no threads for the model")
        self._memory = [filled(spec) for spec in model["inputs"]]
        self.results = [aligned(size) for size in model["output_bytes"]]
        self._arguments = (pointers(self._memory), pointers(self.results))
        self._count = self._model.step_count
        self._times = (ctypes.c_uint64 * max(1, self._count))()

    def run(self) -> list[int]:
        """See `Run`."""
        status = self._model.run_timed(self._session, *self._arguments, self._times)
        if status != 0:
            raise MemoryError("no memory for the model")
        return list(self._times[: self._count])


def take_turns(models: list[Run], request: dict[str, Any]) -> list[dict[str, Any]]:
    """Time models in turn until each has had its time, or is known well."""
    turns = TURNS if len(models) > 1 else 1
    seconds, least = request["seconds"] / turns, request["least_runs"]
    runs: list[list[list[int]]] = [[] for _ in models]
    for _ in range(turns):
        for run, times in zip(models, runs, strict=True):
            for _ in range(WARM_UP):
                run()
            started, first = time.monotonic(), len(times)
            while len(times) - first < least or not _enough(
                times[first:], time.monotonic() - started, seconds
            ):
                times.append(run())
    return [statistics_of(np.array(times, np.float64) * 1e-9) for times in runs]


def _enough(runs: list[list[int]], spent: float, seconds: float) -> bool:
    """Return whether the median is known well, or the time is over."""
    if spent >= seconds:
        return True
    if spent < seconds * LEAST_SHARE or len(runs) % 64:
        return False
    totals = np.array([sum(run) for run in runs], np.float64)
    middle = np.median(totals)
    deviation = np.median(np.abs(totals - middle)) / middle
    return bool(deviation / len(totals) ** 0.5 < STABLE)


def save(request: dict[str, Any], results: list[Any]) -> None:
    """Write the outputs, if they are asked for."""
    if "outputs" in request:
        with Path(request["outputs"]).open("wb") as stream:
            stream.writelines(result.tobytes() for result in results)


def statistics_of(runs: Any) -> dict[str, Any]:
    """Median time of each step over the runs that were not disturbed."""
    totals = runs.sum(1)
    kept = runs[totals <= np.median(totals) * (1 + OUTLIER)]
    low, middle, high = np.percentile(totals, [25, 50, 75])
    return {
        "seconds": np.median(kept, axis=0).tolist(),
        "spread": float((high - low) / middle),
        "runs": len(kept),
    }


def filled(spec: dict[str, Any]) -> Any:
    """Return aligned memory with the contents that an input is to have."""
    array = aligned(spec["bytes"])
    if "file" in spec:
        with Path(spec["file"]).open("rb") as stream:
            if spec["bytes"]:
                view = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
                start = spec["offset"]
                array[:] = np.frombuffer(view, np.uint8, spec["bytes"], start)
        return array
    values = array[: spec["bytes"] // 4 * 4].view(np.float32)
    block = np.random.default_rng(0).standard_normal(min(BLOCK, values.size), np.float32)
    block *= np.float32(spec["scale"])
    for start in range(0, values.size, BLOCK):
        part = values[start : start + BLOCK]
        part[:] = block[: part.size]
    return array


def aligned(size: int) -> Any:
    """Return zeros whose first byte is aligned."""
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]


if __name__ == "__main__":
    main()
