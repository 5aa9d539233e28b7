"""The executor in C: threads of a caller's own, fork, and what the kernel lets a process use."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.kernel_runs import Built, compile_graph
from support.onnx_graphs import make_model, node, random

from edgec.compiler.codegen.emit_c import grain
from edgec.compiler.codegen.executor import FOLDER

# Includes the executor, so that it can look inside.
PROGRAM = r"""
#include "program.c"
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
  pthread_kill(session->pool->workers[0], SIGUSR1);
  while (sem_wait(&stopped)) continue;
  good &= right(session, 8, 5);
  sem_post(&go_on);
  good &= right(session, 9, 5);
  model.close(session);
  return good;
}

int main(int count, char** arguments) {
  (void)count;
  alarm(200);
  if (!strcmp(arguments[1], "callers")) return !many_callers();
  if (!strcmp(arguments[1], "forks")) return !forks();
  if (!strcmp(arguments[1], "stopped")) return !stopped_worker();
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
    command = [
        *(*compiler, "-std=gnu11", "-g", "-O1", *options, f"-I{folder}", f"-I{made}", str(source)),
        *(str(made / "constants.S"), str(made / "kernels.o")),
        *("-o", str(folder / "stress"), "-lm", "-lpthread"),
    ]
    done = subprocess.run(command, cwd=made, capture_output=True, text=True, check=False)
    return folder / "stress" if done.returncode == 0 else None


def run(program: Path, mode: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), mode], capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("mode", ["callers", "forks", "stopped"])
def test_sessions(built: Built, tmp_path: Path, mode: str) -> None:
    program = compiled(built, tmp_path, compilers()[0])
    assert program is not None
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
    """The negative control: a caller that goes on while workers still have tasks."""
    text = (FOLDER / "threads.c").read_text()
    right, wrong = "  wait_for_tasks(pool, step->tasks);\n", "  (void)wait_for_tasks;\n"
    assert text.count(right) == 1
    made = shutil.copytree(built.library.parent, tmp_path / "made")
    (made / "threads.c").write_text(text.replace(right, wrong))
    broken = replace(built, library=made / built.library.name)
    verdict = race_free(broken, tmp_path)
    if verdict is None:
        pytest.skip("no compiler here has ThreadSanitizer")
    assert not verdict


CORES = '#include "cores.c"\nint main(void) { printf("%d", usable_cores()); return 0; }\n'


def usable(folder: Path, groups: str, files: dict[str, str], cores: int) -> int:
    """What a process of these control groups may use, on the first of this machine's cores."""
    for name, text in files.items():
        path = folder / "cgroups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "own").write_text(groups)
    (folder / "main.c").write_text(CORES)
    command = [
        *(*compilers()[0], "-D_GNU_SOURCE", f"-I{FOLDER}", "main.c", "-o", "main"),
        *(f'-DEDGEC_CGROUPS="{folder}/cgroups"', f'-DEDGEC_OWN_CGROUPS="{folder}/own"'),
    ]
    subprocess.run(command, cwd=folder, check=True)
    mine = sorted(os.sched_getaffinity(0))[:cores]
    found = subprocess.run(
        [str(folder / "main")],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, mine),
    )
    return int(found.stdout)


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
def test_quotas(tmp_path: Path, groups: str, files: dict[str, str], expected: int) -> None:
    assert usable(tmp_path, groups, files, 2) == expected


def test_affinity(tmp_path: Path, built: Built) -> None:
    assert usable(tmp_path, "", {}, 1) == 1
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, sorted(mine)[:1])
        assert built.open(0).threads == 1
    finally:
        os.sched_setaffinity(0, mine)
    np.testing.assert_array_equal(
        built.open(1).run(built.inputs())["y"], built.open(3).run(built.inputs())["y"]
    )
