"""Time a round in a process of its own: `measure.py` reads a request and answers, as JSON.

A kernel that crashes or hangs takes this process with it and not the tuner. It needs NumPy and
the library, nothing of edgec.

Request: `library`, `inputs` (each `bytes` and either `file` and `offset` or `scale`),
`output_bytes`, `threads`, `cores` to stay on, `seconds` to spend, `least_runs`, and perhaps
`outputs`, a file to write the outputs of the last run to, one after the other.
Answer: `seconds` of each step, `spread` of whole runs (interquartile range over median), `runs`.
"""

import ctypes
import json
import mmap
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ALIGNMENT = 64
WARM_UP = 2
# A run slower than the median by more than this share was disturbed.
OUTLIER = 0.25
# Runs end before their time when the median is known so well, but not in one short burst.
STABLE = 0.001
LEAST_SHARE = 0.25
_PR_SET_PDEATHSIG = 1
# Numbers of this many values are repeated to fill larger weights.
BLOCK = 1 << 18


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


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Load, run, time."""
    library = ctypes.CDLL(request["library"])
    library.edgec_open.restype = ctypes.c_void_p
    pointer = ctypes.POINTER(ctypes.c_void_p)
    library.edgec_run_timed.argtypes = [
        *(ctypes.c_void_p, pointer, pointer, ctypes.POINTER(ctypes.c_uint64))
    ]
    session = library.edgec_open(request["threads"])
    if not session:
        raise MemoryError("no memory or no threads for the model")
    memory = [filled(spec) for spec in request["inputs"]]
    results = [aligned(size) for size in request["output_bytes"]]
    given, taken = pointers(memory), pointers(results)
    count = library.edgec_step_count()
    times = (ctypes.c_uint64 * max(1, count))()
    runs: list[list[int]] = []
    started = time.monotonic()
    spent = 0.0
    while len(runs) < WARM_UP + request["least_runs"] or not enough(
        runs, spent, request["seconds"]
    ):
        if library.edgec_run_timed(session, given, taken, times) != 0:
            raise MemoryError("no memory for the model")
        runs.append(list(times[:count]))
        spent = time.monotonic() - started
    save(request, results)
    return statistics_of(np.array(runs[WARM_UP:], np.float64) * 1e-9)


def enough(runs: list[list[int]], spent: float, seconds: float) -> bool:
    """Whether the median is known well, or the time is over."""
    if spent >= seconds:
        return True
    if spent < seconds * LEAST_SHARE or len(runs) % 64:
        return False
    totals = np.array([sum(run) for run in runs[WARM_UP:]], np.float64)
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
    """Aligned memory with the contents that an input is to have."""
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
    """Zeros whose first byte is aligned."""
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]


def pointers(arrays: list[Any]) -> Any:
    """Addresses as a C array."""
    return (ctypes.c_void_p * max(1, len(arrays)))(*(array.ctypes.data for array in arrays))


if __name__ == "__main__":
    main()
