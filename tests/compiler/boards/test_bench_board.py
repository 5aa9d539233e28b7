"""How fast on a board: instructions counted under QEMU, times of a board of its own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from support.onnx_graphs import make_model, node, save

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.boards.artifacts import counter_parts
from edgec.compiler.boards.instructions import count_instructions
from edgec.compiler.boards.qemu import start_board, stop_board
from edgec.compiler.boards.secret import secret_file
from edgec.compiler.cli.main import main
from edgec.compiler.codegen.executor import FOLDER as EXECUTOR
from edgec.compiler.codegen.link import link_shared
from edgec.compiler.errors import ToolchainError
from edgec.compiler.support.progress import Silent
from edgec.targets import Target, load_target

DIGITS = CompileOptions(shapes={"image": (1, 1, 8, 8)})
INPUTS = [np.zeros(16, np.uint8)]

# A library with the executor's interface whose two steps execute a known number of instructions.
KNOWN = """
#include <time.h>
#include "edgec.h"
static void spin(unsigned long times) { %s }
static void look(void) { struct timespec now; clock_gettime(CLOCK_MONOTONIC, &now); }
static const int64_t shape[] = {16};
static const edgec_tensor tensor = {"x", "uint8", 1, shape, 16};
static char session;
static edgec_session* open(int32_t threads) {
  return threads == 1 ? (edgec_session*)&session : NULL;
}
static edgec_step_info step(int32_t program, int32_t index) {
  (void)program;
  return index ? (edgec_step_info){"b", "slow", 7} : (edgec_step_info){"a", "fast", 5};
}
static int32_t run(edgec_session* s, int32_t program, const void* const* inputs,
                   void* const* outputs, uint64_t* nanoseconds) {
  (void)s, (void)program, (void)inputs, (void)outputs;
  if (!nanoseconds) return 0;
  look();
  spin(1000);
  look();
  spin(70000);
  look();
  return 0;
}
static const edgec_program programs[] = {
  {.input_count = 1, .output_count = 1, .inputs = &tensor, .outputs = &tensor, .step_count = 2},
};
static const edgec_model model = {
  .abi = EDGEC_ABI, .open = open, .program_count = 1, .programs = programs,
  .run_program = run, .program_step = step,
};
const edgec_model* edgec_loaded_model(void) { return &model; }
"""
# Two instructions each time around.
LOOPS = {
    "rpi4": '__asm__ volatile("1: subs %0, %0, #1\\n b.ne 1b" : "+r"(times) : : "cc");',
    "rpi3-32bit": '__asm__ volatile("1: subs %0, %0, #1\\n bne 1b" : "+r"(times) : : "cc");',
    "riscv64": '__asm__ volatile("1: addi %0, %0, -1\\n bnez %0, 1b" : "+r"(times));',
}


@pytest.fixture(scope="module", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="module")
def bundle(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    output = tmp_path_factory.mktemp("bench") / "digits.edgec"
    return compile_model(digits, "rpi4", DIGITS, output=output)


@pytest.fixture(scope="module")
def unique(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose shapes depend on its data, on TVM's virtual machine."""
    folder = tmp_path_factory.mktemp("unique")
    finds = node("Unique", ["x"], ["y"], sorted=1)
    dtypes = {"x": TensorProto.INT64, "y": TensorProto.INT64}
    return save(make_model([finds], {"x": [12]}, ["y"], dtypes=dtypes), folder)


def link_known(folder: Path, step: str, target: Target) -> Path:
    """Link the library whose steps execute some code."""
    source, library = folder / "known.c", folder / "known.so"
    source.write_text(KNOWN.replace("%s", step))
    shutil.copy(EXECUTOR / "edgec.h", folder)
    link_shared([source], library, target)
    return library


@pytest.mark.parametrize("name", LOOPS)
def test_a_known_number_of_instructions(name: str, tmp_path: Path) -> None:
    target = load_target(name)
    library = link_known(tmp_path, LOOPS[name], target)
    counted = count_instructions(library, target, INPUTS)
    first, second = counted.steps
    assert (first.label, first.template, first.flops) == ("a", "fast", 5)
    assert (second.label, second.template, second.flops) == ("b", "slow", 7)
    for step, times in ((first, 1000), (second, 70000)):
        assert 2 * times <= step.instructions <= 2 * times + 20
    assert 142_000 <= counted.total <= 142_100


