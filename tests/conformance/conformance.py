"""The official ONNX backend cases through edgec: what passes, what is refused, what is wrong.

    python tests/conformance/conformance.py [--filter REGEX] [--jobs 2] [--timeout 60]
        [--check] [--update] [--json FILE] [--onnxruntime]

Each case is a model with inputs and expected outputs. It goes through edgec's own read, simplify,
import, lowering and code generation for this machine and runs there; its outputs are compared as
ONNX's own test runner does. A worker process serves one case after another; if it dies or takes
too long, that case alone is lost.

A case is `pass`, `refused` (a clear error of edgec's before any code is generated), `wrong`
(values, shape or dtype), `crash` (any other exception, or the worker died) or `timeout`.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
import tomllib
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[Any]

KNOWN = Path(__file__).with_name("known.toml")
STATUSES = ("pass", "refused", "wrong", "crash", "timeout")

# What ONNX's runner allows bfloat16: two units in the last place.
BFLOAT16_RTOL = 2.0**-6

# The light models take long to compile.
LARGE_KIND = "real"
LARGE_FACTOR = 10


@dataclass(frozen=True)
class Case:
    """One official case.

    Attributes:
        name: unique.
        kind: node, simple, real (the light models), pytorch-converted or pytorch-operator.
        operator: what it is listed under.
        core: of tensors and the standard operators: no training, ai.onnx.ml, preview operators,
            strings, sequences or optionals.
        model: serialized.
        inputs: arrays in the order of the graph's inputs; anything else for sequences.
        expected: likewise, of the graph's outputs.
        rtol: relative tolerance.
        atol: absolute tolerance.
    """

    name: str
    kind: str
    operator: str
    core: bool
    model: bytes
    inputs: list[Any]
    expected: list[Any]
    rtol: float
    atol: float


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        status: one of `STATUSES`.
        message: why it did not pass.
        frozen: inputs that had to be made constants.
        folded: nothing was left to compile then.
        died: the worker ended.
        seconds: time from sending the case to hearing of it.
        phases: seconds in each phase of the compile.
    """

    status: str
    message: str = ""
    frozen: list[str] = field(default_factory=list)
    folded: bool = False
    died: bool = False
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)


class Failed(Exception):  # noqa: N818 - a verdict about a case, not a malfunction
    """A case did not pass; `status` says how."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


# --- the cases


def load_cases() -> list[Case]:
    """All cases of the installed onnx package, by name; generated, as it ships no node data."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.model import collect_testcases
        from onnx.backend.test.loader import load_model_tests

        cases = [_generated(case) for case in load_model_tests(kind="node")]
        cases += [_generated(case) for case in collect_testcases() if case.model is not None]
        for kind in ("pytorch-converted", "pytorch-operator"):
            cases += [_stored(case) for case in load_model_tests(kind=kind)]
        cases += [_light(case) for case in load_model_tests(kind="real")]
    operators = {case.name: case.operator for case in cases}
    cases = [replace(case, operator=_listed_under(case, operators)) for case in cases]
    return sorted(cases, key=lambda case: case.name)


def _generated(case: Any) -> Case:
    (inputs, expected), *others = case.data_sets
    assert not others, f"{case.name} has several data sets"
    return _case(case, case.model, list(map(_array, inputs)), list(map(_array, expected)))


def _stored(case: Any) -> Case:
    folder = Path(case.model_dir)
    model = onnx.load(folder / "model.onnx")
    (data,) = folder.glob("test_data_set_*")

    def read(kind: str) -> list[Array]:
        count = len(list(data.glob(f"{kind}_*.pb")))
        return [_tensor(data / f"{kind}_{index}.pb") for index in range(count)]

    return _case(case, model, read("input"), read("output"))


