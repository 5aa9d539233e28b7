"""The executor in C: threads of a caller's own, fork, and what the kernel lets a process use."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.kernel_runs import Built, compile_graph
from support.onnx_graphs import make_model, node, random

from edgec.compiler.codegen.emit_c import grain
from edgec.compiler.codegen.executor import FOLDER, SOURCES, UNIT
from edgec.compiler.support.cores import usable_cores

# Includes the executor, so that it can look inside.
PROGRAM = r"""
#include "program.c"
#include "unit.c"
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>

enum { RUNS = 30, CALLERS = 4 };

static float* random_input(unsigned seed) {
  const size_t count = model.inputs[0].bytes / sizeof(float);
  float* values = allocate(model.inputs[0].bytes);
  for (size_t i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    values[i] = (float)(seed >> 8) / (1 << 24) - 0.5f;
  }
  return values;
}

/* Whether so many runs of a session give what one thread gives. */
static int right(edgec_session* session, unsigned seed, int runs) {
  const void* inputs[] = {random_input(seed)};
  void* expected[] = {allocate(model.outputs[0].bytes)};
  void* found[] = {allocate(model.outputs[0].bytes)};
  edgec_session* alone = model.open(1);
  int good = !model.run(alone, inputs, expected);
  model.close(alone);
  for (int run = 0; run < runs; ++run) {
    memset(found[0], 0, model.outputs[0].bytes);
    good &= !model.run(session, inputs, found);
    good &= !memcmp(expected[0], found[0], model.outputs[0].bytes);
  }
  free((void*)inputs[0]), free(expected[0]), free(found[0]);
  return good;
}

static void* caller(void* argument) {
  const unsigned seed = (unsigned)(intptr_t)argument;
  edgec_session* session = model.open(3);
  const int good = session && right(session, seed, RUNS);
  model.close(session);
  return good ? argument : NULL;
}

static int many_callers(void) {
  pthread_t threads[CALLERS];
  int good = 1;
  for (intptr_t i = 0; i < CALLERS; ++i) pthread_create(&threads[i], NULL, caller, (void*)(i + 1));
  for (intptr_t i = 0; i < CALLERS; ++i) {
    void* result;
    pthread_join(threads[i], &result);
    good &= result == (void*)(i + 1);
  }
  return good;
}

/* Workers sleep or spin when the process forks; the child forks again before it runs. */
static int forks(void) {
  edgec_session* session = model.open(3);
  int good = right(session, 1, 2);
  for (int i = 0; i < 20; ++i) {
    usleep(i % 2 * 3000);
    const pid_t child = fork();
    if (!child) {
      const pid_t grandchild = fork();
      good &= right(session, (unsigned)i, 2) && model.threads(session) == 3;
      int status = 0;
      if (grandchild) waitpid(grandchild, &status, 0);
      if (i % 4) model.close(session);
      _exit(good && !status ? 0 : 1);
    }
    int status;
    good &= right(session, (unsigned)i, 2);
    waitpid(child, &status, 0);
    good &= !status;
  }
  model.close(session);
  return good;
}

static sem_t stopped, go_on;

static void stop(int number) {
  (void)number;
  sem_post(&stopped);
  while (sem_wait(&go_on)) continue;
}

/* A worker that the system does not run takes no task, and the others do not wait for it. */
static int stopped_worker(void) {
  edgec_session* session = model.open(2);
  sem_init(&stopped, 0, 0);
  sem_init(&go_on, 0, 0);
  signal(SIGUSR1, stop);
  int good = right(session, 7, 2);
  usleep(2000); /* It sleeps. */
  pthread_kill(session->pool->workers[0], SIGUSR1);
  while (sem_wait(&stopped)) continue;
  good &= right(session, 8, 5);
  sem_post(&go_on);
  good &= right(session, 9, 5);
  model.close(session);
  return good;
}