def test_a_known_traffic_beyond_the_cache(tmp_path: Path) -> None:
    """So many lines of 64 bytes are written to, in a cache that holds 16,384 of them."""
    target = load_target("rpi4")
    place = "static volatile char place[70000 * 64];"
    step = f"{place} for (; times; --times) place[times * 64 - 1] = 1;"
    library = link_known(tmp_path, step, target)
    quick, counted = (count_instructions(library, target, INPUTS, traffic=t) for t in (False, True))
    assert [step.far_bytes for step in quick.steps] == [None, None]
    assert [s.instructions for s in quick.steps] == [s.instructions for s in counted.steps]
    # All come in; those that the cache does not hold at the end went out.
    held = target.l2_kib * 1024 // 64
    wanted = [1000, 70000 + 71000 - held]
    found = [(step.far_bytes or 0) / 64 for step in counted.steps]
    assert found == pytest.approx(wanted, rel=0.03)
    first = counted.steps[0]
    far = 1e-9 * (first.far_bytes or 0) / target.memory_gb_per_s
    slower = replace(first, far_bytes=None).seconds(target)
    assert first.seconds(target) == pytest.approx(slower + far)
    unknown = target.model_copy(update={"memory_gb_per_s": 0})
    assert first.seconds(unknown) == slower


def test_every_step_is_counted_and_each_count_is_the_same(bundle: Bundle) -> None:
    inputs, _ = bundle.vectors()[0]
    target = bundle.manifest.target
    counts = [count_instructions(bundle.library, target, list(inputs.values())) for _ in range(2)]
    assert counts[0] == counts[1]
    steps = counts[0].steps
    assert {step.template for step in steps} == {"conv", "global_pool", "matmul"}
    assert sum(step.instructions for step in steps) == pytest.approx(counts[0].total, abs=300)
    # Four multiply-adds in an instruction at most, and 2.25 times that in Winograd's form.
    assert all(step.flops / 18 < step.instructions < 10 * step.flops for step in steps)


def test_a_model_that_crashes(tmp_path: Path) -> None:
    target = load_target("rpi4")
    library = link_known(tmp_path, "(void)times; __builtin_trap();", target)
    with pytest.raises(ToolchainError, match=r"known.so does not run under QEMU: .*signal"):
        count_instructions(library, target, INPUTS)


