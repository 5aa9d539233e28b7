"""How long models take on this machine, measured in turns: it is noisy."""

import statistics
import time
from collections.abc import Sequence

from edgec.compiler.calibration.host_model import HostModel
from edgec.compiler.ir.signature import Signature
from edgec.compiler.runtime.inputs import generate_inputs

# Runs of each model; the median counts.
RUNS = 30


def latencies_ms(models: Sequence[HostModel], signature: Signature) -> list[float]:
    """Median time of an inference of each model, with one thread [ms]."""
    inputs = generate_inputs(signature.inputs, 0, {})
    times: list[list[float]] = [[] for _ in models]
    for _ in range(RUNS):
        for model, own in zip(models, times, strict=True):
            start = time.perf_counter()
            model.run(inputs)
            own.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(own) for own in times]