def _light(case: Any) -> Case:
    """True shapes, made-up weights; ONNX's runner feeds a ramp from 0 to 1."""
    path = Path(onnx.__file__).parent.parent / case.url
    model = onnx.load(path)
    initialized = {tensor.name for tensor in model.graph.initializer}
    inputs = []
    for value in model.graph.input:
        if value.name not in initialized:
            shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
            count = int(np.prod(shape))
            inputs.append((np.arange(count).reshape(shape) / count).astype(np.float32))
    return _case(case, model, inputs, [_tensor(path.with_name(f"{path.stem}_output_0.pb"))])


def _case(case: Any, model: onnx.ModelProto, inputs: list[Any], expected: list[Any]) -> Case:
    operator = model.graph.node[0].op_type if case.kind == "node" else f"[{case.kind}]"
    core = _is_core(model)
    data = model.SerializeToString()
    return Case(case.name, case.kind, operator, core, data, inputs, expected, case.rtol, case.atol)


def _listed_under(case: Case, operators: dict[str, str]) -> str:
    """A function's body written out is listed under the function."""
    base, expanded, _ = case.name.partition("_expanded")
    return f"{operators[base]} expanded" if expanded and base in operators else case.operator


def _array(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def _tensor(path: Path) -> Array:
    array: Array = numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))
    return array


def _is_core(model: onnx.ModelProto) -> bool:
    if any(item.domain not in ("", "ai.onnx") for item in model.opset_import):
        return False
    for value in [*model.graph.input, *model.graph.output]:
        if not value.type.HasField("tensor_type"):
            return False
        if value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
            return False
    kinds = re.compile(r"(?<!Reverse)Sequence|Optional|String|RegexFullMatch")
    return not any(kinds.search(node.op_type) for node in _nodes(model.graph))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


# --- one case, in a worker


def run_edgec(case: Case) -> Outcome:
    """Compile and run a case; freeze what edgec asks to be constant."""
    model = onnx.ModelProto.FromString(case.model)
    initialized = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in initialized]
    inputs = dict(zip(names, case.inputs, strict=True))
    frozen: set[str] = set()
    while True:
        with tempfile.TemporaryDirectory(prefix="edgec-conformance-") as folder:
            attempt = _Attempt(case, inputs, frozen, Path(folder))
            outcome = attempt.outcome()
        asked = attempt.inputs_to_freeze() if outcome.status == "refused" else set()
        if not asked:
            return outcome
        # A refusal can uncover the next one, at most once for each input.
        frozen |= asked


