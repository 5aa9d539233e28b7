"""The choice among variants, by simulated latencies: nothing here is timed."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import support

from edgec.compiler.codegen.executor import FOLDER as EXECUTOR
from edgec.compiler.codegen.link import link_program, link_shared
from edgec.compiler.governor.governor import (
    Governor,
    GovernorLibrary,
    GovernorSettings,
    Option,
    Signals,
)
from edgec.compiler.governor.native import FOLDER, SOURCES
from edgec.targets import load_target

FAST, FULL = Option(0, 1, 0.95, 5.0), Option(1, 1, 1.0, 12.0)
DEADLINE_MS = 20.0
FRAME_MS = 33.0

Slowdown = Callable[[float], float]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> GovernorLibrary:
    path = tmp_path_factory.mktemp("governor") / "governor.so"
    sources = [FOLDER / name for name in SOURCES]
    link_shared(sources, path, load_target("native"), exports=["edgec_*"], includes=[EXECUTOR])
    return GovernorLibrary(path)


class Machine:
    """A machine runs options, slower at times, and says so or not."""

    def __init__(self, library: GovernorLibrary, options=(FAST, FULL), cores=2, **settings) -> None:
        self.switches: list[float] = []
        self.now = 0.0
        self.governor = Governor(
            library,
            options,
            GovernorSettings(
                **{"deadline_ms": DEADLINE_MS, **settings},
                on_switch=lambda before, now: self.switches.append(self.now),
            ),
            cores,
        )
        self.ran: list[tuple[Option, float]] = []

    def run(self, seconds: float, slowdown: Slowdown, signals: Signals | None = None) -> None:
        """Run as many frames as there are in some seconds."""
        for _ in range(int(seconds * 1000 / FRAME_MS)):
            if signals is not None:
                self.governor.note(self.now, signals)
            option = self.governor.choose(self.now)
            latency = option.latency_ms * slowdown(option)
            self.ran.append((option, latency))
            self.governor.observe(self.now + latency, latency)
            self.now += FRAME_MS

    def missed(self, since: int = 0) -> float:
        """Return the share of deadlines missed from a frame on."""
        late = [latency > self.governor.settings.deadline_ms for _, latency in self.ran[since:]]
        return sum(late) / len(late)

    def accuracy(self, since: int = 0) -> float:
        return round(float(np.mean([option.accuracy for option, _ in self.ran[since:]])), 9)

    def closest_switches_ms(self) -> float:
        return float(np.diff(self.switches[1:]).min(initial=np.inf))


def noisy(factor: float, seed: int, spread: float = 0.03) -> Slowdown:
    generator = np.random.default_rng(seed)
    return lambda option: factor * float(np.exp(generator.normal(0, spread)))


@pytest.mark.parametrize("seed", range(5))
def test_a_step_of_load_costs_few_deadlines(library: GovernorLibrary, seed: int) -> None:
    machine = Machine(library)
    machine.run(20, noisy(1.0, seed))
    assert machine.accuracy() == 1.0
    assert machine.missed() == 0
    step = len(machine.ran)
    machine.run(20, noisy(2.0, seed))
    assert machine.missed(step + 5) <= 0.01
    assert machine.accuracy(step + 5) == FAST.accuracy  # FULL would miss all
    step = len(machine.ran)
    machine.run(20, noisy(1.0, seed))
    assert machine.missed(step) <= 0.01
    assert machine.accuracy(step + 90) == 1.0
    assert machine.closest_switches_ms() >= 1000


@pytest.mark.parametrize("seed", range(5))
def test_a_truthful_clock_costs_none(library: GovernorLibrary, seed: int) -> None:
    machine = Machine(library)
    machine.run(10, noisy(1.0, seed), Signals())
    step = len(machine.ran)
    machine.run(10, noisy(2.0, seed), Signals(clock=0.5))
    assert machine.missed(step) == 0
    assert machine.ran[step][0] == FAST


def test_a_false_clock_is_learned(library: GovernorLibrary) -> None:
    machine = Machine(library)
    machine.run(10, noisy(1.0, 0), Signals())
    step = len(machine.ran)
    machine.run(10, noisy(1.0, 0), Signals(clock=0.5))
    assert machine.missed() == 0
    assert machine.accuracy(step + 90) == 1.0


def test_heat_gives_way_before_the_clock_falls(library: GovernorLibrary) -> None:
    options = (FAST, Option(1, 1, 1.0, 17.0))
    machine = Machine(library, options)
    machine.run(10, noisy(1.0, 0), Signals(to_trip=20))
    assert machine.ran[-1][0].accuracy == 1.0
    step = len(machine.ran)
    machine.run(1, noisy(1.0, 0), Signals(to_trip=1))
    assert {option for option, _ in machine.ran[step:]} == {FAST}
    machine.run(10, noisy(1.6, 0), Signals(to_trip=-1, clock=0.7))
    assert machine.missed(step) == 0


@pytest.mark.parametrize("seed", range(5))
def test_rare_outliers_do_not_cost_accuracy(library: GovernorLibrary, seed: int) -> None:
    generator = np.random.default_rng(seed)
    usual = noisy(1.0, seed)
    machine = Machine(library)
    machine.run(120, lambda option: usual(option) * (3.0 if generator.random() < 0.002 else 1.0))
    assert machine.missed() <= 0.01
    assert machine.accuracy() >= 0.999


@pytest.mark.parametrize("seed", range(5))
def test_unrest_within_the_deadline_is_no_reason_for_haste(
    library: GovernorLibrary, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    machine = Machine(library)
    usual, left = noisy(1.0, seed), [0]

    def pairs(option: Option) -> float:
        left[0] = left[0] - 1 if left[0] else 2 * int(generator.random() < 0.05)
        return usual(option) * (1.5 if left[0] else 1.0)

    machine.run(120, pairs)
    assert len(machine.switches) > 2
    assert machine.missed() == 0
    assert machine.closest_switches_ms() >= 1000


@pytest.mark.parametrize("seed", range(5))
def test_frequent_outliers_are_avoided(library: GovernorLibrary, seed: int) -> None:
    generator = np.random.default_rng(seed)
    machine = Machine(library)
    usual = noisy(1.0, seed)
    machine.run(120, lambda option: usual(option) * (2.5 if generator.random() < 0.3 else 1.0))
    assert machine.missed(5) <= 0.01
    assert machine.closest_switches_ms() >= 1000


def test_an_option_that_is_slower_than_measured_is_tried_seldom(library: GovernorLibrary) -> None:
    machine = Machine(library)
    machine.run(120, lambda option: 1.0 if option == FAST else 2.0)
    assert machine.missed() <= 0.01
    assert len(machine.switches) <= 12


def test_threads_follow_the_cores_that_are_left(library: GovernorLibrary) -> None:
    options = (FAST, FULL, Option(0, 2, 0.95, 3.0), Option(1, 2, 1.0, 7.0))
    machine = Machine(library, options, deadline_ms=10.0)
    machine.run(5, noisy(1.0, 0), Signals())
    assert machine.ran[-1][0] == options[3]
    step = len(machine.ran)
    # Another process has a core of its own: two threads have one.
    machine.run(5, lambda o: 2.0 if o.threads == 2 else 1.0, Signals(busy_cores=1))
    assert machine.missed(step) == 0
    assert machine.ran[-1][0] == FAST


def test_of_equal_accuracy_the_least_work_is_taken(library: GovernorLibrary) -> None:
    options = (FULL, Option(1, 2, 1.0, 7.0))
    machine = Machine(library, options)
    machine.run(5, noisy(1.0, 0), Signals())
    assert {option for option, _ in machine.ran} == {FULL}


def test_a_low_battery_takes_the_least_work(library: GovernorLibrary) -> None:
    machine = Machine(library)
    machine.run(3, noisy(1.0, 0), Signals())
    machine.run(3, noisy(1.0, 0), Signals(battery=0.1))
    assert machine.ran[-1][0] == FAST
    bound = Machine(library, accuracy_floor=0.97)
    bound.run(3, noisy(1.0, 0), Signals(battery=0.1))
    assert bound.ran[-1][0] == FULL


def test_where_nothing_meets_the_deadline_the_fastest_runs(library: GovernorLibrary) -> None:
    machine = Machine(library, deadline_ms=2.0)
    machine.run(10, noisy(1.0, 0))
    assert {option for option, _ in machine.ran} == {FAST}
    assert machine.governor.report().misses == len(machine.ran)


def stat(busy: int, idle: int) -> str:
    """Return /proc/stat of one core that this process may use, and of one that is not its own."""
    ours = min(os.sched_getaffinity(0))
    return (
        f"cpu  {busy} 0 0 {idle} 0 0 0 0\ncpu{ours} {busy} 0 0 {idle} 0 0 0 0\n"
        f"cpu5000 {9 * busy} 0 0 {idle} 0 0 0 0\nintr 1\n"
    )


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Folders that look like /sys and /proc."""
    files = {
        "sys/class/thermal/thermal_zone0/temp": "50000\n",
        "sys/class/thermal/thermal_zone0/trip_point_0_type": "critical\n",
        "sys/class/thermal/thermal_zone0/trip_point_0_temp": "110000\n",
        "sys/class/thermal/thermal_zone0/trip_point_1_type": "passive\n",
        "sys/class/thermal/thermal_zone0/trip_point_1_temp": "80000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1500000\n",
        "sys/class/power_supply/BAT0/type": "Battery\n",
        "sys/class/power_supply/BAT0/capacity": "15\n",
        "sys/class/power_supply/BAT0/status": "Charging\n",
        "proc/stat": stat(50, 150),
        "proc/self/stat": "7 (a ) b) R 1 1 1 0 -1 0 0 0 0 0 10 0 0 0 20 0\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "sys", tmp_path / "proc"


def test_signals_are_read_from_folders(
    library: GovernorLibrary, folders: tuple[Path, Path]
) -> None:
    sys, proc = folders
    settings = GovernorSettings(deadline_ms=10, sys=sys, proc=proc)
    governor = Governor(library, [FULL], settings, 2)
    assert governor.read_signals() == Signals(to_trip=30)
    (sys / "class/thermal/thermal_zone0/temp").write_text("81500\n")
    (sys / "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").write_text("600000\n")
    (sys / "class/power_supply/BAT0/status").write_text("Discharging\n")
    # Of the 100 ticks of this process's core all were busy, 40 of them by this process.
    (proc / "stat").write_text(stat(150, 150))
    (proc / "self/stat").write_text("7 (a ) b) R 1 1 1 0 -1 0 0 0 0 0 45 5 0 0 20 0\n")
    found = governor.read_signals()
    assert (found.to_trip, found.battery) == (-1.5, 0.15)
    assert (found.clock, found.busy_cores) == (pytest.approx(0.4), pytest.approx(0.6))


def test_signals_that_nobody_gives_change_nothing(library: GovernorLibrary, tmp_path: Path) -> None:
    settings = GovernorSettings(deadline_ms=10, sys=tmp_path, proc=tmp_path)
    assert Governor(library, [FULL], settings, 2).read_signals() == Signals()


def test_measured_options_are_kept_for_one_machine_and_model(
    library: GovernorLibrary, tmp_path: Path
) -> None:
    path = tmp_path / "options.txt"
    assert library.read_options(path, "abc") == []
    assert library.write_options(path, "abc", [FAST, FULL])
    assert library.read_options(path, "abc") == [FAST, FULL]
    assert library.read_options(path, "abd") == []
    text = path.read_text()
    path.write_text(text.replace("machine ", "machine x"))
    assert library.read_options(path, "abc") == []
    path.write_text(text.removesuffix("end\n"))
    assert library.read_options(path, "abc") == []
    assert not library.write_options(tmp_path / "none" / "options.txt", "abc", [FAST])
    assert [file.name for file in tmp_path.iterdir()] == ["options.txt"]


def test_switching_allocates_nothing(tmp_path: Path) -> None:
    program, source = tmp_path / "count", Path(support.__path__[0]) / "count_allocations.c"
    link_program([source], program, load_target("native"), includes=[EXECUTOR, FOLDER])
    printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    opened, later, switches = map(int, printed.split())
    assert (opened, later) == (2, 0)
    assert switches >= 20
