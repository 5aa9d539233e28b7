"""Is a linked file what its target can load and execute?

Four questions, answered from the ELF file alone: is it for the target's machine, does it ask only
for libraries of the C library, only for symbol versions that the target's glibc has, and only for
instructions that the target's processor has. What a processor has is LLVM's list for the target.

How instructions are checked depends on what the architecture offers:

- x86-64: every instruction is decoded, which names the extension that it belongs to.
- AArch64: every instruction is one word; the words are compared with the encodings of the
  extensions that a compiler may choose (`_AARCH64`).
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
from edgec.targets.target import Architecture, Target

_MACHINES: dict[str, Architecture] = {
    "EM_X86_64": "x86_64",
    "EM_AARCH64": "aarch64",
    "EM_ARM": "armv7l",
    "EM_RISCV": "riscv64",
}

# What glibc installs; up to 2.33 it was split into several libraries.
_C_LIBRARY = re.compile(r"(ld-linux.*|lib(c|m|pthread|dl|rt))\.so\.\d")


@dataclass(frozen=True)
class Instruction:
    """An instruction of some extension.

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
    """Why a target cannot load or execute a file; empty if it can.

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
    """What LLVM says the target's processor has."""
    # Imported here: reading an ELF file needs no TVM.
    import tvm

    names = tvm.get_global_func("target.llvm_get_cpu_features")(tvm.target.Target(target.llvm()))
    return frozenset(str(name) for name in names)


# Bits of e_flags that name the registers in which floats are passed, by LLVM's name of the ABI.
_ARM_HARD_FLOAT, _ARM_FLOAT = 0x400, {"hard": 0x400, "soft": 0}
_RISCV_FLOAT_BITS, _RISCV_FLOAT = 0x6, {"lp64": 0, "lp64f": 2, "lp64d": 4}


def _wrong_float_abi(file: ELFFile, target: Target) -> str:
    flags = file["e_flags"]
    if target.architecture == "armv7l":
        found, wanted = flags & _ARM_HARD_FLOAT, _ARM_FLOAT.get(target.float_abi)
    elif target.architecture == "riscv64":
        found, wanted = flags & _RISCV_FLOAT_BITS, _RISCV_FLOAT.get(target.abi)
    else:
        return ""
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
    """Address and content of each section that is executed."""
    for section in file.iter_sections():
        if section["sh_flags"] & SH_FLAGS.SHF_EXECINSTR and section["sh_type"] == "SHT_PROGBITS":
            yield section["sh_addr"], section.data()


# Extensions beyond plain x86-64 that a compiler may choose; the others are for systems.
_X86_CHOSEN = re.compile(
    r"ADX|AES|AMX_.*|AVX.*|BMI[12]|F16C|FMA|GFNI|LZCNT|MOVBE|PCLMULQDQ|POPCNT|SHA|S?SSE[34].*|"
    r"VAES|VPCLMULQDQ"
)
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
                if _X86_CHOSEN.fullmatch(feature):
                    name = f"{instruction}".split()[0]
                    yield Instruction(_llvm_name(feature), f"{name} at {instruction.ip:#x}")


def _llvm_name(feature: str) -> str:
    """LLVM's name of an x86 extension.

    >>> [_llvm_name(name) for name in ("SSE4_1", "AVX512_VNNI", "AVX_VNNI", "AMX_INT8", "BMI1")]
    ['sse4.1', 'avx512vnni', 'avxvnni', 'amx-int8', 'bmi']
    """
    name = feature.lower().replace("sse4_", "sse4.").replace("amx_", "amx-").replace("_", "")
    return {"bmi1": "bmi", "pclmulqdq": "pclmul"}.get(name, name)