class _Attempt:
    """One way through the phases of `edgec.compiler.pipeline.compile_model`."""

    def __init__(
        self, case: Case, inputs: dict[str, Any], frozen: Iterable[str], folder: Path
    ) -> None:
        self.case = case
        self.inputs = {name: value for name, value in inputs.items() if name not in frozen}
        self.frozen = {name: inputs[name] for name in frozen}
        self.folder = folder
        self.graph: onnx.ModelProto | None = None
        self.phases: dict[str, float] = {}

    def outcome(self) -> Outcome:
        """How it went."""
        status, message = "pass", ""
        try:
            self.run()
        except Failed as failure:
            status, message = failure.status, str(failure)
        folded = self.graph is not None and not self.graph.graph.node
        return Outcome(status, message, sorted(self.frozen), folded, phases=self.phases)

    def run(self) -> None:
        """Compile, run, compare.

        Raises:
            Failed: it did not pass.
        """
        from edgec.compiler.backend import build, pack, schedule
        from edgec.compiler.frontend.import_graph import import_model
        from edgec.compiler.frontend.onnx_file import read_model
        from edgec.compiler.frontend.simplify import simplify
        from edgec.compiler.frontend.specialize import specialize
        from edgec.compiler.lowering.legalize import lower
        from edgec.compiler.passes import CANONICALIZE
        from edgec.compiler.passes.base import apply_passes
        from edgec.compiler.runtime.session import open_session
        from edgec.targets import load_target

        target, library = load_target("native"), self.folder / "model.so"
        path = self.folder / "model.onnx"
        path.write_bytes(self.case.model)
        shapes = {
            name: value.shape for name, value in self.inputs.items() if hasattr(value, "shape")
        }
        with self.phase("read", may_refuse=True):
            source = read_model(path)
        with self.phase("specialize", may_refuse=True):
            special = specialize(source.proto, shapes, self.frozen)
        with self.phase("simplify", may_refuse=True):
            self.graph = simplify(special.proto)
        with self.phase("import", may_refuse=True):
            imported = import_model(self.graph)
        with self.phase("canonicalize"):
            signature = imported.signature
            module = apply_passes(imported.module, CANONICALIZE)
        with self.phase("pack"):
            packed = pack(module, target)
        with self.phase("lower"):
            lowered = lower(packed, target)
        with self.phase("schedule"):
            scheduled = schedule(lowered, module, target, signature)
        with self.phase("build"):
            executor, _ = build(scheduled, signature, target, library)
        with self.phase("run"):
            session = open_session(library, target, signature, executor)
            outputs = session.run(self.inputs)
        actual = [outputs[spec.name] for spec in signature.outputs]
        with self.phase("compare"):
            _compare(self.case, actual)

    @contextlib.contextmanager
    def phase(self, name: str, may_refuse: bool = False) -> Iterator[None]:
        """Sort what a phase raises; only before code generation is edgec's error a refusal."""
        from edgec.compiler.errors import EdgecError

        start = time.monotonic()
        try:
            yield
        except EdgecError as error:
            text = str(error) if may_refuse else f"{name}: {error}"
            raise Failed("refused" if may_refuse else "crash", text) from error
        except Failed:
            raise
        except Exception as error:
            kind = type(error).__name__
            raise Failed("crash", f"{name}: {kind}: {_last_line(error)}") from error
        finally:
            self.phases[name] = round(time.monotonic() - start, 4)

    def inputs_to_freeze(self) -> set[str]:
        """Inputs that the refusal says must be constant."""
        from edgec.compiler.frontend.import_graph import find_refusals

        if self.graph is None:
            return set()
        return {name for refused in find_refusals(self.graph) for name in refused.freeze}


def run_onnxruntime(case: Case) -> Outcome:
    """The same case through ONNX Runtime as it comes."""
    import onnxruntime

    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            case.model, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        return Outcome("refused", _last_line(error))
    try:
        if any(map(_unknown_to_numpy, [*case.inputs, *case.expected])):
            actual = _run_bound(session, case)
        else:
            names = [value.name for value in session.get_inputs()]
            actual = session.run(None, dict(zip(names, case.inputs, strict=True)))
    except Exception as error:
        return Outcome("crash", _last_line(error))
    try:
        _compare(case, actual)
    except Failed as failure:
        return Outcome(failure.status, str(failure))
    return Outcome("pass")


def _unknown_to_numpy(value: Any) -> bool:
    # Types that a package registers with NumPy, as ml_dtypes does, are marked by 2.
    return isinstance(value, np.ndarray) and value.dtype.isbuiltin == 2


def _run_bound(session: Any, case: Case) -> list[Array]:
    """Run with types that NumPy lacks: from and to memory in the layout of a TensorProto."""
    binding = session.io_binding()
    buffers = []
    for value, array in zip(session.get_inputs(), case.inputs, strict=True):
        proto, buffer = _buffer(array)
        buffers.append(buffer)
        binding.bind_input(value.name, "cpu", 0, proto.data_type, array.shape, buffer.ctypes.data)
    results = []
    for value, array in zip(session.get_outputs(), case.expected, strict=True):
        proto, buffer = _buffer(array)
        buffer[:] = 0
        results.append((proto, buffer))
        binding.bind_output(value.name, "cpu", 0, proto.data_type, array.shape, buffer.ctypes.data)
    session.run_with_iobinding(binding)
    for proto, buffer in results:
        proto.raw_data = buffer.tobytes()[: len(proto.raw_data)]
    return [numpy_helper.to_array(proto) for proto, _ in results]


