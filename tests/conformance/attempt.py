"""One case through edgec: compiled and run in this process."""

import contextlib
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
from conformance.cases import Case, Failed, Outcome
from conformance.comparison import compare, last_line


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
    """An attempt is one way through the phases of `edgec.compiler.pipeline.compile_model`."""

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
        """Return how it went."""
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
        from edgec.compiler.frontend.model_source import read_model
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
            executor, _ = build([scheduled], target, library)
        with self.phase("run"):
            session = open_session(library, target, signature, executor)
            outputs = session.run(self.inputs)
        actual = [outputs[spec.name] for spec in signature.outputs]
        with self.phase("compare"):
            compare(self.case, actual)

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
            raise Failed("crash", f"{name}: {kind}: {last_line(error)}") from error
        finally:
            self.phases[name] = round(time.monotonic() - start, 4)

    def inputs_to_freeze(self) -> set[str]:
        """Return inputs that the refusal says must be constant."""
        from edgec.compiler.frontend.import_graph import find_refusals

        if self.graph is None:
            return set()
        return {name for refused in find_refusals(self.graph) for name in refused.freeze}
