"""Describe how long models take on this machine, measured in turns: it is noisy."""

import statistics
import time
from collections.abc import Sequence

from edgec.compiler.ir.evaluate import Runnable
from edgec.compiler.ir.signature import Tensors

# Runs of each model; the median counts.
RUNS = 30


def latencies_ms(models: Sequence[Runnable], inputs: Tensors) -> list[float]:
    """Measure the median time of an inference of each model, with one thread [ms]."""
    times: list[list[float]] = [[] for _ in models]
    for _ in range(RUNS):
        for model, own in zip(models, times, strict=True):
            start = time.perf_counter()
            model.run(inputs)
            own.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(own) for own in times]
