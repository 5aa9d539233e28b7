"""Is a linked file what its target can load and execute?

Four questions, answered from the ELF file alone: is it for the target's machine, does it ask only
for libraries of the C library, only for symbol versions that the target's glibc has, and only for
instructions that the target's processor has. What a processor has is LLVM's list for the target.

How instructions are checked depends on what the architecture offers:

- x86-64: every instruction is decoded, which names the extension that it belongs to.
- AArch64: every instruction is one word; the words are compared with the encodings of the
  extensions that a compiler may choose (`targets.isa.arm.ENCODINGS`).
- 32-bit Arm and RISC-V: the file's build attributes state what its code was generated for. They
  are the compiler's word, and on Arm that of the first object that was linked.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import iced_x86
import numpy as np
from elftools.common.exceptions import ELFError
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from numpy.typing import NDArray

from edgec.compiler.errors import ToolchainError
from edgec.targets.isa import INSTRUCTION_SETS, arm, riscv, x86
from edgec.targets.target import Target

_MACHINES = {isa.elf_machine: isa.name for isa in INSTRUCTION_SETS.values()}

# Code that runs only where the program found, when it ran, what the processor has.
ASKED_FOR = "edgec_asked_for"

# What glibc installs; up to 2.33 it was split into several libraries.
_C_LIBRARY = re.compile(r"(ld-linux.*|lib(c|m|pthread|dl|rt))\.so\.\d")


@dataclass(frozen=True)
class Instruction:
    """An instruction describes an instruction of some extension.

    Attributes:
        feature: LLVM's name of the extension.
        text: what it is and where.
    """

    feature: str
    text: str


def check_library(path: Path, target: Target, beside: tuple[str, ...] = ()) -> None:
    """Refuse a library or program that the target cannot load or execute.

    Args:
        path: the linked file.
        target: where it is to run.
        beside: libraries that will lie in its own folder.

    Raises:
        ToolchainError: says what the file needs and what the target has.
    """
    problem = why_not_on(path, target, llvm_features(target), beside)
    if problem:
        raise ToolchainError(
            f"{path.name} cannot run on target {target.name}: {problem}; the linker of the target "
            f"file is {target.linker!r}"
        )


def why_not_on(
    path: Path, target: Target, features: frozenset[str], beside: tuple[str, ...] = ()
) -> str:
    """Return why a target cannot load or execute a file; empty if it can.

    Args:
        path: the linked file.
        target: where it is to run.
        features: LLVM's names of what its processor has.
        beside: libraries that will lie in its own folder.
    """
    try:
        with path.open("rb") as stream:
            file = ELFFile(stream)
            machine = _MACHINES.get(file["e_machine"], file["e_machine"])
            if machine != target.architecture or not file.little_endian:
                return f"it is for {machine}, the target is {target.architecture}"
            return (
                _wrong_float_abi(file, target)
                or _unknown_library(file, beside)
                or _too_new_glibc(file, target)
                or _too_new_instruction(file, target, features)
            )
    except ELFError as error:
        return f"it is no ELF file: {error}"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


def llvm_features(target: Target) -> frozenset[str]:
    """Return what LLVM says the target's processor has."""
    # Imported here: reading an ELF file needs no TVM.
    import tvm

    names = tvm.get_global_func("target.llvm_get_cpu_features")(tvm.target.Target(target.llvm()))
    return frozenset(str(name) for name in names)


def _wrong_float_abi(file: ELFFile, target: Target) -> str:
    flags, isa = file["e_flags"], target.instruction_set
    found, wanted = flags & isa.float_abi_mask, isa.float_abis.get(target.float_abi or target.abi)
    if wanted is None or found == wanted:
        return ""
    return (
        f"its ELF flags {flags:#x} say that it passes floats in another way than the target's "
        f"ABI {target.float_abi or target.abi}"
    )


def _unknown_library(file: ELFFile, beside: tuple[str, ...]) -> str:
    dynamic = file.get_section_by_name(".dynamic")
    needed = [tag.needed for tag in dynamic.iter_tags("DT_NEEDED")] if dynamic else []
    unknown = [name for name in needed if name not in beside and not _C_LIBRARY.fullmatch(name)]
    return f"it needs {', '.join(unknown)}, which is not in the C library" if unknown else ""