# Extension, mnemonic, and the bits of a word (mask, value) that make it this instruction; from the
# Arm Architecture Reference Manual, A64 instruction set encoding.
_AARCH64 = (
    ("dotprod", "sdot or udot", 0x9FE0FC00, 0x0E809400),
    ("dotprod", "sdot or udot by element", 0x9FC0F400, 0x0F80E000),
    ("i8mm", "smmla, ummla or usmmla", 0xDFE0F400, 0x4E80A400),
    ("i8mm", "usdot", 0xBFE0FC00, 0x0E809C00),
    ("i8mm", "usdot or sudot by element", 0xBF40F400, 0x0F00F000),
    ("bf16", "bfdot", 0xBFE0FC00, 0x2E40FC00),
    ("bf16", "bfmmla", 0xFFE0FC00, 0x6E40EC00),
    ("bf16", "bfmlalb or bfmlalt", 0xBFE0FC00, 0x2EC0FC00),
    ("bf16", "bfcvt", 0xFFFFFC00, 0x1E634000),
    ("bf16", "bfcvtn", 0xBFFFFC00, 0x0EA16800),
    ("fullfp16", "arithmetic on half floats", 0xFFE00C00, 0x1EE00800),
    ("fullfp16", "fmadd on half floats", 0xFFC00000, 0x1FC00000),
    ("fullfp16", "fcmp on half floats", 0xFFE0FC07, 0x1EE02000),
    ("fullfp16", "fcsel on half floats", 0xFFE00C00, 0x1EE00C00),
    ("fullfp16", "fabs, fneg or fsqrt on half floats", 0xFFFE7C00, 0x1EE04000),
    ("fullfp16", "frint on half floats", 0xFFFC7C00, 0x1EE44000),
    ("fullfp16", "conversion between integers and half floats", 0x7FE0FC00, 0x1EE00000),
    ("fullfp16", "fmov of half floats", 0xFFE01FE0, 0x1EE01000),
    ("fullfp16", "arithmetic on vectors of half floats", 0x9F60C400, 0x0E400400),
    ("fullfp16", "conversion of vectors of half floats", 0x9F7E0C00, 0x0E780800),
    ("fullfp16", "fmla or fmls of half floats by element", 0x9FC0B400, 0x0F001000),
    ("fullfp16", "fmul of half floats by element", 0x9FC0F400, 0x0F009000),
    ("fullfp16", "fmov of vectors of half floats", 0xBFF8FC00, 0x0F00FC00),
    ("fullfp16", "maximum or minimum across half floats", 0xBF7FFC00, 0x0E30C800),
    ("fullfp16", "maximum or minimum across half floats", 0xBF7FFC00, 0x0E30F800),
    ("fp16fml", "fmlal or fmlsl", 0xBF60FC00, 0x0E20EC00),
    ("fp16fml", "fmlal2 or fmlsl2", 0xBF60FC00, 0x2E20CC00),
    ("lse", "an atomic operation", 0x3F208C00, 0x38200000),
    ("lse", "swp", 0x3F20FC00, 0x38208000),
    ("lse", "cas", 0x3FA07C00, 0x08A07C00),
    ("lse", "casp", 0xBFA07C00, 0x08207C00),
    ("rcpc", "ldapr", 0x3FFFFC00, 0x38BFC000),
    ("rcpc-immo", "ldapur or stlur", 0x3F200C00, 0x19000000),
    ("rdm", "sqrdmlah or sqrdmlsh", 0xBF20F400, 0x2E008400),
    ("rdm", "sqrdmlah or sqrdmlsh by element", 0xBF00D400, 0x2F00D000),
    ("complxnum", "fcmla", 0xBF20E400, 0x2E00C400),
    ("complxnum", "fcadd", 0xBF20EC00, 0x2E00E400),
    ("jsconv", "fjcvtzs", 0xFFFFFC00, 0x1E7E0000),
    ("aes", "aese, aesd, aesmc or aesimc", 0xFFFFCC00, 0x4E284800),
    ("aes", "pmull of 64 bits", 0xBFE0FC00, 0x0EE0E000),
    ("sha2", "sha1 or sha256 of three registers", 0xFFE08C00, 0x5E000000),
    ("sha2", "sha1 or sha256 of two registers", 0xFFFFCC00, 0x5E280800),
    ("sha3", "eor3 or bcax", 0xFFC08000, 0xCE000000),
    ("sve", "a scalable vector instruction", 0x1E000000, 0x04000000),
    ("sme", "a matrix instruction", 0x9E000000, 0x80000000),
)


def _aarch64_instructions(file: ELFFile) -> Iterator[Instruction]:
    for address, data in _code(file):
        words: NDArray[np.uint32] = np.frombuffer(data, "<u4", len(data) // 4)
        for feature, name, mask, value in _AARCH64:
            places = np.flatnonzero((words & np.uint32(mask)) == value)
            if places.size:
                yield Instruction(feature, f"{name} at {address + 4 * int(places[0]):#x}")


# What an object's build attributes say it was compiled for, and LLVM's name of that; "Addenda to,
# and Errata in, the ABI for the Arm Architecture". Smaller values are in every Armv7-A with VFPv3.
_ARM = {
    "TAG_CPU_ARCH": {14: "v8", 21: "v8.1m.main", 22: "v9a"},
    "TAG_FP_ARCH": {5: "vfp4", 6: "vfp4d16", 7: "fp-armv8", 8: "fp-armv8d16"},
    "TAG_ADVANCED_SIMD_ARCH": {1: "neon", 2: "neon", 3: "v8", 4: "v8.1a"},
}


def _arm_attributes(file: ELFFile) -> Iterator[Instruction]:
    for tag, value in _attributes(file, ".ARM.attributes"):
        feature = _ARM.get(tag, {}).get(value)
        if feature:
            yield Instruction(feature, f"code for Arm ({tag.removeprefix('TAG_').lower()} {value})")


# Names for parts of others, which LLVM's list of a processor does not repeat.
_RISCV_PARTS = {"zcd", "zifencei"}


def _riscv_attributes(file: ELFFile) -> Iterator[Instruction]:
    for tag, value in _attributes(file, ".riscv.attributes"):
        if tag == "TAG_ARCH":
            base, *extensions = str(value).removeprefix("rv64").split("_")
            for extension in (base, *extensions):
                name = re.sub(r"\d+p\d+$", "", extension)
                if name not in _RISCV_PARTS:
                    yield Instruction(name, f"code for {value}")


def _attributes(file: ELFFile, section: str) -> Iterator[tuple[str, Any]]:
    """Tag and value of the build attributes of the whole file."""
    found = file.get_section_by_name(section)
    for vendor in found.iter_subsections() if found else ():
        for part in vendor.iter_subsubsections("TAG_FILE"):
            for attribute in part.iter_attributes():
                yield attribute.tag, attribute.value