def _buffer(array: Array) -> tuple[onnx.TensorProto, NDArray[np.uint8]]:
    proto = numpy_helper.from_array(array)
    buffer = np.zeros(max(1, len(proto.raw_data)), np.uint8)
    buffer[: len(proto.raw_data)] = np.frombuffer(proto.raw_data, np.uint8)
    return proto, buffer


def _compare(case: Case, actual: Sequence[Any]) -> None:
    """As `onnx.backend.test.runner` does: shape and dtype equal, values close.

    Raises:
        Failed: an output is wrong.
    """
    if len(actual) != len(case.expected):
        raise Failed("wrong", f"{len(actual)} outputs, expected {len(case.expected)}")
    for index, (found, expected) in enumerate(zip(actual, case.expected, strict=True)):
        problem = difference(found, expected, case.rtol, case.atol)
        if problem:
            raise Failed("wrong", f"output {index}: {problem}")


def difference(found: Any, expected: Any, rtol: float, atol: float) -> str:
    """How two outputs differ, empty if they do not; sequences are compared by element."""
    if isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            return "not the expected sequence"
        pairs = zip(found, expected, strict=True)
        return next(filter(None, (difference(f, e, rtol, atol) for f, e in pairs)), "")
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        return f"shape {list(found.shape)}, expected {list(expected.shape)}"
    if found.dtype != expected.dtype:
        return f"dtype {found.dtype}, expected {expected.dtype}"
    if expected.dtype == object:
        return "" if np.array_equal(found, expected) else "text differs"
    if expected.dtype.name == "bfloat16":
        rtol = max(rtol, BFLOAT16_RTOL)
    if _unknown_to_numpy(expected):
        # NumPy cannot mix the types of ml_dtypes with numbers; all of them fit float32.
        found, expected = found.astype(np.float32), expected.astype(np.float32)
    close = np.isclose(found, expected, rtol=rtol, atol=atol, equal_nan=True)
    if close.all():
        return ""
    at = np.unravel_index(int(np.argmin(close)), close.shape)
    return (
        f"{np.count_nonzero(~close)} of {close.size} values differ, "
        f"{found[at]!s} instead of {expected[at]!s} at {[int(i) for i in at]}"
    )


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else "")[:300]


# --- workers

Runner = Callable[[Case], Outcome]


class Workers:
    """Processes that run cases; they start at once, and end with the context."""

    def __init__(self, runner: Runner, jobs: int) -> None:
        self._runner = runner
        # The linker's cache of what it compiles: it would keep every case's code for good.
        self._cache = tempfile.TemporaryDirectory(prefix="edgec-conformance-")
        self._workers = [_Worker(runner, self._cache.name) for _ in range(jobs)]

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()
        self._cache.cleanup()

    def run(
        self,
        cases: Sequence[Case],
        timeout: float,
        done: Callable[[Case, Outcome], None] = lambda case, outcome: None,
    ) -> dict[str, Outcome]:
        """Run cases, the large ones first.

        Args:
            cases: what to run.
            timeout: seconds for one case, `LARGE_FACTOR` times as many for a large one.
            done: told of each outcome as it comes.

        Returns:
            Outcome by case name.
        """
        outcomes = self._run(cases, timeout, done)
        for case in cases:
            if outcomes[case.name].died:
                # Memory that an earlier case damaged can end a worker too: ask again, alone.
                for worker in self._workers:
                    worker.replace()
                [again] = self._run([case], timeout, lambda case, outcome: None).values()
                if not again.died:
                    print(
                        f"{case.name} ended its worker, but not when it ran alone: "
                        f"{outcomes[case.name].message}",
                        file=sys.stderr,
                    )
                outcomes[case.name] = again
        return outcomes

    def _run(
        self, cases: Sequence[Case], timeout: float, done: Callable[[Case, Outcome], None]
    ) -> dict[str, Outcome]:
        pending = sorted(cases, key=lambda case: case.kind == LARGE_KIND)
        outcomes: dict[str, Outcome] = {}
        while len(outcomes) < len(cases):
            for worker in self._workers:
                if worker.case is None and pending:
                    case = pending.pop()
                    large = case.kind == LARGE_KIND
                    worker.start(case, timeout * LARGE_FACTOR if large else timeout)
            busy = [worker for worker in self._workers if worker.case]
            remaining = min(worker.deadline for worker in busy) - time.monotonic()
            wait([worker.connection for worker in busy], max(0.0, remaining))
            for worker in busy:
                running, outcome = worker.case, worker.poll()
                if running is not None and outcome is not None:
                    outcomes[running.name] = outcome
                    done(running, outcome)
        return outcomes


