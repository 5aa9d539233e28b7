"""Time single operators beside ONNX Runtime.

    PYTHONPATH=tests python tests/benchmarks/benchmark_operators.py

One row is one operator on data of about 1 MB; the rows of `networks` have the shapes of a
diffusion U-Net at 128 x 128 and of a 3-D segmentation network. Both runtimes compute on one thread
of one process, in turns; the ratio is the median over the turns, above 1 where edgec is faster.
Times are of the processor, which other programs on a busy machine do not lengthen. The difference
of outputs shows that both compute the same. `generic` lists steps without a kernel; `--steps`
shows the shortest time of every step.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from operator_cases import CASES, NETWORKS, OperatorCase

from edgec.compiler.backend import build, lower, pack, schedule
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.ir.program import Program
from edgec.compiler.runtime.session import Session, StaticSession, open_session
from edgec.compiler.support.silent_onnxruntime import onnxruntime
from edgec.targets import load_target


@dataclass(frozen=True)
class Row:
    """A row says how fast an operator is.

    Attributes:
        ours_us: median time of a run of edgec's library [us].
        theirs_us: median time of a run of ONNX Runtime [us].
        ratio: median over the turns of theirs to ours.
        difference: largest difference of two outputs, relative to the largest value.
        generic: labels of steps without a kernel template.
        steps: kernel and shortest time [us] of each step.
    """

    ours_us: float
    theirs_us: float
    ratio: float
    difference: float
    generic: tuple[str, ...]
    steps: tuple[tuple[str, float], ...] = ()


def measure(case: OperatorCase, seconds: float) -> Row:
    """Compile a model of one operator and time it beside ONNX Runtime."""
    model, inputs = case.model(), dict(case.inputs)
    target = load_target("native")
    canonical = canonical_model(model)
    module = canonical.module
    lowered = lower(pack(module, target), target)
    program = schedule(lowered, module, target, canonical.signature)
    generic: tuple[str, ...] = ("the virtual machine",)
    if isinstance(program, Program):
        generic = tuple(s.label for s in program.steps if s.template == "generic")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "operator.so"
        executor, _ = build([program], target, library)
        session = open_session(library, target, canonical.signature, executor, threads=1)
        rival, binding = _onnx_runtime(model, inputs)
        found = session.run(inputs)
        outputs = zip(rival.get_outputs(), binding.get_outputs(), strict=True)
        expected = {output.name: value.numpy() for output, value in outputs}
        difference = max(_difference(found[name], array) for name, array in expected.items())
        ours, theirs = _in_turns(
            _run_of(session, inputs), lambda: rival.run_with_iobinding(binding), seconds
        )
        steps = _steps(session, inputs)
    ratio = statistics.median(t / o for o, t in zip(ours, theirs, strict=True))
    micro = 1e6
    return Row(
        statistics.median(ours) * micro,
        statistics.median(theirs) * micro,
        ratio,
        difference,
        generic,
        steps,
    )


def _onnx_runtime(model: onnx.ModelProto, inputs: Mapping[str, Any]) -> Any:
    """Return a session on one thread, and its binding to inputs and to memory for outputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    for output in session.get_outputs():
        binding.bind_output(output.name)
    session.run_with_iobinding(binding)
    for output, value in zip(session.get_outputs(), binding.get_outputs(), strict=True):
        binding.bind_ortvalue_output(output.name, value)
    return session, binding


def _run_of(session: Session, inputs: Mapping[str, Any]) -> Callable[[], Any]:
    """Return what runs a library, without copying inputs and outputs where it can."""
    if not isinstance(session, StaticSession):
        return lambda: session.run_shared(inputs)
    prepared = session.prepare(inputs)
    return lambda: session.run_prepared(prepared)


def _difference(found: Any, expected: Any) -> float:
    if found.shape != expected.shape:
        return float("inf")
    one, other = (np.asarray(array, np.float64) for array in (found, expected))
    if not one.size:
        return 0.0
    return float(np.abs(one - other).max() / max(1e-30, np.abs(other).max()))


def _steps(session: Session, inputs: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    """Return template, label and shortest time [us] of each step."""
    if not isinstance(session, StaticSession):
        return ()
    prepared = session.prepare(inputs)
    shortest = np.min([session.run_timed(prepared) for _ in range(7)], axis=0) / 1e3
    names = (f"{step.template} {step.label}" for step in session.steps())
    return tuple(zip(names, map(float, shortest), strict=True))


def _in_turns(
    ours: Callable[[], Any], theirs: Callable[[], Any], seconds: float
) -> tuple[list[float], list[float]]:
    """Return times of a run [s] of both, by turn."""
    times: tuple[list[float], list[float]] = ([], [])
    repeats = [max(1, int(0.002 / _time(run, 1))) for run in (ours, theirs)]
    deadline = time.perf_counter() + seconds
    while len(times[0]) < 3 or time.perf_counter() < deadline:
        for run, count, into in zip((ours, theirs), repeats, times, strict=True):
            into.append(_time(run, count))
    return times


def _time(run: Callable[[], Any], count: int) -> float:
    start = time.thread_time()
    for _ in range(count):
        run()
    return (time.thread_time() - start) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each operator")
    parser.add_argument("--only", default="", help="operators whose name holds this")
    parser.add_argument("--networks", action="store_true", help="only shapes of the networks")
    parser.add_argument("--steps", action="store_true", help="time the steps, too")
    arguments = parser.parse_args()
    cases = NETWORKS if arguments.networks else (*NETWORKS, *CASES)
    print(f"{'operator':44}{'edgec us':>10}{'rival us':>10}{'ratio':>8}{'differs':>10}  generic")
    for case in cases:
        if arguments.only not in case.name:
            continue
        try:
            row = measure(case, arguments.seconds)
        except Exception as error:
            print(f"{case.name:44}cannot: {str(error).strip().splitlines()[-1][:120]}", flush=True)
            continue
        print(
            f"{case.name:44}{row.ours_us:10.0f}{row.theirs_us:10.0f}{row.ratio:8.2f}"
            f"{row.difference:10.1e}  {', '.join(row.generic)[:60]}",
            flush=True,
        )
        for name, microseconds in row.steps if arguments.steps else ():
            print(f"    {name:50}{microseconds:10.0f}", flush=True)


if __name__ == "__main__":
    main()
