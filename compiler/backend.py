"""Provide the second half of the pipeline as one function: from a canonical module to a library.

`pipeline.py` calls the same stages one by one, to show and dump them. The stages in the middle and
the checks on the way to a bundle are handed `evaluate_here`, which compiles for this machine.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray
from tvm import IRModule

from edgec.compiler.codegen.build import build_library, build_vm_library
from edgec.compiler.codegen.in_place import move_channels_in_place
from edgec.compiler.codegen.states import keep_states
from edgec.compiler.ir.program import Program
from edgec.compiler.ir.relax_helpers import is_static
from edgec.compiler.ir.signature import Signature, State, Tensors, without_states
from edgec.compiler.kernels.isa import dot_of
from edgec.compiler.lowering.choose_sparse import ChooseSparse, sparse_choices
from edgec.compiler.lowering.early_exits import order_exits
from edgec.compiler.lowering.legalize import lower
from edgec.compiler.lowering.pack import Notes, PackLayouts
from edgec.compiler.lowering.schedule import Decide, NotStatic, default_decide, schedule_program
from edgec.compiler.lowering.shared_packing import SharedPacking
from edgec.compiler.lowering.vm_schedule import schedule_for_vm
from edgec.compiler.passes.fuse_causal_attention import FuseCausalAttention
from edgec.compiler.passes.fuse_rms_norm import FuseRmsNorm
from edgec.compiler.passes.keep_half_caches import KeepHalfCaches
from edgec.compiler.runtime.executor import Executor
from edgec.compiler.runtime.session import Session, open_session
from edgec.compiler.runtime.static_session import StaticSession
from edgec.compiler.support.free_memory import return_free_memory
from edgec.compiler.support.progress import Progress
from edgec.targets import Target, load_target


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


def pack_dense(
    module: IRModule, target: Target, names: Mapping[str, str], notes: Notes | None = None
) -> IRModule:
    """Pack with dense kernels alone; `notes` receives what it tells about operators."""
    if not is_static(module):
        return module
    notes = notes if notes is not None else Notes()
    notes.why_in_floats = target.why_in_floats
    packing = PackLayouts(target.float_lanes, dot_of(target), names, notes)
    return packing(KeepHalfCaches()(FuseCausalAttention()(FuseRmsNorm()(module))))


def packing_notes(module: IRModule, target: Target) -> Notes:
    """Return what the kernels of a target hold in memory of a canonical module, and how."""
    notes = Notes()
    PackLayouts(target.float_lanes, dot_of(target), notes=notes)(module)
    return notes


def schedule(
    lowered: IRModule,
    canonical: IRModule,
    target: Target,
    signature: Signature,
    decide: Decide = default_decide,
    progress: Progress | None = None,
    sharing: SharedPacking | None = None,
) -> Program | IRModule:
    """Choose the code of every operator.

    Args:
        lowered: the packed and lowered module.
        canonical: the module before packing, for a model that needs the virtual machine.
        target: what to write code for.
        signature: inputs and outputs.
        decide: chooses among a template's decisions.
        progress: is told of each operator.
        sharing: makes weights those of the programs before; see `SharedPacking`.

    Returns:
        A program for the static executor, or a module for the virtual machine if shapes or
        memory depend on the data.
    """
    if not is_static(lowered):
        return schedule_for_vm(canonical, target)
    try:
        program = schedule_program(lowered, target, signature, decide, progress, sharing)
    except NotStatic:
        return schedule_for_vm(canonical, target)
    move_channels_in_place(program)
    order_exits(program)
    return program


def build(
    scheduled: Sequence[Program | IRModule],
    target: Target,
    library: Path,
    name: str = "model",
    digest: bytes = bytes(32),
    progress: Progress | None = None,
) -> tuple[Executor, int]:
    """Generate code and link it; see `build_library` for the arguments.

    Returns:
        What runs it, and the bytes of memory that a run needs beside weights, inputs and outputs
        (0 where only a run can tell).
    """
    programs = [program for program in scheduled if isinstance(program, Program)]
    if programs:
        return "static", build_library(programs, target, library, name, digest, progress)
    (module,) = (module for module in scheduled if isinstance(module, IRModule))
    build_vm_library(module, target, library)
    return "machine", 0


def compile_module(
    module: IRModule,
    signature: Signature,
    target: Target,
    library: Path,
    decide: Decide = default_decide,
    progress: Progress | None = None,
    states: Sequence[State] = (),
) -> Executor:
    """Return all of it, for a canonical module."""
    # The packed module is gone before the build.
    lowered = lower(pack(module, target), target)
    scheduled = schedule(lowered, module, target, signature, decide, progress)
    del lowered
    if isinstance(scheduled, Program):
        keep_states(scheduled, states, target)
    return build([scheduled], target, library, progress=progress)[0]


class HostModel:
    """A host model is a canonical module that is compiled for this machine and loaded.

    Args:
        module: the canonical module.
        signature: inputs and outputs.
        progress: is told of each operator and kernel.
        target: what to generate code for, which this machine can run; None: this machine.
        decide: chooses among a template's decisions.
        states: inputs and outputs that it keeps from run to run; they leave the signature.
    """

    def __init__(
        self,
        module: IRModule,
        signature: Signature,
        progress: Progress | None = None,
        target: Target | None = None,
        decide: Decide = default_decide,
        states: Sequence[State] = (),
    ) -> None:
        target = target or load_target("native")
        with tempfile.TemporaryDirectory(prefix="edgec-model-") as folder:
            library = Path(folder) / "model.so"
            executor = compile_module(module, signature, target, library, decide, progress, states)
            return_free_memory()
            called = without_states(signature, states)
            self._session: Session = open_session(library, target, called, executor)

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        return self._session.run(inputs)

    def set_state(self, name: str, values: NDArray[Any]) -> None:
        """Change a state; only models of static shapes have any."""
        assert isinstance(self._session, StaticSession)
        self._session.set_state(name, values)

    def run_shared(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Return the outputs by name, in arrays that the next run may overwrite."""
        return self._session.run_shared(inputs)


def evaluate_here(
    module: IRModule,
    signature: Signature,
    progress: Progress | None = None,
    states: Sequence[State] = (),
) -> HostModel:
    """Compile a canonical module for this machine, by the stages that the model goes through."""
    return HostModel(module, signature, progress, states=states)
