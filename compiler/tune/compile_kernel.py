"""Provide one kernel of one decision, as an object file; compiled where work is done."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from edgec.compiler.codegen.kernel_objects import write_object
from edgec.compiler.kernels.template import from_text
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.tuning_records import Key
from edgec.compiler.support.files import scratch_folder
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


@dataclass(frozen=True)
class CompiledKernel:
    """A compiled kernel is a built kernel on its way from where it was compiled.

    Attributes:
        name: its symbol.
        code: the object file's contents.
        tasks: number of its tasks.
        weight_values: as of `BuiltKernel`.
    """

    name: str
    code: bytes
    tasks: int
    weight_values: int

    def written(self, folder: Path) -> BuiltKernel:
        """Return the kernel as a file in a folder."""
        path = folder / f"{self.name}.o"
        path.write_bytes(self.code)
        return BuiltKernel(self.name, path, self.tasks, self.weight_values)


def compile_kernel(key: Key, decision: str, target: Target) -> CompiledKernel:
    """Compile one kernel; called in a worker."""
    template = TEMPLATES[key.operator]
    workload = from_text(template.workload, key.workload)
    parsed = from_text(template.decision, decision)
    digest = hashlib.sha256(f"{key}{decision}".encode()).hexdigest()[:16]
    name = f"{key.operator.removeprefix('edgec.')}_{digest}"
    kernel = template.emit(workload, parsed, target, name)
    with scratch_folder() as folder:
        path = folder / "kernel.o"
        write_object({name: kernel.function}, target, path)
        code = path.read_bytes()
    size = -1
    if template.weight_size is not None:
        size = template.weight_size(workload, parsed, target)
    return CompiledKernel(name, code, kernel.tasks, size)
