"""Energy of an inference: a counter that is read, and a model where there is none."""

from itertools import count
from pathlib import Path

import pytest

from edgec.compiler.predict.energy import counters, estimate_energy, measure_energy


def rapl(folder: Path, energy: int, limit: int = 1_000_000) -> Path:
    package = folder / "intel-rapl:0"
    for path in (package, folder / "intel-rapl:0:0"):
        path.mkdir(parents=True, exist_ok=True)
        (path / "energy_uj").write_text(f"{energy}\n")
        (path / "max_energy_range_uj").write_text(f"{limit}\n")
    return package


def test_a_counter_that_begins_again(tmp_path: Path) -> None:
    package = rapl(tmp_path, 999_000)
    ticks = count()

    def run() -> None:
        # 3,000 µJ over the end of the range.
        (package / "energy_uj").write_text("2000")

    found = measure_energy(run, lambda: float(next(ticks)), tmp_path)
    assert found is not None
    assert (found.source, found.millijoules) == ("rapl", pytest.approx(3.0))


def test_only_packages_that_can_be_read_count(tmp_path: Path) -> None:
    assert counters(tmp_path) == []
    assert measure_energy(lambda: None, lambda: 0.0, tmp_path) is None
    package = rapl(tmp_path, 5)
    assert [counter.path for counter in counters(tmp_path)] == [package]
    (package / "energy_uj").write_text("secret")
    assert counters(tmp_path) == []


def test_the_model_adds_instructions_bytes_and_time() -> None:
    # 1e9 * 40 pJ + 1e7 * 120 pJ + 100 ms * 150 mW/GHz * 2 GHz
    found = estimate_energy(1e9, 1e7, 100.0, 2.0)
    assert found.millijoules == pytest.approx(40 + 1.2 + 30)
    assert found.source == "model"
