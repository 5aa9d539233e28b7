"""Provide the parity check of a compile: the library against what it must compute.

And what to blame.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from tvm import IRModule

from edgec.compiler.errors import ParityError
from edgec.compiler.frontend.canonical import CanonicalModel
from edgec.compiler.ir.evaluate import Evaluate, HasState, Runnable
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.parity.compare import QUANTIZED_SQNR_DB, ParityReport, compare, worst_of
from edgec.compiler.parity.expected import Expected
from edgec.compiler.parity.locate import first_divergence
from edgec.compiler.parity.oracle import run_original
from edgec.compiler.runtime.session import Session


@dataclass(frozen=True)
class ParityCheck:
    """Compares a library, and earlier stages where it fails or on request.

    Attributes:
        canonical: the model as it was imported and canonicalized.
        original: what the original graph computes.
        expected: what the library must compute: the same, unless it is compressed or quantized.
        evaluate: compiles a module for this machine.
        evaluate_kept: the same, and what it gives keeps the states.
        program: what tells the program from others; empty if there is one.
    """

    canonical: CanonicalModel
    original: Expected
    expected: Expected
    evaluate: Evaluate
    evaluate_kept: Evaluate
    program: str = ""

    def check_library(self, session: Session | None, module: IRModule) -> ParityReport:
        """Run the library, or its module on this machine if the target's code cannot run here.

        A model with state is run several times, from where the original was.

        Raises:
            ParityError: the outputs are out of tolerance; says where that begins.
        """
        runnable: Runnable
        run: Callable[[Tensors], Tensors]
        if session is not None:
            session.reset()
            runnable = session
            run = partial(session.run, program=self.program) if self.program else session.run
        else:
            runnable = self.evaluate_kept(module, self.expected.signature)
            run = runnable.run
        if self.expected.goes_on:
            assert isinstance(runnable, HasState)
            for name, values in self.expected.first_states.items():
                runnable.set_state(name, values)
        report = worst_of(
            compare(step.outputs, run(step.inputs), self.expected.tolerance)
            for step in self.expected.called_steps
        )
        if not report.passed and self.expected is not self.original:
            raise ParityError(
                f"the library does not compute the changed graph{self._of}: {report.problems()}"
                f"{self._noise()}"
            )
        if not report.passed:
            where = self._where(self._stages())
            advice = f"; {self.original.advice}" if self.original.advice else ""
            raise ParityError(
                f"parity with the original graph{self._of} failed: "
                f"{report.problems()}{where}{advice}"
            )
        return report

    def _noise(self) -> str:
        """Say in a clause that the changed graph is far from the original on this sample."""
        enough = self.expected.tolerance.sqnr_db
        if enough is None or enough >= QUANTIZED_SQNR_DB:
            return ""
        own_db = min(self.original.sqnr_db(self.expected).values())
        return (
            f"; on this sample the changed graph itself is {own_db:.1f} dB from the original: "
            "if there is nothing in it that the model looks for, give others (--calibration, "
            "--input), else keep more in floats (--max-drop)"
        )

    @property
    def _of(self) -> str:
        return f" of program {self.program}" if self.program else ""

    def check_stages(self) -> None:
        """Compare after each stage that gives a model.

        Raises:
            ParityError: names the first stage that is out of tolerance.
        """
        simplified = run_original(self.canonical.graph, self.original.inputs)
        report = compare(self.original.outputs, simplified, self.original.tolerance)
        report.check("after simplify")
        for name, module in self._stages().items():
            report = _report(self.evaluate(module, self.original.signature), self.original)
            if not report.passed:
                where = self._where({name: module})
                raise ParityError(f"parity failed after {name}: {report.problems()}{where}")

    def _stages(self) -> dict[str, IRModule]:
        return {
            "import": self.canonical.imported.module,
            "canonicalize": self.canonical.module,
        }

    def _where(self, stages: Mapping[str, IRModule]) -> str:
        """Say in a clause which stage and operator is the first that is off."""
        simplified = run_original(self.canonical.graph, self.original.inputs)
        report = compare(self.original.outputs, simplified, self.original.tolerance)
        if not report.passed:
            return f"; the simplified graph is off already: {report.problems()}"
        for name, module in stages.items():
            first = first_divergence(
                module,
                self.canonical.value_names,
                self.canonical.graph,
                self.original.inputs,
                self.original.tolerance,
                self.evaluate,
            )
            if first is not None:
                return f"; the first value that is off after {name} is {first}"
            if not _report(self.evaluate(module, self.original.signature), self.original).passed:
                return f"; the outputs are off after {name}, no value on the way to them is"
        return "; all stages up to canonicalize agree, code generation does not"


def _report(runnable: Runnable, expected: Expected) -> ParityReport:
    actual = runnable.run(expected.inputs)
    return compare(expected.outputs, actual, expected.tolerance)
