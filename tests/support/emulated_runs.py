"""Run a small compiled graph under QEMU."""

from pathlib import Path

import numpy as np

from edgec.compiler.boards.artifacts import counter_parts
from edgec.compiler.ir.signature import Signature, Tensors
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