class _Worker:
    """A process that runs cases one by one; replaced when it dies."""

    def __init__(self, runner: Runner, cache: str) -> None:
        self.runner = runner
        self.cache = cache
        self.case: Case | None = None
        self.deadline = 0.0
        self.started = 0.0
        self.timeout = 0.0
        self._log = tempfile.NamedTemporaryFile(prefix="edgec-conformance-")  # noqa: SIM115
        self._spawn()

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self.runner, self._log.name, self.cache), daemon=True
        )
        self._process.start()
        theirs.close()
        self._ready = False

    def start(self, case: Case, timeout: float) -> None:
        """Give it a case."""
        if not self._ready:
            # The time for imports is nobody's; a worker that cannot even start is our mistake.
            self.connection.recv()
            self._ready = True
        self.case, self.timeout = case, timeout
        self.started = time.monotonic()
        self.deadline = self.started + timeout
        self.connection.send(case)

    def poll(self) -> Outcome | None:
        """The outcome of its case if there is one by now."""
        outcome = None
        try:
            if self.connection.poll():
                outcome = self.connection.recv()
            elif time.monotonic() >= self.deadline:
                outcome = Outcome("timeout", f"took over {self.timeout:g} s")
                self.replace()
        except (EOFError, ConnectionResetError):
            self._process.join()
            words = f"{_ending(self._process.exitcode)}: {self._last_words()}"
            outcome = Outcome("crash", words, died=True)
            self.replace()
        if outcome is not None:
            self.case = None
            outcome = replace(outcome, seconds=round(time.monotonic() - self.started, 3))
        return outcome

    def stop(self) -> None:
        """End it, and what it started."""
        assert self._process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        # It has no group of its own yet where it has only just started.
        self._process.kill()
        self._process.join()
        self.connection.close()

    def replace(self) -> None:
        """Start anew."""
        self.stop()
        self._spawn()

    def _last_words(self) -> str:
        text = Path(self._log.name).read_text(errors="replace").strip()
        lines = [line for line in text.splitlines() if "rror" in line or "erminate" in line]
        return (lines or text.splitlines() or ["no message"])[-1][:300]


