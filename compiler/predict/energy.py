"""Provide the energy of an inference: a counter of this machine where it can be read, else a model.

RAPL counts the energy of a processor package in microjoules and begins again at
`max_energy_range_uj` (Linux, Documentation/power/powercap). The model behind an estimate is

    energy = instructions * per instruction + bytes beyond the caches * per byte + time * idle power

with factors of a processor of some 10 nm: they rank variants of a model, and are no measurement.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgec.compiler.predict.prediction import Energy

POWERCAP = Path("/sys/class/powercap")

# Of a vector instruction of 128 bits with what fetches and retires it, and of a byte from memory:
# Horowitz 2014, "Computing's energy problem", figures 1.1.9 and 1.1.10 (45 nm: 70 pJ of an
# instruction's overhead, 1.3 to 2.6 nJ for 8 bytes of DRAM), halved for the process since.
PICOJOULES_PER_INSTRUCTION = 40.0
PICOJOULES_PER_BYTE = 120.0
# A core of a board that does nothing but hold its clock, at 1 GHz.
IDLE_MILLIWATTS_PER_GHZ = 150.0
# Kernel calls that the counter of a package ticks often enough for.
MEASURED_SECONDS = 1.0


@dataclass(frozen=True)
class Counter:
    """A counter describes one RAPL domain, a package of cores.

    Attributes:
        path: its folder.
        range_uj: where it begins again.
    """

    path: Path
    range_uj: int

    def read(self) -> int:
        """Return its energy [µJ]."""
        return int((self.path / "energy_uj").read_text())


def counters(folder: Path = POWERCAP) -> list[Counter]:
    """Return the packages of this machine whose counters can be read; none without permission."""
    found = []
    for path in sorted(folder.glob("intel-rapl:*")):
        # Sub-domains have a second number; a package counts them.
        if path.name.count(":") != 1:
            continue
        try:
            counter = Counter(path, int((path / "max_energy_range_uj").read_text()))
            counter.read()
        except (OSError, ValueError):
            continue
        found.append(counter)
    return found


def measure_energy(
    run: Callable[[], None], clock: Callable[[], float], folder: Path = POWERCAP
) -> Energy | None:
    """Return what one run takes by this machine's counters; None where there are none.

    The whole package is counted, with what else it does meanwhile.

    Args:
        run: one inference.
        clock: seconds, as `time.perf_counter`.
        folder: where the counters are.
    """
    found = counters(folder)
    if not found:
        return None
    before = [counter.read() for counter in found]
    start, runs = clock(), 0
    while runs == 0 or clock() - start < MEASURED_SECONDS:
        run()
        runs += 1
    used = 0
    for counter, value in zip(found, before, strict=True):
        difference = counter.read() - value
        used += difference if difference >= 0 else difference + counter.range_uj
    return Energy(used / runs * 1e-3, "rapl")


def estimate_energy(
    instructions: float, far_bytes: float, milliseconds: float, clock_ghz: float
) -> Energy:
    """Return the stated model's energy of one inference.

    Args:
        instructions: executed, on all cores together.
        far_bytes: read and written beyond the caches of a core.
        milliseconds: its time.
        clock_ghz: of the core.

    >>> estimate_energy(1e9, 1e6, 100.0, 1.5).source
    'model'
    """
    dynamic = instructions * PICOJOULES_PER_INSTRUCTION + far_bytes * PICOJOULES_PER_BYTE
    idle = IDLE_MILLIWATTS_PER_GHZ * clock_ghz * milliseconds * 1e-3
    return Energy(dynamic * 1e-9 + idle, "model")
