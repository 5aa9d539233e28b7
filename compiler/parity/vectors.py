"""Compare what a bundle computes with its own test vectors."""

from typing import Protocol

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.parity.compare import ParityReport, Tolerance, compare


class Runs(Protocol):
    """What runs the model of a bundle, here or on a board."""

    def run(self, inputs: Tensors) -> Tensors:
        """Return outputs by name."""
        ...

    def reset(self) -> None:
        """Begin anew: all state is zeros."""
        ...


def compare_vectors(bundle: Bundle, runs: Runs) -> list[ParityReport]:
    """Return a report for each test vector of a bundle, by the tolerance of its manifest."""
    tolerance = Tolerance(**bundle.manifest.tolerance.model_dump())
    reports = []
    for number, (fed, outputs) in enumerate(bundle.vectors()):
        if bundle.begins(number):
            runs.reset()
        reports.append(compare(outputs, runs.run(fed), tolerance))
    return reports
