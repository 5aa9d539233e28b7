"""Describe what a board says of itself, and whether a bundle can run there.

The features are those that the board's kernel (or QEMU) reports: what is checked is the CPU that
is there, not the one that the target's name promises.
"""

from pydantic import BaseModel, ConfigDict

from edgec.compiler.boards.config import why_no_server
from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.bundle.manifest import LIBRARY, Manifest
from edgec.compiler.codegen.elf import llvm_features
from edgec.compiler.errors import BundleError
from edgec.compiler.runtime.vm_session import IN_PYTHON
from edgec.targets.isa import INSTRUCTION_SETS
from edgec.targets.target import Target

# Beside the model: the server's process and TVM's buffers.
SERVER_MEMORY_BYTES = 64 * 2**20
SPARE_DISK_BYTES = 2**20


class BoardCapabilities(BaseModel):
    """Board capabilities describe what the board's server reports.

    Attributes:
        architecture: as `uname -m` prints it.
        glibc: version of its C library.
        hwcap: CPU features on Arm, as the kernel's auxiliary vector holds them.
        hwcap2: the rest of them.
        flags: CPU features on x86.
        cores: cores that are on.
        memory_bytes: memory that programs can still have.
        disk_bytes: free space where the server keeps files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str
    glibc: str
    hwcap: int
    hwcap2: int
    flags: str
    cores: int
    memory_bytes: int
    disk_bytes: int

    @property
    def features(self) -> set[str]:
        """Return CPU features by Linux's names."""
        isa = INSTRUCTION_SETS[self.architecture]
        return isa.flags(self.flags, self.hwcap, self.hwcap2)


def check_bundle(bundle: Bundle) -> None:
    """Refuse a bundle that no board can run, before one is connected to.

    Raises:
        BundleError: says why, and what can be done.
        TrustError: the policy of this machine refuses it.
    """
    manifest, library = bundle.manifest, bundle.library
    problem = why_no_server(manifest.target)
    if problem:
        raise BundleError(f"{bundle.path} is for target {manifest.target.name}: {problem}")
    if manifest.execution.executor == "machine":
        names = sorted(set(IN_PYTHON.findall(library.read_bytes())))
        if names:
            listed = ", ".join(name.decode() for name in names)
            raise BundleError(
                f"{bundle.path}: the shapes of its model depend on data, and it calls {listed}, "
                "which TVM has in Python only, so no board can run it; edgec run can, on a "
                "machine of its target"
            )


def check_compatible(manifest: Manifest, capabilities: BoardCapabilities) -> None:
    """Refuse a bundle that a board cannot run, before anything is copied.

    Raises:
        BundleError: says everything that is in the way.
    """
    problems = _problems(manifest, capabilities)
    if problems:
        raise _unfit(manifest, problems)


def check_target(manifest: Manifest, target: Target) -> None:
    """Refuse a bundle that a board of this target cannot run.

    Raises:
        BundleError: says what is in the way.
    """
    ours = manifest.target
    if ours.architecture != target.architecture:
        problem = f"its code is for {ours.architecture}, the board is {target.architecture}"
        raise _unfit(manifest, [problem])
    missing = sorted(needed_features(ours) - needed_features(target))
    if missing:
        raise _unfit(manifest, [f"the board's CPU lacks {', '.join(missing)}"])


def _unfit(manifest: Manifest, problems: list[str]) -> BundleError:
    return BundleError(
        f"the bundle is for target {manifest.target.name}, which does not fit this board: "
        f"{'; '.join(problems)}; compile it for the board's target"
    )


def _problems(manifest: Manifest, capabilities: BoardCapabilities) -> list[str]:
    target = manifest.target
    if target.architecture != capabilities.architecture:
        return [f"its code is for {target.architecture}, the board is {capabilities.architecture}"]
    problems = []
    missing = sorted(needed_features(target) - capabilities.features)
    if missing:
        problems.append(f"the board's CPU lacks {', '.join(missing)}")
    if version_of(capabilities.glibc) < version_of(target.glibc):
        problems.append(f"it needs glibc {target.glibc}, the board has {capabilities.glibc}")
    library = manifest.files[LIBRARY].size_bytes
    vectors = sum(file.size_bytes for file in manifest.files.values()) - library
    memory = library + manifest.execution.arena_bytes + vectors + SERVER_MEMORY_BYTES
    for name, needed, free in (
        ("memory", memory, capabilities.memory_bytes),
        ("disk space", library + SPARE_DISK_BYTES, capabilities.disk_bytes),
    ):
        if free < needed:
            problems.append(
                f"it needs {needed / 1e6:.0f} MB of {name}, {free / 1e6:.0f} MB are free"
            )
    return problems


def needed_features(target: Target) -> set[str]:
    """Return CPU features that code for a target may use, by Linux's names."""
    if target.needed_flags is not None:
        return target.needed_flags
    names = target.instruction_set.extensions
    return {names[feature] for feature in llvm_features(target) if feature in names}


def version_of(text: str) -> tuple[int, ...]:
    """Return a version to compare."""
    return tuple(int(part) for part in text.split(".") if part.isdigit())
