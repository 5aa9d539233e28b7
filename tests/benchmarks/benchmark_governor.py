"""Meet deadlines by switching variants under a step of load, of the clock and of heat.

    python tests/benchmarks/benchmark_governor.py

EfficientNet-Lite0 in two variants, int8 and float, on one core, to which everything is pinned. Each
scenario has three parts: quiet, the step, quiet. Load is a process that takes half of the core.
The clock and the heat of this machine are not ours to change: folders that look like /sys say what
they are, and a run is followed by a wait that makes it as slow as such a clock would. In each frame
the governor's choice and each variant on its own take turns, so all see the same machine.

Prints a line for each scenario and what the bars say: at most 1 % of deadlines missed after 5
inferences from each step, a mean accuracy at least that of the best fixed variant that meets the
deadline as often, switches in a part at least a second apart, a choice (signals read, and the
switch) within 1 ms of processor time. The machine must do nothing else.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from photographs import crop
from sklearn.datasets import load_sample_images

from edgec.compiler import (
    Bundle,
    CompileOptions,
    GovernorSettings,
    SampleOptions,
    Variant,
    compile_model,
    govern_bundle,
)
from edgec.compiler.governor.governor import Option
from edgec.compiler.governor.session import GovernedSession
from edgec.models import load_model_recipe

VARIANTS = {"fast": Variant(quantize="int8"), "full": Variant()}
SHAPE = (1, 3, 224, 224)
# Batches that accuracy is measured on.
BATCHES = 64
# The deadline, in medians of the float variant on the quiet core.
ROOM = 1.5
FRAME_MS = 50.0
# Inferences after a step that are not counted.
AFTER_STEP = 5
MISSES = 0.01
# Busy for 5 ms, idle for 5 ms.
HALF_A_CORE = """
import os, time
parent = os.getppid()
print(flush=True)
while os.getppid() == parent:
    until = time.perf_counter() + 0.005
    while time.perf_counter() < until:
        pass
    time.sleep(0.005)
