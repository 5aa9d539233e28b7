"""Run small compiled graphs under QEMU."""

from pathlib import Path
from typing import Any

import numpy as np
from support.integer_graphs import Array, ConvCase, build_module

from edgec.compiler.boards.artifacts import counter_parts
from edgec.compiler.ir.signature import Signature, Tensors
from edgec.compiler.lowering.schedule import default_decide
from edgec.compiler.support.processes import run_program
from edgec.compiler.support.progress import Silent
from edgec.targets import Target


def run_emulated(library: Path, target: Target, signature: Signature, inputs: Tensors) -> Tensors:
    """Return the outputs of a model for the static executor, on one thread."""
    parts, given, results = (
        counter_parts(target, Silent()),
        library.with_suffix(".inputs"),
        library.with_suffix(".outputs"),
    )
    given.write_bytes(b"".join(inputs[spec.name].tobytes() for spec in signature.inputs))
    command = [*parts.command, str(parts.program), str(library), str(given), "0", str(results)]
    run_program(command, "it does not run under QEMU", 60)
    data, outputs, at = results.read_bytes(), {}, 0
    for spec in signature.outputs:
        shape = [extent or 0 for extent in spec.shape]
        array = np.frombuffer(data, spec.dtype, int(np.prod(shape)), at)
        outputs[spec.name], at = array.reshape(shape), at + array.nbytes
    assert at == len(data)
    return outputs


def run_case(case: ConvCase, target: Target, template: str, decision: Any, folder: Path) -> Array:
    """Run a convolution by a template and a decision, None: the one by the weights."""

    def decide(operator: str, workload: Any, machine: Target) -> Any:
        own = decision is not None and operator == f"edgec.{template}"
        return decision if own else default_decide(operator, workload, machine)

    library = folder / "model.so"
    program, signature = build_module(case.module(), target, library, decide)
    assert [step.template for step in program.steps if step.template != "pack"] == [template]
    return run_emulated(library, target, signature, {"x": case.arrays()[0]})["y"]
