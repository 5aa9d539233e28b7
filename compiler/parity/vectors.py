"""Compare what a bundle computes with its own test vectors."""

from typing import Protocol

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.parity.compare import ParityReport, Tolerance, compare


class Runs(Protocol):
    """What runs the model of a bundle, here or on a board."""

    def run(self, inputs: Tensors, program: str | None = None) -> Tensors:
        """Return outputs by name, of the named program or the first that takes the inputs."""
        ...

    def reset(self) -> None:
        """Begin anew: all state is zeros."""
        ...


def compare_vectors(bundle: Bundle, runs: Runs) -> list[ParityReport]:
    """Return a report for each test vector of a bundle, by the tolerance of its program."""
    reports = []
    for number, (fed, outputs) in enumerate(bundle.vectors()):
        if bundle.begins(number):
            runs.reset()
        found = run_vector(bundle, runs, number, fed)
        reports.append(compare(outputs, found, tolerance_of(bundle, number)))
    return reports


def run_vector(bundle: Bundle, runs: Runs, number: int, inputs: Tensors) -> Tensors:
    """Return outputs of the program that a vector is for."""
    if not bundle.manifest.variants:
        # Programs of other shapes are found by these.
        return runs.run(inputs)
    return runs.run(inputs, bundle.manifest.vectors[number].program)


def tolerance_of(bundle: Bundle, number: int) -> Tolerance:
    """Return how far the outputs of a vector may be from what they must be."""
    variant = bundle.manifest.variant(bundle.manifest.vectors[number].program)
    record = bundle.manifest.tolerance if variant is None else variant.tolerance
    return Tolerance(**record.model_dump())