def test_an_emulator_without_plugins_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "qemu-aarch64"
    other.write_text("#!/bin/sh\necho usage\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert str(other) not in counter_parts(load_target("rpi4"), Silent()).command


def test_bench_on_a_qemu_board(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", str(bundle.path), "--board", "qemu-rpi4"]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["board"], report["threads"], len(report["steps"])) == ("qemu-rpi4", 1, 5)
    assert 100_000 < report["instructions"] < 400_000
    assert main([*arguments, "--profile"]) == 0
    shown = capsys.readouterr().out
    assert f"executes {report['instructions']:,} instructions of rpi4 on one thread" in shown
    assert "times say nothing of the real board" in shown
    assert f"{report['steps'][0]['instructions']:,}" in shown
    assert main(["compare", str(bundle.path), "--board", "qemu-rpi4"]) == 0
    shown = capsys.readouterr().out
    assert f"{report['instructions']:,}" in shown
    assert "counted by QEMU, which plays qemu-rpi4" in shown


def test_bench_where_tvm_has_no_runtime(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counting needs none; deploying does."""
    bundle = compile_model(digits, "riscv64", DIGITS, output=tmp_path / "digits.edgec")
    assert main(["bench", str(bundle.path), "--board", "qemu-riscv64"]) == 0
    assert "instructions of riscv64" in capsys.readouterr().out
    wanted = "TVM offers no runtime for riscv64"
    for command in (
        ["deploy", str(bundle.path), "--board", "qemu-rpi4"],
        ["run", str(bundle.path), "--board", "qemu-rpi4"],
        ["board", "start", "qemu-riscv64"],
        ["board", "add", "risc", "-t", "riscv64"],
    ):
        assert main(command) == 4
        error = capsys.readouterr().err
        assert wanted in error
        assert "edgec compile --runner" in error


@pytest.mark.parametrize("target", ["rpi4", "rpi3-32bit"])
def test_a_runner_under_qemu(
    digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], target: str
) -> None:
    options = CompileOptions(shapes={"image": (1, 1, 8, 8)}, runner=True)
    bundle = compile_model(digits, target, options, output=tmp_path / "digits.edgec")
    program = str(bundle.path / "run")
    command = ["board", "exec", f"qemu-{target}"]
    capfd.readouterr()
    assert main([*command, program, "--verify", "--threads", "1"]) == 0
    assert json.loads(capfd.readouterr().out)["passed"]
    assert main([*command, program, "--threads", "x"]) == 2
    assert "run: error: --threads is x" in capfd.readouterr().err
    for name, file, message in (
        ("qemu-riscv64", program, "the target is riscv64"),
        (f"qemu-{target}", str(tmp_path / "none"), "it cannot be read: No such file"),
        (f"qemu-{target}", str(bundle.path / "manifest.json"), "it is no ELF file"),
        ("qemu-rpi", program, "did you mean"),
    ):
        assert main(["board", "exec", name, file]) == 4
        assert message in capfd.readouterr().err


def test_bench_refuses(
    bundle: Bundle, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = compile_model(digits, "rpi5", DIGITS, output=tmp_path / "newer.edgec")
    board = ["--board", "qemu-rpi4"]
    for arguments, code, message in (
        ([str(newer.path), *board], 4, "the board's CPU lacks asimddp"),
        ([str(bundle.path), "--board", "qemu-rpi44"], 4, "did you mean qemu-rpi4?"),
        ([str(bundle.path), *board, "--threads", "2"], 2, "counted, on one thread"),
        ([str(bundle.path), str(newer.path), *board], 2, "one bundle at a time"),
        ([str(bundle.path), *board, "--against", "onnxruntime"], 2, "not on a board"),
        ([str(bundle.path), "--board", "qemu-riscv64"], 4, "is for aarch64, the board is riscv64"),
        ([str(bundle.path), "--board", "qemu-rpi3-32bit"], 4, "the board is armv7l"),
    ):
        assert main(["bench", *arguments]) == code
        assert message in capsys.readouterr().err


def test_times_of_a_board(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    """A server that edgec did not start is a real board to it."""
    started = start_board("qemu-rpi3", Silent())
    try:
        assert started.link is not None
        secret = str(secret_file(started.name, started.link))
        added = ["board", "add", "pi", "-t", "rpi3", "--port", str(started.link.port)]
        assert main([*added, "--secret", secret]) == 0
        arguments = ["bench", str(bundle.path), "--board", "pi", "--seconds", "0.5", "--profile"]
        capsys.readouterr()
        assert main([*arguments, "--json", "--threads", "2"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["board"], report["threads"]) == ("pi", 2)
        latency = report["latency"]
        assert 0 < latency["min_ms"] <= latency["median_ms"] <= latency["p90_ms"]
        templates = ["conv", "conv", "conv", "global_pool", "matmul"]
        assert [step["template"] for step in report["steps"]] == templates
        total = sum(step["median_us"] for step in report["steps"]) / 1e3
        assert latency["min_ms"] / 3 < total < 3 * latency["median_ms"]
        assert main(arguments) == 0
        shown = capsys.readouterr().out
        assert "1 thread of pi" in shown
        assert "GFLOP/s" in shown
    finally:
        stop_board("qemu-rpi3")
    assert main(arguments) == 6


def test_shapes_that_depend_on_data(
    unique: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TVM has Unique in Python only: refused before a board is asked for anything."""
    bundle = compile_model(unique, "rpi4", output=tmp_path / "board.edgec")
    for command in ("deploy", "run", "verify"):
        assert main([command, str(bundle.path), "--board", "qemu-rpi4"]) == 4
        assert "it calls relax.run.unique, which TVM has in Python" in capsys.readouterr().err
    assert main(["bench", str(bundle.path), "--board", "qemu-rpi4"]) == 4
    assert "instructions are counted of static models only" in capsys.readouterr().err


def test_shapes_that_depend_on_data_run_here(unique: Path, tmp_path: Path) -> None:
    """In a process that has not compiled, and so has not imported TVM."""
    bundle = compile_model(unique, "native", output=tmp_path / "here.edgec")
    command = [sys.executable, "-m", "edgec.compiler", "verify", str(bundle.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