/* A worker that has a core only while another process does not, and so is stopped with tasks. */
static int crowded_worker(void) {
  edgec_session* session = model.open(2);
  cpu_set_t mine, one;
  sched_getaffinity(0, sizeof mine, &mine);
  int core = 0;
  while (!CPU_ISSET(core, &mine)) ++core;
  CPU_ZERO(&one);
  CPU_SET(core, &one);
  const pid_t busy = fork();
  if (!busy) {
    sched_setaffinity(0, sizeof one, &one);
    for (;;) getppid();
  }
  pthread_setaffinity_np(session->pool->workers[0], sizeof one, &one);
  const int good = right(session, 10, 10 * RUNS);
  kill(busy, SIGKILL);
  waitpid(busy, NULL, 0);
  model.close(session);
  return good;
}

/* Sessions that end just when their workers begin, or just when these are done. */
static int short_lives(void) {
  int good = 1;
  for (int i = 0; i < 200; ++i) {
    edgec_session* session = model.open(3);
    if (i % 4 == 1) good &= right(session, (unsigned)i, 1);
    model.close(session);
  }
  return good;
}

int main(int count, char** arguments) {
  (void)count;
  alarm(200);
  if (!strcmp(arguments[1], "callers")) return !many_callers();
  if (!strcmp(arguments[1], "forks")) return !forks();
  if (!strcmp(arguments[1], "stopped")) return !stopped_worker();
  if (!strcmp(arguments[1], "crowded")) return !crowded_worker();
  if (!strcmp(arguments[1], "short")) return !short_lives();
  return 2;
}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Steps that threads share."""
    nodes = [
        node("Conv", ["x", "first"], ["a"], strides=[2, 2], pads=[1] * 4),
        node("Conv", ["a", "dense"], ["b"], pads=[1] * 4),
        node("MaxPool", ["b"], ["y"], kernel_shape=[3, 3], pads=[1] * 4),
    ]
    weights = {"first": random(24, 3, 3, 3), "dense": 0.1 * random(24, 24, 3, 3)}
    model = make_model(nodes, {"x": [1, 3, 60, 60]}, ["y"], weights)
    # A target that every compiler here can link with.
    built = compile_graph(model, "native", tmp_path_factory.mktemp("executor"))
    assert sum(grain(step) < step.tasks for step in built.program.steps) >= 2
    return built


def compilers() -> list[list[str]]:
    """C compilers of this machine."""
    found = [[path] for name in ("cc", "gcc", "clang") if (path := shutil.which(name))]
    return [*found, [sys.executable, "-m", "ziglang", "cc"]]


def compiled(built: Built, folder: Path, compiler: list[str], *options: str) -> Path | None:
    """The program above around a model; None if the compiler cannot make it."""
    source = folder / "stress.c"
    source.write_text(PROGRAM)
    made = built.library.parent
    kernels = [path for path in sorted(made.glob("*.o")) if path.name != "executor.o"]
    for name in (UNIT, *SOURCES):
        if not (made / name).exists():
            shutil.copyfile(FOLDER / name, made / name)
    command = [
        *(
            *compiler,
            "-std=gnu11",
            "-D_GNU_SOURCE",
            "-g",
            "-O1",
            *options,
            f"-I{folder}",
            f"-I{made}",
            str(source),
        ),
        *(str(made / "constants.S"), *map(str, kernels)),
        *("-o", str(folder / "stress"), "-lm", "-lpthread"),
    ]
    done = subprocess.run(command, cwd=made, capture_output=True, text=True, check=False)
    return folder / "stress" if done.returncode == 0 else None


def run(program: Path, mode: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), mode], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def program(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = compiled(built, tmp_path_factory.mktemp("stress"), compilers()[0])
    assert program is not None
    return program


@pytest.mark.parametrize("mode", ["callers", "forks", "stopped", "crowded", "short"])
def test_sessions(program: Path, mode: str) -> None:
    done = run(program, mode)
    assert done.returncode == 0, done.stderr


def race_free(built: Built, folder: Path) -> bool | None:
    """What ThreadSanitizer says; None where no compiler has it."""
    for compiler in compilers():
        program = compiled(built, folder, compiler, "-fsanitize=thread")
        if program is None:
            continue
        done = run(program, "callers")
        if "FATAL: ThreadSanitizer" in done.stderr:
            continue
        races = "data race" in done.stderr
        assert (done.returncode == 0) == (not races), done.stderr
        return not races
    return None


def test_no_data_race(built: Built, tmp_path: Path) -> None:
    verdict = race_free(built, tmp_path)
    if verdict is None:
        pytest.skip("no compiler here has ThreadSanitizer")
    assert verdict


def test_a_data_race_is_found(built: Built, tmp_path: Path) -> None:
    """The negative control: a step begins while others still have tasks of the one before."""
    text = (FOLDER / "threads.c").read_text()
    right = "if (atomic_fetch_add(&pool->done, count) + count == step->tasks)"
    wrong = "if (begin + count == step->tasks)"
    assert text.count(right) == 1
    made = shutil.copytree(built.library.parent, tmp_path / "made")
    (made / "threads.c").write_text(text.replace(right, wrong))
    broken = replace(built, library=made / built.library.name)
    verdict = race_free(broken, tmp_path)
    if verdict is None:
        pytest.skip("no compiler here has ThreadSanitizer")
    assert not verdict


def test_a_step_that_begins_slowly(built: Built, tmp_path: Path) -> None:
    """Others look at the pool while it is between two steps: they must find nothing to do."""
    text = (FOLDER / "threads.c").read_text()
    within = "    atomic_store_explicit(&pool->done, 0, memory_order_relaxed);\n"
    assert text.count(within) == 1
    made = shutil.copytree(built.library.parent, tmp_path / "made")
    (made / "threads.c").write_text(text.replace(within, f"{within}    usleep(50);\n"))
    slow = replace(built, library=made / built.library.name)
    program = compiled(slow, tmp_path, compilers()[0])
    assert program is not None
    done = run(program, "callers")
    assert done.returncode == 0, done.stderr


CORES = '#include "cores.c"\nint main(void) { printf("%d", usable_cores()); return 0; }\n'


@pytest.fixture(scope="module")
def count_cores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that reads control groups from the folder it is called in."""
    folder = tmp_path_factory.mktemp("cores")
    (folder / "main.c").write_text(CORES)
    command = [
        *(*compilers()[0], "-D_GNU_SOURCE", f"-I{FOLDER}", "main.c", "-o", "main"),
        *('-DEDGEC_CGROUPS="cgroups"', '-DEDGEC_OWN_CGROUPS="own"'),
    ]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "main"


