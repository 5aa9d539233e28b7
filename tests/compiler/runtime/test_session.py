"""One bundle, any number of threads and processes."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from support.onnx_graphs import make_model, node, save

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.errors import UsageError

THREADS, CALLS = 16, 500


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that TVM's virtual machine runs."""
    dtypes = {"y": TensorProto.INT64}
    model = make_model([node("NonZero", ["x"], ["y"])], {"x": [4000]}, ["y"], dtypes=dtypes)
    folder = tmp_path_factory.mktemp("machine")
    options = CompileOptions(parity=False)
    bundle = compile_model(save(model, folder), "native", options, output=folder / "x.edgec")
    assert bundle.manifest.execution.executor == "machine"
    return bundle.path


def inputs(bundle: Bundle, count: int = THREADS) -> list[dict[str, np.ndarray]]:
    (spec,) = bundle.manifest.signature.inputs
    shape = tuple(extent or 0 for extent in spec.shape)
    return [
        {spec.name: np.maximum(np.random.default_rng(i).standard_normal(shape, np.float32), 0)}
        for i in range(count)
    ]


def wrong_answers(
    run: Callable[[dict[str, np.ndarray]], Any], bundle: Bundle, calls: int
) -> tuple[int, int]:
    """Answers that are not those of a session of one's own, and distinct right answers."""
    given = inputs(bundle)
    (output,) = bundle.manifest.outputs
    alone = bundle.open(threads=1)
    expected = [alone.run(one)[output.name] for one in given]

    def call(number: int) -> int:
        answers = (run(given[number])[output.name] for _ in range(calls))
        return sum(not np.array_equal(answer, expected[number]) for answer in answers)

    with ThreadPoolExecutor(THREADS) as threads:
        wrong = sum(threads.map(call, range(THREADS)))
    return wrong, len({answer.tobytes() for answer in expected})


def test_many_threads_on_one_bundle(digits_bundle: Path) -> None:
    bundle = Bundle.load(digits_bundle)
    assert wrong_answers(bundle.run, bundle, CALLS) == (0, THREADS)


def test_many_threads_on_a_pool(digits_bundle: Path) -> None:
    bundle = Bundle.load(digits_bundle)
    pool = bundle.open(threads=1, sessions=4)
    assert wrong_answers(pool.run, bundle, CALLS) == (0, THREADS)


def test_many_threads_on_shared_steps(shared: Path) -> None:
    bundle = Bundle.load(shared)
    for run in (lambda x: bundle.run(x, threads=3), bundle.open(threads=2, sessions=3).run):
        assert wrong_answers(run, bundle, 20) == (0, THREADS)


def test_many_threads_on_the_machine(machine: Path) -> None:
    bundle = Bundle.load(machine)
    assert wrong_answers(bundle.run, bundle, 20) == (0, THREADS)
    assert wrong_answers(bundle.open(threads=1, sessions=2).run, bundle, 20) == (0, THREADS)


def test_a_shared_array_is_overwritten(digits_bundle: Path) -> None:
    """The negative control: what many threads must not use."""
    bundle = Bundle.load(digits_bundle)
    session = bundle.open(threads=1)
    first, second = inputs(bundle, 2)
    held = session.run_shared(first)["logits"]
    before = held.copy()
    session.run_shared(second)
    assert not np.array_equal(held, before)


def test_weights_are_in_memory_once(shared: Path) -> None:
    bundle = Bundle.load(shared)
    mapped = "/x.edgec/model.so"

    def mappings() -> int:
        maps = Path("/proc/self/maps").read_text().splitlines()
        return sum(line.endswith(mapped) or "model.so" in line for line in maps)

    one = bundle.open(1)
    before = mappings()
    more = bundle.open(1, sessions=5)
    assert mappings() == before > 0
    assert one.run(inputs(bundle, 1)[0]).keys() == more.run(inputs(bundle, 1)[0]).keys()


def test_numbers_that_cannot_be(digits_bundle: Path) -> None:
    bundle = Bundle.load(digits_bundle)
    with pytest.raises(UsageError, match="0 sessions of 1 threads"):
        bundle.open(threads=1, sessions=0)
    with pytest.raises(UsageError, match="1 sessions of -3 threads"):
        bundle.run({}, threads=-3)


# In a process of its own, so that one that hangs ends with its time.
FORKS = """
import multiprocessing, os, sys, threading
import numpy as np
from edgec.compiler import Bundle

bundle = Bundle.load(sys.argv[1])
(spec,) = bundle.manifest.signature.inputs
(output,) = bundle.manifest.outputs
x = {spec.name: np.maximum(np.random.default_rng(0).standard_normal(spec.shape, np.float32), 0)}
runs = {
    "run": lambda: bundle.run(x, threads=3),
}
pool = bundle.open(threads=2, sessions=2)
runs["pool"] = lambda: pool.run(x)
expected = bundle.open(threads=1).run(x)[output.name]

def right(name):
    return bool(np.array_equal(runs[name]()[output.name], expected))

def in_child(name):
    child = os.fork()
    if child == 0:
        os._exit(0 if all(right(name) for _ in range(3)) else 1)
    return os.waitpid(child, 0)[1] == 0

for name in runs:
    assert right(name)
    # Other threads are in the middle of runs, with locks taken, while the process forks.
    stop = threading.Event()
    def keep_running():
        while not stop.is_set():
            assert right(name)
    others = [threading.Thread(target=keep_running) for _ in range(3)]
    for other in others: other.start()
    assert all(in_child(name) for _ in range(20)), name
    stop.set()
    for other in others: other.join()
    assert right(name)
    with multiprocessing.get_context("fork").Pool(2) as processes:
        assert all(processes.map(right, [name] * 20)), name
print("right")
"""


@pytest.mark.parametrize("kind", ["shared", "machine"])
def test_children_of_fork(kind: str, request: pytest.FixtureRequest) -> None:
    bundle = request.getfixturevalue(kind)
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(bundle)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr
