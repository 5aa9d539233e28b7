"""Provide the parity check of a compile: the library against what it must compute.

And what to blame.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from tvm import IRModule

from edgec.compiler.errors import ParityError
from edgec.compiler.frontend.canonical import CanonicalModel
from edgec.compiler.ir.evaluate import Evaluate, Runnable
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.parity.compare import ParityReport, compare, worst_of
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

        A model with state is run several times from its beginning.

        Raises:
            ParityError: the outputs are out of tolerance; says where that begins.
        """
        run: Callable[[Tensors], Tensors]
        if session is not None:
            session.reset()
            run = partial(session.run, program=self.program) if self.program else session.run
        else:
            run = self.evaluate_kept(module, self.expected.signature).run
        report = worst_of(
            compare(step.outputs, run(step.inputs), self.expected.tolerance)
            for step in self.expected.called_steps
        )
        if not report.passed and self.expected is not self.original:
            raise ParityError(
                f"the library does not compute the changed graph{self._of}: {report.problems()}"
            )
        if not report.passed:
            where = self._where(self._stages())
            advice = f"; {self.original.advice}" if self.original.advice else ""
            raise ParityError(
                f"parity with the original graph{self._of} failed: "
                f"{report.problems()}{where}{advice}"
            )
        return report

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
