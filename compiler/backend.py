"""The second half of the pipeline as one function: from a canonical module to a library.

`pipeline.py` calls the same stages one by one, to show and dump them; checks on the way to a
bundle compile other modules for the host with this.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tvm import IRModule

from edgec.compiler.bundle.bundle import Executor
from edgec.compiler.codegen.build import build_machine, build_program
from edgec.compiler.ir.program import Program
from edgec.compiler.ir.signature import Signature
from edgec.compiler.kernels.emit.integer_dot import dot_of
from edgec.compiler.lowering.choose_sparse import ChooseSparse, sparse_choices
from edgec.compiler.lowering.legalize import lower
from edgec.compiler.lowering.pack_layouts import PackLayouts
from edgec.compiler.lowering.schedule import Decide, NotStatic, default_decide, schedule_program
from edgec.compiler.lowering.vm_schedule import schedule_for_machine
from edgec.compiler.passes.base import is_static
from edgec.targets import Target


def pack(
    module: IRModule, target: Target, names: Mapping[str, str] = MappingProxyType({})
) -> IRModule:
    """Bring a canonical module into the layouts of the target's kernels.

    A module of shapes that only a run can tell stays as it is.

    Args:
        module: the canonical module.
        target: whose kernels.
        names: ONNX names by those of variables, for profiles.
    """
    dense = pack_dense(module, target, names)
    return ChooseSparse(sparse_choices(dense, target))(dense)


def pack_dense(module: IRModule, target: Target, names: Mapping[str, str]) -> IRModule:
    """The same with dense kernels alone."""
    if not is_static(module):
        return module
    return PackLayouts(target.float_lanes, dot_of(target), names)(module)


def schedule(
    lowered: IRModule,
    canonical: IRModule,
    target: Target,
    signature: Signature,
    decide: Decide = default_decide,
) -> Program | IRModule:
    """Choose the code of every operator.

    Args:
        lowered: the packed and lowered module.
        canonical: the module before packing, for a model that needs the virtual machine.
        target: what to write code for.
        signature: inputs and outputs.
        decide: chooses among a template's decisions.

    Returns:
        A program for the static executor, or a module for the virtual machine if shapes or
        memory depend on the data.
    """
    if not is_static(lowered):
        return schedule_for_machine(canonical, target)
    try:
        return schedule_program(lowered, target, signature, decide)
    except NotStatic:
        return schedule_for_machine(canonical, target)


def build(
    scheduled: Program | IRModule,
    signature: Signature,
    target: Target,
    library: Path,
    name: str = "model",
) -> tuple[Executor, int]:
    """Generate code and link it.

    Returns:
        What runs it, and the bytes of memory that a run needs beside weights, inputs and outputs
        (0 where only a run can tell).
    """
    if isinstance(scheduled, Program):
        plan = build_program(scheduled, signature.outputs, target, library, name)
        return "static", plan.arena_bytes
    build_machine(scheduled, target, library)
    return "machine", 0


def compile_module(
    module: IRModule, signature: Signature, target: Target, library: Path, **kwargs: Any
) -> Executor:
    """All of it, for a canonical module."""
    lowered = lower(pack(module, target), target)
    scheduled = schedule(lowered, module, target, signature, **kwargs)
    return build(scheduled, signature, target, library)[0]