"""


@dataclass
class Part:
    """Latencies of a part of a scenario [ms], and the switches in it."""

    name: str
    governed: list[tuple[float, float]] = field(default_factory=list)
    fixed: dict[str, list[float]] = field(default_factory=dict)
    switched_ms: list[float] = field(default_factory=list)


def samples() -> np.ndarray:
    """Return crops of two photographs, as the model takes them: [N, 3, 224, 224]."""
    photos, random = load_sample_images().images, np.random.default_rng(0)
    crops = [crop(photos, *SHAPE[2:], random) for _ in range(BATCHES)]
    return ((np.stack(crops).transpose(0, 3, 1, 2) - 127.0) / 128.0).astype(np.float32)


def compiled(folder: Path, images: np.ndarray) -> Bundle:
    """Return the bundle of the variants."""
    np.save(folder / "images.npy", images)
    options = CompileOptions(
        shapes={"image": SHAPE},
        variants=VARIANTS,
        samples=SampleOptions(source=str(folder / "images.npy")),
    )
    model = load_model_recipe("efficientnet-lite0").write(folder / "model.onnx")
    return compile_model(model, "native", options, output=folder / "model.edgec")


@contextlib.contextmanager
def half_a_core() -> Iterator[None]:
    """Take half of the core until the block ends."""
    with subprocess.Popen([sys.executable, "-c", HALF_A_CORE], stdout=subprocess.PIPE) as load:
        try:
            assert load.stdout is not None
            load.stdout.readline()
            yield
        finally:
            load.kill()


class Machine:
    """A machine whose clock and heat are what we say."""

    def __init__(self, folder: Path) -> None:
        self.sys = folder / "sys"
        self.slowdown = 1.0
        self._write("class/thermal/thermal_zone0/trip_point_0_type", "passive")
        self._write("class/thermal/thermal_zone0/trip_point_0_temp", "80000")
        self._write("devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", "2000000")
        self.be(clock=1.0, celsius=50)

    def be(self, clock: float, celsius: float) -> None:
        """Set the clock, a share of the highest, and the temperature."""
        self.slowdown = 1 / clock
        self._write("class/thermal/thermal_zone0/temp", str(int(celsius * 1000)))
        frequency = str(int(2_000_000 * clock))
        self._write("devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", frequency)

    def _write(self, name: str, text: str) -> None:
        path = self.sys / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    @contextlib.contextmanager
    def clock_step(self) -> Iterator[None]:
        """Halve the clock."""
        self.be(clock=0.5, celsius=50)
        yield
        self.be(clock=1.0, celsius=50)

    @contextlib.contextmanager
    def heat_step(self) -> Iterator[None]:
        """Reach the trip point, and throttle to 60 %."""
        self.be(clock=0.6, celsius=81)
        yield
        self.be(clock=1.0, celsius=60)


class Scenario:
    """A scenario runs frames and notes what came of them."""

    def __init__(self, bundle: Bundle, machine: Machine, deadline_ms: float, image: np.ndarray):
        self._machine, self._image = machine, image
        self.parts: list[Part] = []
        self.switch_us: list[float] = []
        settings = GovernorSettings(
            deadline_ms=deadline_ms, sys=machine.sys, on_switch=self._switched
        )
        self.governed: GovernedSession = govern_bundle(bundle, settings, threads=1)
        self._session = bundle.open(threads=1)

    def _switched(self, _before: Option | None, _now: Option) -> None:
        self.parts[-1].switched_ms.append(time.monotonic() * 1e3)

    def run(self, name: str, seconds: float) -> None:
        """Run a part."""
        self.parts.append(Part(name))
        part, until = self.parts[-1], time.monotonic() + seconds
        while (began := time.monotonic()) < until:
            before = time.thread_time()
            option = self.governed.choose()
            self.switch_us.append((time.thread_time() - before) * 1e6)
            variant = self.governed.name(option)
            latency = self._run(variant)
            self.governed.governor.observe(time.monotonic() * 1e3, latency)
            part.governed.append((option.accuracy, latency))
            for fixed in VARIANTS:
                part.fixed.setdefault(fixed, []).append(self._run(fixed))
            time.sleep(max(0.0, began + FRAME_MS / 1e3 - time.monotonic()))

    def _run(self, variant: str) -> float:
        began = time.perf_counter()
        self._session.run(self._image, variant)
        passed = time.perf_counter() - began
        time.sleep(passed * (self._machine.slowdown - 1))
        return passed * self._machine.slowdown * 1e3


def judge(
    name: str,
    scenario: Scenario,
    deadline_ms: float,
    accuracies: dict[str, float],
) -> bool:
    """Print what came of a scenario; whether all bars hold."""

    def missed(latencies: list[list[float]]) -> float:
        counted = [ms > deadline_ms for part in latencies for ms in part[AFTER_STEP:]]
        return sum(counted) / len(counted)

    parts = scenario.parts
    misses = missed([[ms for _, ms in part.governed] for part in parts])
    accuracy = float(np.mean([a for part in parts for a, _ in part.governed[AFTER_STEP:]]))
    fixed = {v: missed([part.fixed[v] for part in parts]) for v in VARIANTS}
    meeting = [v for v in VARIANTS if fixed[v] <= max(MISSES, misses)]
    best = max((accuracies[v] for v in meeting), default=0.0)
    gaps = [after - before for part in parts for before, after in pairwise(part.switched_ms)]
    gap_s = min(gaps, default=np.inf) / 1e3
    # The host of a virtual machine takes its time from ours now and then: p99 is told beside it.
    switch_us, usual_us = max(scenario.switch_us), float(np.percentile(scenario.switch_us, 99))
    ok = misses <= MISSES and accuracy >= best and gap_s >= 1 and switch_us <= 1000
    others = ", ".join(
        f"{v}: {accuracies[v]:.4f}, {share:.1%} missed" for v, share in fixed.items()
    )
    print(
        f"{name:6} {'ok' if ok else 'NOT MET'}: {misses:.2%} of "
        f"{sum(len(p.governed) for p in parts)} missed, accuracy {accuracy:.4f} ({others}), "
        f"switches {[len(p.switched_ms) for p in parts]}, at least {gap_s:.1f} s apart, "
        f"a choice at most {switch_us:.0f} us, p99 {usual_us:.0f}"
    )
    return ok


def main() -> int:
    """Run all scenarios; 1 if a bar is not met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each part")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder to compile to, or that was compiled to")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(exist_ok=True)
        os.environ["XDG_STATE_HOME"] = scratch
        images = samples()
        path = folder / "model.edgec"
        bundle = Bundle.load(path) if path.exists() else compiled(folder, images)
        os.sched_setaffinity(0, {given.core})
        return _scenarios(bundle, Path(scratch), images[:1], given.seconds)


def _scenarios(bundle: Bundle, scratch: Path, image: np.ndarray, seconds: float) -> int:
    accuracies = {v.program: v.accuracy for v in bundle.manifest.variants}
    machine = Machine(scratch)
    measured = govern_bundle(bundle, 1e6, threads=1)
    alone = {measured.name(o): o.latency_ms for o in measured.governor.options}
    deadline_ms = ROOM * alone["full"]
    print(", ".join(f"{v} {alone[v]:.2f} ms, accuracy {accuracies[v]:.4f}" for v in VARIANTS))
    print(f"deadline {deadline_ms:.2f} ms")
    steps: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
        "load": half_a_core,
        "clock": machine.clock_step,
        "heat": machine.heat_step,
    }
    met = True
    for name, step in steps.items():
        scenario = Scenario(bundle, machine, deadline_ms, image)
        scenario.run("quiet", seconds)
        with step():
            scenario.run("step", seconds)
        scenario.run("quiet again", seconds)
        met &= judge(name, scenario, deadline_ms, accuracies)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
