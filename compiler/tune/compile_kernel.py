"""Provide one kernel of one decision, as an object file."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from edgec.compiler.codegen.kernel_objects import write_object
from edgec.compiler.kernels.template import from_text
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.tuning_records import Key
from edgec.targets.target import Target


@dataclass(frozen=True)
class BuiltKernel:
    """A built kernel describes a kernel of one decision.

    Attributes:
        name: its symbol.
        path: the object file.
        tasks: number of its tasks.
        weight_values: size of its operand 1 in values, -1 where no decision changes it.
    """

    name: str
    path: Path
    tasks: int
    weight_values: int


def compile_kernel(key: Key, decision: str, target: Target, folder: Path) -> BuiltKernel:
    """Compile one kernel to an object file in a folder; called in a worker."""
    template = TEMPLATES[key.operator]
    workload = from_text(template.workload, key.workload)
    parsed = from_text(template.decision, decision)
    digest = hashlib.sha256(f"{key}{decision}".encode()).hexdigest()[:16]
    name = f"{key.operator.removeprefix('edgec.')}_{digest}"
    kernel = template.emit(workload, parsed, target, name)
    path = folder / f"{name}.o"
    write_object({name: kernel.function}, target, path)
    size = -1
    if template.weight_size is not None:
        size = template.weight_size(workload, parsed, target)
    return BuiltKernel(name, path, kernel.tasks, size)