@contextlib.contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Keep this process, and what it starts, on the first of this machine's cores."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(mine)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


CORES_HERE = min(2, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("", {}, CORES_HERE),
        ("0::/\n", {"cpu.max": "max 100000\n"}, CORES_HERE),
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, CORES_HERE),
        ("0::/\n", {"cpu.max": "900000 100000\n"}, CORES_HERE),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "20000 100000\n"}, 1),
        ("0::/not/mounted\n", {"cpu.max": "50000 100000\n"}, 1),
        (
            "4:memory:/m\n3:cpu,cpuacct:/a\n",
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "100000",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            },
            1,
        ),
        ("3:cpuacct,cpu:/a\n", {"cpu/cpu.cfs_quota_us": "90", "cpu/cpu.cfs_period_us": "100"}, 1),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100"}, CORES_HERE),
        (
            "3:cpuset:/\n",
            {"cpu/cpu.cfs_quota_us": "90", "cpu/cpu.cfs_period_us": "100"},
            CORES_HERE,
        ),
        ("0::/\n", {"cpu.max": "nonsense"}, CORES_HERE),
    ],
)
def test_quotas(
    tmp_path: Path, count_cores: Path, groups: str, files: dict[str, str], expected: int
) -> None:
    """The executor and Python have one rule."""
    for name, text in files.items():
        path = tmp_path / "cgroups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "own").write_text(groups)
    with on_cores(2):
        assert int(subprocess.check_output(count_cores, cwd=tmp_path)) == expected
        assert usable_cores(tmp_path / "cgroups", tmp_path / "own") == expected


def test_affinity(built: Built) -> None:
    with on_cores(1):
        assert built.open(0).threads == usable_cores() == 1
    assert built.open(0).threads == usable_cores()
    np.testing.assert_array_equal(
        built.open(1).run(built.inputs())["y"], built.open(3).run(built.inputs())["y"]
    )