def _serve(connection: Connection, runner: Runner, log: str, cache: str) -> None:
    """What a worker process does."""
    # A group of its own, so that a linker that it waits for ends with it.
    os.setpgid(0, 0)
    os.environ["ZIG_LOCAL_CACHE_DIR"] = cache
    stream = os.open(log, os.O_WRONLY | os.O_TRUNC | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    if runner is run_edgec:
        import edgec.compiler.pipeline  # noqa: F401
    connection.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            case = connection.recv()
            os.ftruncate(stream, 0)
            try:
                outcome = runner(case)
            except Exception as error:
                outcome = Outcome("crash", f"{type(error).__name__}: {_last_line(error)}")
            connection.send(outcome)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


# --- the list of known failures


@dataclass(frozen=True)
class Known:
    """A listed failure: its status, and why."""

    status: str
    why: str


def read_known(path: Path) -> dict[str, Known]:
    """Known failures by case name."""
    if not path.exists():
        return {}
    groups = tomllib.loads(path.read_text(encoding="utf-8")).get("group", [])
    return {
        case: Known(group["status"], group["why"]) for group in groups for case in group["cases"]
    }


def write_known(path: Path, known: dict[str, Known]) -> None:
    """Write the list, cases of one status and reason together."""
    groups: dict[Known, list[str]] = defaultdict(list)
    for name, item in sorted(known.items()):
        groups[item].append(name)
    text = (
        "# Cases that do not pass, and why. A case that passes must go, a new one breaks CI.\n"
        "# `python tests/conformance/conformance.py --update` rewrites this file and keeps\n"
        f"# what is said in `why`. Made with onnx {onnx.__version__}.\n"
    )
    for item, cases in sorted(groups.items(), key=lambda g: (g[0].status, g[0].why)):
        text += f"\n[[group]]\nstatus = {_toml(item.status)}\nwhy = {_toml(item.why)}\ncases = [\n"
        text += "".join(f"  {_toml(case)},\n" for case in cases) + "]\n"
    path.write_text(text, encoding="utf-8")


def _toml(text: str) -> str:
    """A basic string; JSON's escapes are TOML's."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def update_known(
    known: dict[str, Known], cases: Sequence[Case], outcomes: dict[str, Outcome]
) -> dict[str, Known]:
    """The list after a run: reasons stay where the status is the same.

    Cases that did not run stay, those that no longer exist are for the caller to leave out.
    """
    result = {name: item for name, item in known.items() if name not in outcomes}
    for case in cases:
        outcome, before = outcomes[case.name], known.get(case.name)
        if outcome.status == "pass":
            continue
        if before and before.status == outcome.status:
            result[case.name] = before
        else:
            result[case.name] = Known(outcome.status, reason(case, outcome))
    return result


def check_known(known: dict[str, Known], outcomes: dict[str, Outcome]) -> list[str]:
    """What the list does not say: new failures, and listed cases that changed or pass."""
    problems = []
    for name, outcome in sorted(outcomes.items()):
        listed = known.get(name)
        if outcome.status == "pass" and listed:
            problems.append(f"{name} passes; remove it from the list (--update)")
        elif outcome.status != "pass" and not listed:
            problems.append(f"{name} is {outcome.status}: {outcome.message}")
        elif listed and listed.status != outcome.status:
            problems.append(
                f"{name} is {outcome.status}, listed as {listed.status}: {outcome.message}"
            )
    return problems


def reason(case: Case, outcome: Outcome) -> str:
    """A message without what is particular to the case, so that cases share it."""
    text = outcome.message
    if outcome.status == "wrong":
        kind = "values differ" if "values differ" in text else re.sub(r"^output \d+: ", "", text)
        return f"{case.operator}: {kind}"
    text = re.sub(r"^\d+ nodes? cannot be compiled: ", "", text)
    text = re.sub(r" \([^()]*?\):", ":", text)
    text = re.sub(r"\S*/model\.onnx", "the model", text)
    text = re.sub(r"^\S+ (holds text|is of type)", r"an input \1", text)
    return text[:200]


# --- what people see


def tables(
    cases: Sequence[Case], outcomes: dict[str, Outcome], rival: dict[str, Outcome] | None
) -> str:
    """Operators that do not pass in full, then totals."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.operator].append(case)
    lines, complete = [], []
    heads = [*STATUSES, *(["ORT"] if rival else [])]
    row = "{:<32}{:>6}" + "{:>9}" * len(heads) + "  {}"
    lines.append(row.format("operator", "cases", *heads, "first reason"))
    for operator, members in sorted(groups.items()):
        count = _count(members, outcomes)
        if count["pass"] == len(members):
            complete.append(operator)
            continue
        numbers = [count[status] for status in STATUSES]
        if rival:
            numbers.append(_count(members, rival)["pass"])
        first = next(case for case in members if outcomes[case.name].status != "pass")
        why = reason(first, outcomes[first.name])
        lines.append(row.format(operator, len(members), *(n or "" for n in numbers), why[:110]))
    lines += ["", f"all pass ({len(complete)}): {', '.join(complete)}", ""]
    core = [case for case in cases if case.core]
    rest = [case for case in cases if not case.core]
    for title, members in (("core", core), ("other", rest)):
        if members:
            lines.append(_total(f"{title}, edgec", members, outcomes))
            if rival:
                lines.append(_total(f"{title}, ONNX Runtime", members, rival))
    passing = [outcomes[case.name] for case in cases if outcomes[case.name].status == "pass"]
    frozen = sum(bool(outcome.frozen) for outcome in passing)
    folded = sum(outcome.folded for outcome in passing if outcome.frozen)
    lines.append(
        f"{frozen} of the passing cases needed inputs frozen; {folded} of them are constant then"
    )
    return "\n".join(lines)


def _count(cases: Iterable[Case], outcomes: dict[str, Outcome]) -> Counter[str]:
    return Counter(outcomes[case.name].status for case in cases)


def _total(title: str, cases: Sequence[Case], outcomes: dict[str, Outcome]) -> str:
    count = _count(cases, outcomes)
    share = 100 * count["pass"] / len(cases)
    parts = ", ".join(f"{count[status]} {status}" for status in STATUSES)
    return f"{title:<22}{share:5.1f} % of {len(cases)}: {parts}"


def _write_json(
    path: Path,
    cases: Sequence[Case],
    outcomes: dict[str, Outcome],
    rival: dict[str, Outcome] | None,
) -> None:
    rows = []
    for case in cases:
        row = {"name": case.name, "kind": case.kind, "operator": case.operator, "core": case.core}
        row |= asdict(outcomes[case.name])
        if rival:
            row["onnxruntime"] = asdict(rival[case.name])
        rows.append(row)
    path.write_text(json.dumps({"onnx": onnx.__version__, "cases": rows}, indent=1) + "\n")


class _Ticker:
    """A line on stderr that counts."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.failures: Counter[str] = Counter()

    def __call__(self, case: Case, outcome: Outcome) -> None:
        self.done += 1
        self.failures[outcome.status] += 1
        if self.done % 50 == 0 or self.done == self.total:
            parts = ", ".join(f"{n} {status}" for status, n in self.failures.items())
            print(f"{self.what} {self.done}/{self.total}: {parts}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases; exit code 1 if `--check` finds that the list of failures does not hold."""
    parser = argparse.ArgumentParser(description="official ONNX backend cases through edgec")
    parser.add_argument("--filter", default="", help="only cases whose name matches this regex")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for one case")
    parser.add_argument("--check", action="store_true", help="compare with the known failures")
    parser.add_argument("--update", action="store_true", help="rewrite the known failures")
    parser.add_argument("--json", type=Path, help="write every outcome here")
    parser.add_argument("--onnxruntime", action="store_true", help="show ONNX Runtime beside it")
    options = parser.parse_args(argv)

    start = time.monotonic()
    with Workers(run_edgec, options.jobs) as workers:
        every = load_cases()
        cases = [case for case in every if re.search(options.filter, case.name)]
        if not cases:
            parser.error(f"no case matches {options.filter!r}")
        outcomes = workers.run(cases, options.timeout, _Ticker("edgec", len(cases)))
    rival = None
    if options.onnxruntime:
        with Workers(run_onnxruntime, options.jobs) as workers:
            rival = workers.run(cases, options.timeout, _Ticker("ONNX Runtime", len(cases)))
    print(tables(cases, outcomes, rival))
    if len(cases) <= 40:
        for case in cases:
            outcome = outcomes[case.name]
            print(f"{outcome.status:<8}{outcome.seconds:6.2f} s  {case.name}  {outcome.message}")
    if options.json:
        _write_json(options.json, cases, outcomes, rival)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{time.monotonic() - start:.0f} s with {options.jobs} workers, which computed for "
        f"{used.ru_utime + used.ru_stime:.0f} s"
    )

    known = read_known(KNOWN)
    if options.update:
        exist = {case.name for case in every}
        known = {name: item for name, item in known.items() if name in exist}
        write_known(KNOWN, update_known(known, cases, outcomes))
    problems = check_known(known, outcomes) if options.check and not options.update else []
    if options.check and not options.filter:
        exist = {case.name for case in cases}
        problems += [f"{name} is listed but is no case" for name in known if name not in exist]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