def _too_new_glibc(file: ELFFile, target: Target) -> str:
    section = file.get_section_by_name(".gnu.version_r")
    names = [
        auxiliary.name
        for _, auxiliaries in (section.iter_versions() if section else ())
        for auxiliary in auxiliaries
    ]
    versions = [name.removeprefix("GLIBC_") for name in names if name.startswith("GLIBC_2.")]
    newest = max(versions, key=_version, default="2.0")
    if _version(newest) <= _version(target.glibc):
        return ""
    return f"it needs glibc {newest}, the target has {target.glibc}"


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def _too_new_instruction(file: ELFFile, target: Target, features: frozenset[str]) -> str:
    found: Iterator[Instruction]
    match target.architecture:
        case "x86_64":
            found = _x86_instructions(file)
        case "aarch64":
            found = _aarch64_instructions(file)
        case "armv7l":
            found = _arm_attributes(file)
        case "riscv64":
            found = _riscv_attributes(file)
    for instruction in found:
        if instruction.feature not in features:
            return (
                f"it uses {instruction.text}, of the extension {instruction.feature} that "
                f"{target.cpu} does not have"
            )
    return ""


def _code(file: ELFFile) -> Iterator[tuple[int, bytes]]:
    """Yield address and content of each section that is executed on every processor."""
    for section in file.iter_sections():
        if section.name == ASKED_FOR:
            continue
        if section["sh_flags"] & SH_FLAGS.SHF_EXECINSTR and section["sh_type"] == "SHT_PROGBITS":
            yield section["sh_addr"], section.data()


# iced-x86's number of an extension to the name in Intel's manual.
_X86_NAMES = {
    value: name for name, value in vars(iced_x86.CpuidFeature).items() if name[0].isupper()
}


def _x86_instructions(file: ELFFile) -> Iterator[Instruction]:
    for address, data in _code(file):
        first: dict[int, iced_x86.Instruction] = {}
        for instruction in iced_x86.Decoder(64, data, ip=address):
            if instruction.code not in first:
                first[instruction.code] = instruction.copy()
        for instruction in first.values():
            # Processors without it execute tzcnt as bsf; compilers use that.
            if instruction.mnemonic == iced_x86.Mnemonic.TZCNT:
                continue
            for feature in map(_X86_NAMES.__getitem__, instruction.cpuid_features()):
                if x86.CHOSEN_BY_COMPILERS.fullmatch(feature):
                    name = f"{instruction}".split()[0]
                    yield Instruction(x86.llvm_name(feature), f"{name} at {instruction.ip:#x}")


def _aarch64_instructions(file: ELFFile) -> Iterator[Instruction]:
    for address, data in _code(file):
        words: NDArray[np.uint32] = np.frombuffer(data, "<u4", len(data) // 4)
        for feature, name, mask, value in arm.ENCODINGS:
            places = np.flatnonzero((words & np.uint32(mask)) == value)
            if places.size:
                yield Instruction(feature, f"{name} at {address + 4 * int(places[0]):#x}")


def _arm_attributes(file: ELFFile) -> Iterator[Instruction]:
    for tag, value in _attributes(file, ".ARM.attributes"):
        feature = arm.BUILD_ATTRIBUTES.get(tag, {}).get(value)
        if feature:
            yield Instruction(feature, f"code for Arm ({tag.removeprefix('TAG_').lower()} {value})")


def _riscv_attributes(file: ELFFile) -> Iterator[Instruction]:
    for tag, value in _attributes(file, ".riscv.attributes"):
        if tag == "TAG_ARCH":
            base, *extensions = str(value).removeprefix("rv64").split("_")
            for extension in (base, *extensions):
                name = re.sub(r"\d+p\d+$", "", extension)
                if name not in riscv.PARTS:
                    yield Instruction(name, f"code for {value}")


def _attributes(file: ELFFile, section: str) -> Iterator[tuple[str, Any]]:
    """Yield tag and value of the build attributes of the whole file."""
    found = file.get_section_by_name(section)
    for vendor in found.iter_subsections() if found else ():
        for part in vendor.iter_subsubsections("TAG_FILE"):
            for attribute in part.iter_attributes():
                yield attribute.tag, attribute.value
