"""Worker processes: what they compile, what kills them, what takes too long."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.tuning_records import Key
from edgec.compiler.options import CompileOptions
from edgec.compiler.tune import workers as workers_module
from edgec.compiler.tune.compile_kernel import BuiltKernel
from edgec.compiler.tune.rounds import KernelBuilder
from edgec.compiler.tune.tasks import plan_tuning
from edgec.compiler.tune.workers import CRASHED, Failure, Workers
from edgec.targets import load_target

TARGET = load_target("native")
CORES = sorted(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def items(digits: Path) -> list[tuple[Key, str]]:
    plan = plan_tuning(digits, TARGET, CompileOptions(shapes={"image": (1, 1, 8, 8)}))
    return [
        (task.key, decision) for task in plan.tasks[:2] for decision in list(task.estimates)[:2]
    ]


def test_one_that_cannot_be_compiled_spoils_no_other(
    items: list[tuple[Key, str]], tmp_path: Path
) -> None:
    bad = (items[0][0], '{"no": "decision"}')
    assert bad[0].operator in TEMPLATES
    builder = KernelBuilder(TARGET, tmp_path, 2)
    try:
        built = builder.build([*items, bad])
    finally:
        builder.close()
    assert set(built) == set(items)
    assert all(kernel.path.stat().st_size > 0 for kernel in built.values())
    assert set(builder.failed) == {bad}
    assert builder.failed[bad] != CRASHED


def test_a_worker_that_dies_or_hangs_is_replaced(
    items: list[tuple[Key, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = Workers(CORES[:1], TARGET, tmp_path)
    try:
        found: dict[Any, Any] = dict(workers.compile(items[:1]))
        assert isinstance(found[items[0]], BuiltKernel)
        workers.all[0].signal(signal.SIGKILL)
        time.sleep(0.2)
        found = dict(workers.compile(items[:2]))
        assert found[items[0]] == Failure(CRASHED)
        assert isinstance(found[items[1]], BuiltKernel)
        workers.all[0].signal(signal.SIGSTOP)
        monkeypatch.setattr(workers_module, "KERNEL_SECONDS", 0.1)
        found = dict(workers.compile(items[:1]))
        assert "took over" in found[items[0]].why
    finally:
        workers.close()
