"""Libraries of several programs, built without a bundle around them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from edgec.compiler.backend import build, pack, schedule
from edgec.compiler.codegen.states import keep_states
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.ir.program import Program
from edgec.compiler.ir.signature import Signature, State, without_states
from edgec.compiler.lowering.legalize import lower
from edgec.compiler.runtime.session import open_session
from edgec.compiler.runtime.static_session import StaticSession
from edgec.targets import Target, load_target


@dataclass(frozen=True)
class BuiltPrograms:
    """Built programs are in one library.

    Attributes:
        programs: the programs.
        signatures: what callers of each pass, by its name.
        library: the code.
        target: what it was compiled for.
    """

    programs: Sequence[Program]
    signatures: Mapping[str, Signature]
    library: Path
    target: Target

    def open(self, threads: int = 2) -> StaticSession:
        """Return a session."""
        found = open_session(self.library, self.target, self.signatures, "static", threads)
        assert isinstance(found, StaticSession)
        return found


def build_programs(
    models: Mapping[str, onnx.ModelProto],
    states: Sequence[State],
    folder: Path,
    target: str = "native",
) -> BuiltPrograms:
    """Compile models of the same states as programs of one library."""
    machine = load_target(target)
    programs, signatures = [], {}
    for name, model in models.items():
        canonical = canonical_model(model)
        lowered = lower(pack(canonical.module, machine), machine)
        program = schedule(lowered, canonical.module, machine, canonical.signature)
        assert isinstance(program, Program)
        program.name = name
        keep_states(program, states, machine)
        programs.append(program)
        signatures[name] = without_states(canonical.signature, states)
    library = folder / "model.so"
    build(programs, machine, library, digest=bytes(range(32)))
    return BuiltPrograms(programs, signatures, library, machine)
