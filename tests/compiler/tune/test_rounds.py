"""Kernels that are compiled elsewhere, and one that cannot be."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.options import CompileOptions
from edgec.compiler.tune.rounds import KernelBuilder
from edgec.compiler.tune.tasks import plan_tuning
from edgec.targets import load_target

TARGET = load_target("native")


def test_one_that_cannot_be_compiled_spoils_no_other(digits: Path, tmp_path: Path) -> None:
    plan = plan_tuning(digits, TARGET, CompileOptions(shapes={"image": (1, 1, 8, 8)}))
    task = plan.tasks[0]
    items = [(task.key, decision) for decision in list(task.estimates)[:2]]
    bad = (task.key, '{"no": "decision"}')
    assert bad[0].operator in TEMPLATES
    # A thread of this process stands for a worker of a cluster.
    with ThreadPoolExecutor(1) as elsewhere:
        builder = KernelBuilder(TARGET, tmp_path, 1, elsewhere)
        built = builder.build([*items, bad])
    assert set(built) == set(items)
    assert all(kernel.path.stat().st_size > 0 for kernel in built.values())
    assert list(builder.failed) == [bad]
